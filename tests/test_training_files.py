"""Files that training runs leave: what lies beside weights is read over, nothing is executed."""

from __future__ import annotations

import argparse
import functools
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pickle_builder as by_hand
import pytest
import torch
from safetensors.torch import load_file

import lwmm_hub as lw
from lwmm_hub.checkpoint.entries import LocalFile
from lwmm_hub.checkpoint.inert import INERT, NAMED
from lwmm_hub.checkpoint.pytorch import find_state_dicts, read_pytorch, sniff
from lwmm_hub.errors import CheckpointError, UnsafePickleError

HOLDERS = {
    "lightning": "lightning.fabric.utilities.data.AttributeDict",
    "lightning 1": "pytorch_lightning.utilities.parsing.AttributeDict",
    "mmcv": "mmcv.utils.config.ConfigDict",
    "mmengine": "mmengine.config.config.ConfigDict",
    "detectron2": "detectron2.config.config.CfgNode",
    "omegaconf": "omegaconf.dictconfig.DictConfig",
    "yacs": "yacs.config.CfgNode",
    "easydict": "easydict.EasyDict",
}


def class_of(name: str, base: type, monkeypatch: pytest.MonkeyPatch, **body: Any) -> Any:
    """A class that pickles name as another package's, which is not installed here."""
    module, _, attribute = name.rpartition(".")
    made = type(attribute, (base,), {"__module__": module, **body})
    for key, value in body.items():
        if callable(value):
            value.__module__, value.__qualname__ = module, f"{attribute}.{key}"
    there = ModuleType(module)
    setattr(there, attribute, made)
    parts = module.split(".")
    for i in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:i]), ModuleType(".".join(parts[:i])))
    monkeypatch.setitem(sys.modules, module, there)
    return made


def found(path: Path) -> dict[str, Any]:
    file, _ = read_pytorch(LocalFile(path, path.name))
    return dict(find_state_dicts(file.tree, file.name).entries)


def save(path: Path, content: object, protocol: int, legacy: bool) -> Path:
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    return path


every_format = pytest.mark.parametrize(
    ("protocol", "legacy"), [(2, False), (4, False), (2, True), (4, True)]
)


@every_format
def test_a_history_of_mmengine_is_read_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, legacy: bool
) -> None:
    """As `Runner.save_checkpoint` of mmengine 0.10.7 writes it, methods by `getattr` too."""

    def mean(self: Any) -> float:
        return 0.0

    def smallest(self: Any) -> float:
        return 0.0

    history = class_of(
        "mmengine.logging.history_buffer.HistoryBuffer",
        object,
        monkeypatch,
        mean=mean,
        min=smallest,
    )
    loss = history()
    loss.__dict__ = {
        "max_length": 10,
        "_log_history": np.arange(3.0),
        "_count_history": np.ones(3, dtype=np.int64),
        "_statistics_methods": OrderedDict(mean=history.mean, min=history.min),
    }
    hub = {
        "log_scalars": OrderedDict({"train/loss": loss}),
        "runtime_info": OrderedDict(epoch=3, best_score=np.float64(0.5)),
        "resumed_keys": OrderedDict({"train/loss": True}),
    }
    content = {
        "meta": {"dataset_meta": {"classes": ("road", "sky")}, "seed": 1},
        "state_dict": OrderedDict({"conv.weight": torch.ones(2, 3)}),
        "message_hub": hub,
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
        "param_schedulers": [{"last_step": 3}],
    }
    path = save(tmp_path / "iter_12.pth", content, protocol, legacy)
    assert b"HistoryBuffer" in path.read_bytes()
    assert list(found(path)) == ["conv.weight"]


