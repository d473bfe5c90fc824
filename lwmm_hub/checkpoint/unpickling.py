"""A pickle interpreter that builds tensors' descriptions and plain containers, and nothing else.

No name from a pickle is ever imported or called: a global becomes an inert `Global`, if the tables
of `rebuilding` and `inert` hold it, and is refused otherwise, where it is first named. There is no
recursion, and the number of operations, the length of integers and what may be a dictionary key are
bounded, so that a small file takes bounded time and memory.

Instructions: `pickletools` of the standard library.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import IO

from lwmm_hub.checkpoint.inert import (
    INERT,
    NAMED,
    OTHER_TENSORS,
    PYTHON_2_MODULES,
    PYTHON_2_NAMES,
    STORAGE_TYPES,
)
from lwmm_hub.checkpoint.rebuilding import (
    CALLS,
    Global,
    Opaque,
    PickledArray,
    PickledDtype,
    PickledTensor,
    Run,
    Storage,
    as_size,
    kind_of,
    part_of,
    unexpected,
    unsafe,
    update,
)
from lwmm_hub.checkpoint.zip_archive import damaged
from lwmm_hub.errors import CheckpointError, UnsafePickleError

MAX_OPERATIONS = 4_000_000  # about 30 per tensor; a MiT-B5 with optimizer state needs 300 000
MAX_PICKLE = 64 * 1024 * 1024  # bytes
_MAX_INTEGER = 64  # bytes; the state of a numpy random generator has 17
_MAX_LINE = 64 * 1024  # bytes of a name
_KEPT = 255  # bytes; longer ones are values of an array, which stay in the file

StorageCheck = Callable[[Storage], None]


def load_pickle(data: bytes, name: str, check_storage: StorageCheck) -> object:
    """The object that a pickle describes; everything after its STOP is ignored.

    Args:
        data: the pickle.
        name: what to call the file in a message.
        check_storage: as `Pickles` calls it.

    Raises:
        UnsafePickleError: it names something that is neither a tensor nor a plain container.
        CheckpointError: it is damaged, or holds a kind of tensor that cannot be read.
    """
    return Pickles(io.BytesIO(data), len(data), name, check_storage).load()


class Pickles:
    """Pickles that follow each other in a file.

    Args:
        file: where they begin.
        size: bytes from there to its end.
        name: what to call it in a message.
        check_storage: called once per reference to a storage; raises if the file does not hold it.
    """

    def __init__(self, file: IO[bytes], size: int, name: str, check_storage: StorageCheck) -> None:
        """Read nothing yet."""
        self._machine = _Machine(file, size, name, check_storage)

    @property
    def at(self) -> int:
        """Bytes from where the file stood at first to behind what was read."""
        return self._machine.at

    def load(self, limit: int = MAX_PICKLE) -> object:
        """What the next pickle describes, made of plain containers, scalars and our own classes.

        Args:
            limit: bytes that are read at most, of all pickles so far; long values of arrays are
                left in the file and do not count.

        Raises:
            UnsafePickleError: it names something that is neither a tensor nor a plain container.
            CheckpointError: it is damaged, or holds a kind of tensor that cannot be read.
        """
        machine = self._machine
        machine.stack, machine.marks, machine.memo = [], [], {}
        machine.limit = limit
        try:
            return machine.run()
        except (IndexError, KeyError, ValueError, struct.error) as error:
            kind = type(error).__name__
            raise damaged(machine.name, f"its pickle cannot be read ({kind})") from None


class _Machine:
    """The stack machine of the pickle format."""

    def __init__(self, file: IO[bytes], size: int, name: str, check_storage: StorageCheck) -> None:
        self.file = file
        self.size = size
        self.name = name
        self.check_storage = check_storage
        self.limit = 0
        self.at = 0
        self.skipped = 0
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self) -> object:
        for _ in range(MAX_OPERATIONS):
            opcode = self.take(1)[0]
            if opcode == 0x2E:  # STOP
                return self.pop()
            operation = _OPERATIONS.get(opcode)
            if operation is None:
                raise self.refused_opcode(opcode)
            operation(self)
        raise CheckpointError(
            f"{self.name}: its pickle has more than {MAX_OPERATIONS} operations. Save the state "
            "dict alone: torch.save(model.state_dict(), ...)."
        )

    # reading

    def take(self, length: int) -> bytes:
        self.pass_by(length)
        if self.at - self.skipped > self.limit:
            raise CheckpointError(
                f"{self.name}: its pickle has more than {self.limit} bytes. Save the state dict "
                "alone: torch.save(model.state_dict(), ...)."
            )
        piece = self.file.read(length)
        if len(piece) != length:
            raise damaged(self.name, "its pickle ends too early")
        return piece

    def pass_by(self, length: int) -> None:
        self.at += length
        if self.at > self.size:
            raise damaged(self.name, "its pickle ends too early")

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "little")

    def line(self) -> str:
        piece = self.file.readline(_MAX_LINE)
        self.pass_by(len(piece))
        if not piece.endswith(b"\n"):
            raise damaged(self.name, "its pickle ends too early")
        return piece[:-1].decode("utf-8")

    # the stack

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise damaged(self.name, "its pickle takes more values than it gives")
        return self.stack.pop()

    def pop_to_mark(self) -> list[object]:
        if not self.marks:
            raise damaged(self.name, "its pickle takes more values than it gives")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def top(self) -> object:
        value = self.pop()
        self.stack.append(value)
        return value

    # errors

    def refused_opcode(self, opcode: int) -> CheckpointError:
        refused = _REFUSED_OPERATIONS.get(opcode)
        if refused is None:
            return damaged(self.name, f"its pickle holds the unknown instruction {opcode:#04x}")
        return UnsafePickleError(
            f"{self.name} uses the pickle instruction {refused}, which weights never need: nothing "
            "was executed. Where you trust the file, load it with the code that wrote it and save "
            "the weights alone: torch.save(model.state_dict(), ...)."
        )

    def unexpected(self, what: str) -> CheckpointError:
        return unexpected(self.name, what)

    # operations

    def push_integer(self, length: int) -> None:
        if length > _MAX_INTEGER:
            raise self.unexpected(f"an integer of {length} bytes")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def push_bytes(self, length: int) -> None:
        if length <= _KEPT:
            self.push(self.take(length))
            return
        self.push(Run(self.at, length))
        self.pass_by(length)
        self.skipped += length
        self.file.seek(length, 1)

    def push_text(self, length: int) -> None:
        self.push(self.take(length).decode("utf-8"))

    def push_global(self, module: object, attribute: object) -> None:
        if not isinstance(module, str) or not isinstance(attribute, str):
            raise self.unexpected("a name that is not text")
        name = f"{PYTHON_2_MODULES.get(module, module)}.{attribute}"
        name = PYTHON_2_NAMES.get(name, name)
        if name in CALLS or name in INERT or name in NAMED:
            self.push(Global(name))
        elif name in OTHER_TENSORS:
            raise CheckpointError(
                f"{self.name} holds {OTHER_TENSORS[name]}; only dense tensors can be merged. "
                "Convert it to a dense tensor and save the state dict again."
            )
        else:
            raise unsafe(self.name, name)

    def stack_global(self) -> None:
        attribute = self.pop()
        self.push_global(self.pop(), attribute)

    def call(self) -> None:
        arguments = self.pop()
        function = self.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise self.unexpected("a call of something that is no function")
        self.push(self.apply(function, arguments))

    def call_with_names(self) -> None:
        self.pop()
        self.call()

    def apply(self, function: Global, arguments: tuple[object, ...]) -> object:
        known = CALLS.get(function.name)
        if known is not None:
            return known(self.name, arguments)
        if function.name in INERT:
            return Opaque(function.name, [arguments] if arguments else None)
        raise self.unexpected(f"a call of {function.name}")

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if isinstance(target, PickledArray | PickledDtype):
            target.state = state
        elif isinstance(target, Opaque):
            target.give(state)
        # not needed of others, such as `_metadata` of a state dict
        elif not isinstance(target, dict | PickledTensor):
            raise self.unexpected(f"attributes for {kind_of(target)}")

    def append(self, values: list[object]) -> None:
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Opaque):
            target.give(values)
        else:
            raise self.unexpected(f"items for {kind_of(target)}")

    def set_items(self, values: list[object]) -> None:
        target = self.top()
        if isinstance(target, dict):
            update(self.name, target, values)
        elif isinstance(target, Opaque):
            target.give(values)
        else:
            raise self.unexpected(f"items for {kind_of(target)}")

    def push_set(self) -> None:
        self.pop_to_mark()
        self.push(Opaque("builtins.frozenset"))

    def push_dict(self) -> None:
        target: dict[object, object] = {}
        update(self.name, target, self.pop_to_mark())
        self.push(target)

    def push_tuple(self, length: int) -> None:
        values = [self.pop() for _ in range(length)]
        self.push(tuple(reversed(values)))

    def set_item(self) -> None:
        value = self.pop()
        self.set_items([self.pop(), value])

    def push_storage(self) -> None:
        reference = self.pop()
        if not isinstance(reference, tuple) or len(reference) not in (4, 5, 6):
            raise self.unexpected("a reference to something that is no storage")
        if len(reference) == 4 and reference[0] == "module" and isinstance(reference[1], Global):
            self.push(reference[1])  # a class with its source code, as files before 1.6 have it
            return
        tag, kind, key, _, count = (*reference, None)[:5]
        part = reference[5] if len(reference) == 6 else None  # of PyTorch before 1.6
        if tag != "storage" or not isinstance(kind, Global) or not isinstance(key, str):
            raise self.unexpected("a reference to something that is no storage")
        if kind.name not in STORAGE_TYPES:
            raise CheckpointError(
                f"{self.name} holds tensors of {kind.name}, a type that cannot be merged. Convert "
                "them to another dtype and save the state dict again."
            )
        storage = Storage(key, STORAGE_TYPES[kind.name], as_size(self.name, count))
        self.check_storage(storage)
        if part is not None:
            storage = part_of(self.name, storage, part)
        self.push(storage)

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.unexpected("a reference to something it did not define")
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.top()


def _protocol(machine: _Machine) -> None:
    version = machine.number(1)
    if version > 5:
        raise machine.unexpected(f"protocol {version}; the newest known is 5")


def _float(machine: _Machine) -> None:
    machine.push(struct.unpack(">d", machine.take(8))[0])


def _signed(machine: _Machine) -> None:
    machine.push(struct.unpack("<i", machine.take(4))[0])


# instruction -> what it does; those that tensors and plain containers never need are absent
_OPERATIONS: dict[int, Callable[[_Machine], object]] = {
    pickle_code[0]: operation
    for pickle_code, operation in {
        b"\x80": _protocol,
        b"\x95": lambda m: m.take(8),  # FRAME
        b"(": lambda m: m.marks.append(len(m.stack)),  # MARK
        b"0": lambda m: m.pop(),  # POP
        b"1": lambda m: m.pop_to_mark(),  # POP_MARK
        b"2": lambda m: m.push(m.top()),  # DUP
        b"N": lambda m: m.push(None),  # NONE
        b"\x88": lambda m: m.push(True),  # NEWTRUE
        b"\x89": lambda m: m.push(False),  # NEWFALSE
        b"J": _signed,  # BININT
        b"K": lambda m: m.push(m.number(1)),  # BININT1
        b"M": lambda m: m.push(m.number(2)),  # BININT2
        b"\x8a": lambda m: m.push_integer(m.number(1)),  # LONG1
        b"\x8b": lambda m: m.push_integer(m.number(4)),  # LONG4
        b"G": _float,  # BINFLOAT
        # text of Python 2: every byte is a character
        b"U": lambda m: m.push(m.take(m.number(1)).decode("latin-1")),  # SHORT_BINSTRING
        b"T": lambda m: m.push_bytes(m.number(4)),  # BINSTRING, of text that SHORT_ cannot hold
        b"\x8c": lambda m: m.push_text(m.number(1)),  # SHORT_BINUNICODE
        b"X": lambda m: m.push_text(m.number(4)),  # BINUNICODE
        b"\x8d": lambda m: m.push_text(m.number(8)),  # BINUNICODE8
        b"C": lambda m: m.push(m.take(m.number(1))),  # SHORT_BINBYTES
        b"B": lambda m: m.push_bytes(m.number(4)),  # BINBYTES
        b"\x8e": lambda m: m.push_bytes(m.number(8)),  # BINBYTES8
        b"\x96": lambda m: m.push_bytes(m.number(8)),  # BYTEARRAY8
        b"]": lambda m: m.push([]),  # EMPTY_LIST
        b"}": lambda m: m.push({}),  # EMPTY_DICT
        b")": lambda m: m.push(()),  # EMPTY_TUPLE
        b"\x8f": lambda m: m.push(Opaque("builtins.set")),  # EMPTY_SET
        b"\x85": lambda m: m.push_tuple(1),  # TUPLE1
        b"\x86": lambda m: m.push_tuple(2),  # TUPLE2
        b"\x87": lambda m: m.push_tuple(3),  # TUPLE3
        b"t": lambda m: m.push(tuple(m.pop_to_mark())),  # TUPLE
        b"l": lambda m: m.push(m.pop_to_mark()),  # LIST
        b"d": lambda m: m.push_dict(),  # DICT
        b"\x91": lambda m: m.push_set(),  # FROZENSET
        b"a": lambda m: m.append([m.pop()]),  # APPEND
        b"e": lambda m: m.append(m.pop_to_mark()),  # APPENDS
        b"s": lambda m: m.set_item(),  # SETITEM
        b"u": lambda m: m.set_items(m.pop_to_mark()),  # SETITEMS
        b"\x90": lambda m: m.append(m.pop_to_mark()),  # ADDITEMS
        b"c": lambda m: m.push_global(m.line(), m.line()),  # GLOBAL
        b"\x93": lambda m: m.stack_global(),  # STACK_GLOBAL
        b"R": lambda m: m.call(),  # REDUCE
        b"\x81": lambda m: m.call(),  # NEWOBJ
        b"\x92": lambda m: m.call_with_names(),  # NEWOBJ_EX
        b"b": lambda m: m.build(),  # BUILD
        b"Q": lambda m: m.push_storage(),  # BINPERSID
        b"h": lambda m: m.get(m.number(1)),  # BINGET
        b"j": lambda m: m.get(m.number(4)),  # LONG_BINGET
        b"q": lambda m: m.put(m.number(1)),  # BINPUT
        b"r": lambda m: m.put(m.number(4)),  # LONG_BINPUT
        b"\x94": lambda m: m.put(len(m.memo)),  # MEMOIZE
    }.items()
}
_REFUSED_OPERATIONS = {
    pickle_code[0]: name
    for pickle_code, name in {
        b"i": "INST",
        b"o": "OBJ",
        b"P": "PERSID",
        b"\x82": "EXT1",
        b"\x83": "EXT2",
        b"\x84": "EXT4",
        b"\x97": "NEXT_BUFFER",
        b"\x98": "READONLY_BUFFER",
        # of protocol 0, which torch.save does not write
        b"I": "INT",
        b"L": "LONG",
        b"F": "FLOAT",
        b"S": "STRING",
        b"V": "UNICODE",
        b"g": "GET",
        b"p": "PUT",
    }.items()
}
