"""Files of torch.save written by hand, so that every byte of them can lie."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

STOP = b"."
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # begins a legacy file


def text(value: str) -> bytes:
    data = value.encode("utf-8")
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage") -> bytes:
    fields = text("storage") + name("torch", kind) + text(key) + text("cpu") + integer(count)
    return b"(" + fields + b"tQ"


def tensor(
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    offset: int = 0,
    source: bytes | None = None,
) -> bytes:
    arguments = (source or storage()) + integer(offset) + sizes(*shape) + sizes(*strides)
    hooks = b"\x89" + name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + hooks + b"tR"


def dictionary(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + STOP


def archive(
    data: bytes,
    records: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """A zip archive as torch.save lays it out, with one storage of four float32 numbers."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("run/data.pkl", data)
        file.writestr("run/byteorder", b"little")
        file.writestr("run/version", b"3\n")
        for key, content in (records or {"run/data/0": struct.pack("<4f", 1, 2, 3, 4)}).items():
            file.writestr(key, content, compression)
    return target.getvalue()


def write(folder: Path, content: bytes, file_name: str = "latest.pth") -> Path:
    path = folder / file_name
    path.write_bytes(content)
    return path