@every_format
def test_arguments_and_settings_are_read_over(tmp_path: Path, protocol: int, legacy: bool) -> None:
    arguments = argparse.Namespace(out=Path("/x"), device=torch.device("cpu"), inner=[1])
    content = {
        "state_dict": {"conv.weight": torch.ones(2, 3)},
        "args": arguments,
        "hyper_parameters": {
            "criterion": torch.nn.CrossEntropyLoss(weight=torch.ones(3)),
            "act": torch.nn.GELU,
            "norm": functools.partial(torch.nn.LayerNorm, eps=1e-6),
            "f": [torch.relu, torch.nn.functional.gelu],
            "kinds": [int, str, range(3), 1j, ..., {1}, frozenset((1,)), deque((1,))],
            "simple": SimpleNamespace(a=1),
            "numbers": [np.float32(1), np.int64(2), np.arange(3), np.float32, np.dtype("f4")],
            "torch": [torch.float16, torch.Size([1]), torch.strided, torch.__version__],
            "counted": Counter("aba"),
            "grouped": defaultdict(int, a=1),
        },
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]),
    }
    assert list(found(save(tmp_path / "run.ckpt", content, protocol, legacy))) == ["conv.weight"]


@every_format
@pytest.mark.parametrize("holder", HOLDERS.values(), ids=list(HOLDERS))
def test_settings_of_other_packages_are_read_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    holder: str,
    protocol: int,
    legacy: bool,
) -> None:
    settings = class_of(holder, dict, monkeypatch)(a=1, b={"c": [1]})
    settings.__dict__["_frozen"] = True
    content = {"state_dict": {"conv.weight": torch.ones(2, 3)}, "hyper_parameters": settings}
    assert list(found(save(tmp_path / "run.ckpt", content, protocol, legacy))) == ["conv.weight"]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_class_like_one_of_the_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    for name in (
        "mmengine.logging.history_buffer.MessageHub",
        "mmengine.logging.HistoryBuffer",
        "lightning.fabric.utilities.data.Trainer",
    ):
        settings = class_of(name, dict, monkeypatch)(a=1)
        path = save(tmp_path / "run.ckpt", {"w": torch.ones(2), "x": settings}, 2, legacy)
        with pytest.raises(UnsafePickleError, match=name.replace(".", r"\.")):
            read_pytorch(LocalFile(path, path.name))


@every_format
@pytest.mark.parametrize("holder", [*HOLDERS.values(), "argparse.Namespace"])
def test_weights_in_a_class_that_is_read_over_are_not_passed_by_for_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    holder: str,
    protocol: int,
    legacy: bool,
) -> None:
    """What lies beside them was taken in their place, an average as if there were no student."""
    plain = {"a.weight": torch.ones(2, 3), "b.weight": torch.zeros(4)}
    if holder == "argparse.Namespace":
        held: Any = argparse.Namespace(**plain)
    else:
        held = class_of(holder, dict, monkeypatch)(plain)
    said = rf"holds its weights \(.*\) in '{holder}'"
    path = tmp_path / "run.pth"
    for content in (
        held,
        {"state_dict": held, "x": {"y": torch.ones(3)}},
        {"model": held, "ema": plain},
    ):
        with pytest.raises(CheckpointError, match=said):
            found(save(path, content, protocol, legacy))
    with pytest.raises(CheckpointError, match="several dictionaries of tensors"):
        found(save(path, {"backbone": held, "head": {"c": torch.ones(3)}}, protocol, legacy))
    with pytest.raises(CheckpointError, match=said):
        found(save(path, {"state_dict": {"inner": {"deep": held}}}, protocol, legacy))
    save(path, {"state_dict": plain, "more": held, "f": torch.nn.PReLU}, protocol, legacy)
    file, _ = read_pytorch(LocalFile(path, path.name))
    weights = find_state_dicts(file.tree, file.name)
    assert (list(weights.entries), weights.path) == (list(plain), ("state_dict",))
    assert f"'more': 2 tensors in '{holder}', not read" in weights.unused


def test_tensors_of_a_loss_are_no_network_beside_the_network(tmp_path: Path) -> None:
    loss = torch.nn.CrossEntropyLoss(weight=torch.ones(3))
    content = {"network_a": {"conv.weight": torch.ones(2, 3)}, "criterion": loss}
    assert list(found(save(tmp_path / "run.pth", content, 2, False))) == ["conv.weight"]


GETATTR = by_hand.name("__builtin__", "getattr")
NAMESPACE = by_hand.name("argparse", "Namespace")
MANY = b"}" + b"(" + b"".join(by_hand.text(str(i)) + b"N" for i in range(9)) + b"u"

# what an inert value may be asked to do by an attacker -> whether it stays harmless or is refused
INERT_ATTACKS = {
    "getattr of a container": (
        GETATTR + by_hand.name("collections", "OrderedDict") + by_hand.text("fromkeys") + b"\x86R",
        UnsafePickleError,
    ),
    "getattr of an instance": (
        GETATTR + NAMESPACE + b")R" + by_hand.text("__class__") + b"\x86R",
        UnsafePickleError,
    ),
    "getattr of getattr": (
        GETATTR + GETATTR + NAMESPACE + by_hand.text("a") + b"\x86R" + by_hand.text("b") + b"\x86R",
        UnsafePickleError,
    ),
    "getattr with three": (
        GETATTR + NAMESPACE + by_hand.text("a") + b"N\x87R",
        UnsafePickleError,
    ),
    "a call of what getattr found": (
        GETATTR + NAMESPACE + by_hand.text("a") + b"\x86R)R",
        CheckpointError,
    ),
    "a call of an instance": (NAMESPACE + b")R)R", CheckpointError),
    "attributes of a class": (NAMESPACE + MANY + b"b", CheckpointError),
    "items of a class": (NAMESPACE + by_hand.text("a") + b"Ns", CheckpointError),
    "an instance of an instance as key": (
        b"}" + NAMESPACE + NAMESPACE + b")R\x85RNs",
        None,
    ),
    "an instance within itself": (
        NAMESPACE + b")\x81q\x00}" + by_hand.text("a") + b"h\x00sb",
        None,
    ),
    "an array within itself": (
        by_hand.name("numpy.core.multiarray", "_reconstruct")
        + by_hand.name("numpy", "ndarray")
        + b"K\x00\x85"
        + b"C\x01b\x87Rq\x00(K\x01)h\x00\x89h\x00tb",
        None,
    ),
    "a dtype with itself as state": (
        by_hand.name("numpy", "dtype") + by_hand.text("f4") + b"\x89\x88\x87Rq\x00h\x00b",
        None,
    ),
    "a class that is no module": (
        b"(" + by_hand.text("module") + b"]NNtQ",
        CheckpointError,
    ),
}


@pytest.mark.parametrize("place", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize(("body", "error"), INERT_ATTACKS.values(), ids=list(INERT_ATTACKS))
def test_inert_values_do_nothing(
    tmp_path: Path, body: bytes, error: type[CheckpointError] | None, place: str
) -> None:
    content = by_hand.pickled(by_hand.dictionary(x=body))
    if place == "zip":
        content = by_hand.archive(content)
    elif place == "legacy":
        start = by_hand.MAGIC + by_hand.pickled(b"M\xe9\x03") + by_hand.pickled(b"}")
        content = start + content + by_hand.pickled(b"]")
    path = by_hand.write(tmp_path, content)
    if error is None:
        file, _ = read_pytorch(LocalFile(path, path.name))
        assert not file.entries
    else:
        with pytest.raises(error) as caught:
            read_pytorch(LocalFile(path, path.name))
        assert len(str(caught.value)) < 500


def a_storage(key: str, count: int, part: tuple[int, int] | None, kind: str) -> bytes:
    """A reference to a storage with what files before 1.6 say of the part that is meant."""
    view = b"N"
    if part is not None:
        view = b"(" + by_hand.text(str(part)) + b"".join(map(by_hand.integer, part)) + b"t"
    fields = by_hand.text("storage") + by_hand.name("torch", kind) + by_hand.text(key)
    return b"(" + fields + by_hand.text("cpu") + by_hand.integer(count) + view + b"tQ"


def with_parts(part: tuple[int, int]) -> bytes:
    """A file of two storages, 10 floats and 3 halves, of which tensors are parts and views."""
    sources = {
        "part": (a_storage("0", 10, part, "FloatStorage"), 1, (2, 2), (1, 2)),
        "other": (a_storage("0", 10, (4, 6), "FloatStorage"), 0, (6,), (1,)),
        "whole": (a_storage("0", 10, None, "FloatStorage"), 2, (3,), (2,)),
        "half": (a_storage("1", 3, None, "HalfStorage"), 0, (3,), (1,)),
    }
    tensors = {
        key: by_hand.name("torch._utils", "_rebuild_tensor")
        + (b"(" + source + by_hand.integer(offset))
        + (by_hand.sizes(*shape) + by_hand.sizes(*strides) + b"tR")
        for key, (source, offset, shape, strides) in sources.items()
    }
    keys = b"](" + by_hand.text("0") + by_hand.text("1") + b"e"
    pickles = (by_hand.integer(1001), b"}", by_hand.dictionary(**tensors), keys)
    values = (np.arange(10, dtype=np.float32), np.arange(3, dtype=np.float16))
    return (
        by_hand.MAGIC
        + b"".join(map(by_hand.pickled, pickles))
        + b"".join(len(v).to_bytes(8, "little") + v.tobytes() for v in values)
    )


def test_parts_of_a_storage_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    """As PyTorch before 0.4 wrote views."""
    path = by_hand.write(tmp_path, with_parts((3, 5)))
    checkpoint = lw.resolve(str(path))
    expected = torch.load(path, weights_only=True)
    assert expected["part"].tolist() == [[4.0, 6.0], [5.0, 7.0]]
    assert list(checkpoint.entries) == list(expected)
    for key, value in expected.items():
        entry = checkpoint.entries[key]
        assert entry.shape == tuple(value.shape)
        assert checkpoint.read(entry) == value.contiguous().numpy().tobytes()


@pytest.mark.parametrize("part", [(3, 4), (6, 5), (11, 0), (-1, 5), (3, 2**59)])
def test_parts_beyond_their_storage_or_tensors_beyond_their_part_are_refused(
    tmp_path: Path, part: tuple[int, int]
) -> None:
    path = by_hand.write(tmp_path, with_parts(part))
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        lw.resolve(str(path))


def test_long_names_of_what_is_not_read_are_bounded_together(tmp_path: Path) -> None:
    """Each line that tells of one would hold the name of a megabyte again."""
    first = NAMESPACE + by_hand.tensor() + b"\x85Rq\x00"
    for count, refused in ((60, False), (70, True)):
        held = b"".join(by_hand.text(str(i)) + (b"h\x00" if i else first) for i in range(count))
        body = by_hand.dictionary(**{"n" * 2**20: b"}(" + held + b"u"})
        path = by_hand.write(tmp_path, by_hand.archive(by_hand.pickled(body)))
        with pytest.raises(CheckpointError, match="names of tensors" if refused else "several"):
            found(path)


def test_another_version_of_the_old_format_is_refused(tmp_path: Path) -> None:
    rest = by_hand.pickled(b"}") + by_hand.pickled(b"}") + by_hand.pickled(b"]")
    for version, error in ((1001, "no state dict"), (1000, "unknown version")):
        content = by_hand.MAGIC + by_hand.pickled(by_hand.integer(version)) + rest
        path = by_hand.write(tmp_path, content)
        with pytest.raises(CheckpointError, match=error):
            found(path)


def test_no_name_of_the_tables_runs_or_opens_anything() -> None:
    """A reader of the tables who adds one of these would open no hole, but should think again."""
    for name in INERT | NAMED:
        assert name.partition(".")[0] not in {"os", "posix", "nt", "subprocess", "sys", "shutil"}
        assert name.rpartition(".")[2] not in {"eval", "exec", "open", "load", "__import__"}


# pickles of numpy's arrays ------------------------------------------------------------------------


def arrays() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    wide = generator.standard_normal((6, 8), dtype=np.float32)
    return {
        "stem.conv1.weight": generator.standard_normal((4, 3, 7, 7), dtype=np.float32),
        "stem.conv1.norm.bias": np.ones(4, dtype=np.float32),
        "half": wide.astype(np.float16),
        "double": wide.astype(np.float64),
        "turned": np.asfortranarray(wide),
        "turned.deep": np.asfortranarray(generator.standard_normal((5, 4, 9, 3))),
        "axes": generator.standard_normal((5, 4, 9)).transpose(1, 0, 2),
        "axes.cycled": generator.standard_normal((5, 1, 9)).transpose(2, 0, 1),
        "rows": wide[2:4],
        "columns": wide[:, ::2],
        "scalar": np.array(3.0, dtype=np.float32),
        "counter": np.array(7),
        "none": np.zeros((0, 3), dtype=np.float32),
        "flags": np.array([True, False]),
        "bytes": np.arange(300, dtype=np.uint8),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_arrays_is_read_as_numpy_sees_it(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model_final.pkl"
    content = {"model": arrays(), "__author__": "someone", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol))
    assert sniff(LocalFile(path, path.name)) == "legacy"
    checkpoint = lw.resolve(str(path))
    assert list(checkpoint.entries) == list(arrays())
    assert (checkpoint.path, checkpoint.format) == (("model",), "pytorch")
    for key, value in arrays().items():
        entry = checkpoint.entries[key]
        read = np.frombuffer(checkpoint.read(entry), value.dtype).reshape(entry.shape)
        np.testing.assert_array_equal(read, value, strict=True)


def python_2(array: np.ndarray) -> bytes:
    """A pickle of an array as Python 2 wrote it, its values as text."""
    data = array.tobytes()
    long = len(data) > 255
    text = (b"T" + len(data).to_bytes(4, "little") if long else b"U" + bytes([len(data)])) + data
    dtype = by_hand.name("numpy", "dtype") + b"U\x02f4K\x00K\x01\x87R"
    state = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(by_hand.integer(size) for size in array.shape) + b"t"
    start = by_hand.name("numpy.core.multiarray", "_reconstruct") + by_hand.name("numpy", "ndarray")
    return start + b"K\x00\x85U\x01b\x87R(K\x01" + shape + dtype + state + b"\x89" + text + b"tb"


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(99, np.float32)}
    body = by_hand.dictionary(**{key: python_2(value) for key, value in values.items()})
    path = by_hand.write(tmp_path, by_hand.pickled(body), "R-50.pkl")
    assert all(
        np.array_equal(value, values[key])
        for key, value in pickle.loads(path.read_bytes(), encoding="latin1").items()
    )
    checkpoint = lw.resolve(str(path))
    for key, value in values.items():
        assert checkpoint.read(checkpoint.entries[key]) == value.tobytes()


def an_array(
    shape: bytes = b"K\x02\x85",
    dtype: bytes = b"",
    values: bytes = b"C\x08" + b"\x00" * 8,
    order: bytes = by_hand.text("<"),
) -> bytes:
    dtype = dtype or by_hand.name("numpy", "dtype") + by_hand.text("f4") + b"\x89\x88\x87R"
    state = b"(K\x03" + order + b"tb"
    start = by_hand.name("numpy._core.multiarray", "_reconstruct") + by_hand.name(
        "numpy", "ndarray"
    )
    return start + b"K\x00\x85C\x01b\x87R(K\x01" + shape + dtype + state + b"\x89" + values + b"tb"


def a_buffer(order: str, *more: bytes) -> bytes:
    """An array of shape (2, 1) as protocol 5 writes it."""
    start = by_hand.name("numpy._core.numeric", "_frombuffer") + b"(C\x08" + b"\x00" * 8
    dtype = by_hand.name("numpy", "dtype") + by_hand.text("f4") + b"\x89\x88\x87R"
    return start + dtype + by_hand.sizes(2, 1) + by_hand.text(order) + b"".join(more) + b"tR"


LIES = {
    "axes that are none": a_buffer("K", b"K\x01"),
    "axes that are not there": a_buffer("K"),
    "too few axes": a_buffer("K", by_hand.sizes(0)),
    "an axis twice": a_buffer("K", by_hand.sizes(0, 0)),
    "axes beyond": a_buffer("K", by_hand.sizes(1, 2)),
    "axes of rows": a_buffer("C", by_hand.sizes(1, 0)),
    "an order that is none": a_buffer("A"),
    "too few values": an_array(values=b"C\x04" + b"\x00" * 4),
    "too many values": an_array(values=b"C\x0c" + b"\x00" * 12),
    "a negative size": an_array(shape=b"J\xff\xff\xff\xff\x85"),
    "a size that is none": an_array(shape=b"]\x85"),
    "a shape that is none": an_array(shape=b"K\x02"),
    "huge": an_array(shape=b"\x8a\x08" + b"\xff" * 7 + b"\x0f\x85"),
    "values that are a list": an_array(values=b"]"),
    "values that are text": an_array(values=by_hand.text("\u20ac" * 8)),
    "values beyond the end": an_array(values=b"B\xff\xff\xff\x7f"),
    "big-endian": an_array(order=by_hand.text(">")),
    "big-endian in bytes": an_array(order=b"C\x01>"),
}


@pytest.mark.parametrize("body", LIES.values(), ids=list(LIES))
def test_arrays_that_lie_are_refused(tmp_path: Path, body: bytes) -> None:
    path = by_hand.write(tmp_path, by_hand.pickled(by_hand.dictionary(a=body)), "model.pkl")
    with pytest.raises(CheckpointError) as caught:
        lw.resolve(str(path))
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_an_array_made_by_hand_is_read_so_the_refusals_above_mean_something(tmp_path: Path) -> None:
    made = {"a": an_array(), "b": a_buffer("C"), "c": a_buffer("K", by_hand.sizes(1, 0))}
    path = by_hand.write(tmp_path, by_hand.pickled(by_hand.dictionary(**made)), "model.pkl")
    shapes = [entry.shape for entry in lw.resolve(str(path)).entries.values()]
    assert shapes == [(2,), (2, 1), (1, 2)]


def test_one_value_of_many_arrays_is_kept_once(tmp_path: Path) -> None:
    """A thousand names for one megabyte: the spooled file has one megabyte."""
    shared = np.zeros((512, 512), np.float32)
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({f"l{i}.weight": shared for i in range(1000)}, 4))
    checkpoint = lw.resolve(str(path))
    assert len(checkpoint.entries) == 1000
    assert [reader.size for reader in checkpoint.readers.values()] == [shared.nbytes]


def test_code_in_a_pickle_of_arrays_is_refused_and_not_run(tmp_path: Path) -> None:
    for body in (
        by_hand.name("posix", "system"),
        by_hand.name("torch.storage", "_load_from_bytes"),
    ):
        content = by_hand.pickled(
            by_hand.dictionary(model=by_hand.dictionary(a=an_array()), x=body)
        )
        path = by_hand.write(tmp_path, content, "model.pkl")
        with pytest.raises(UnsafePickleError, match="nothing was executed"):
            lw.resolve(str(path))


def test_a_pickle_without_arrays_is_said_to_hold_none(tmp_path: Path) -> None:
    path = tmp_path / "results.pkl"
    for content in ({"a": 1}, [1, 2], {"names": np.array(["a", "b"])}):
        path.write_bytes(pickle.dumps(content, 4))
        with pytest.raises(CheckpointError, match="no state dict"):
            lw.resolve(str(path))


def test_a_pickle_is_taken_from_a_folder_where_nothing_else_may_be_the_weights(
    tmp_path: Path,
) -> None:
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps({"model": {"a": np.ones(3)}}))
    assert lw.resolve(str(tmp_path)).files == ("model_final.pkl",)
    torch.save({"b": torch.ones(3)}, tmp_path / "latest.pth")
    assert lw.resolve(str(tmp_path)).files == ("latest.pth",)


def test_a_pickle_of_arrays_is_an_anchor_and_a_donor(tmp_path: Path) -> None:
    """It is written as safetensors, or as a `.pth` with its own nesting that detectron2 loads."""
    random = np.random.default_rng(0)
    start = {f"backbone.l{i}.weight": random.standard_normal((8, 8), np.float32) for i in range(4)}
    files = []
    for name in ("anchor", "donor"):
        own = {k: v + random.standard_normal((8, 8), np.float32) / 4 for k, v in start.items()}
        files.append(tmp_path / f"{name}.pkl")
        files[-1].write_bytes(pickle.dumps({"model": own, "__author__": "zoo"}, 4))
    plain = lw.merge(*files, output=tmp_path / "plain")
    torches = lw.merge(*files, output=tmp_path / "pth", output_format="pth")
    merged = load_file(plain.folder / "model.safetensors")
    saved = torch.load(torches.folder / "model.pth", weights_only=True)
    assert list(saved) == ["model"]
    assert saved["model"].keys() == merged.keys() == start.keys()
    parents = [pickle.loads(file.read_bytes())["model"] for file in files]
    first = next(iter(start))
    mean = (parents[0][first] + parents[1][first]) / 2
    np.testing.assert_allclose(merged[first].numpy(), mean, rtol=0, atol=1e-6)
    assert all(torch.equal(saved["model"][key], merged[key]) for key in merged)
    for folder in (plain.folder, torches.folder):
        lw.verify(folder)
