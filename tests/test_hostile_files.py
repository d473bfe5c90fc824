"""Files made to crash, to stall or to fill the memory: one line of ours, soon, in little memory.

The corpus holds what attacks on the readers have found, built by code; the laws beside it go on
searching. Everything goes through the command line as a user's files do.
"""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pickle_builder as by_hand
import pytest
from enumerators import (
    TINY,
    ancestor,
    fill,
    spell_nvlabs,
    write_pth,
    write_transformers_folder,
)
from enumerators.systems import ResNetSize, torchvision_resnet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stories import Command, quiet_environment

import lwmm_hub as lw
from lwmm_hub.checkpoint import spool
from lwmm_hub.checkpoint.entries import LocalFile, TensorEntry
from lwmm_hub.checkpoint.spool import contiguous
from lwmm_hub.checkpoint.zip_archive import read_directory
from lwmm_hub.errors import CheckpointError, LwmmError

TENSOR = by_hand.tensor()
SEARCH = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# the corpus --------------------------------------------------------------------------------------


def safetensors(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def empty(*names: str) -> dict[str, Any]:
    return {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}


def zipped(body: bytes) -> bytes:
    return by_hand.archive(by_hand.pickled(body))


def legacy(body: bytes, keys: bytes = b"]") -> bytes:
    start = by_hand.MAGIC + by_hand.pickled(b"M\xe9\x03") + by_hand.pickled(b"}")
    return start + by_hand.pickled(body) + by_hand.pickled(keys)


def colliding(count: int) -> bytes:
    """A dictionary whose keys all have the hash 0."""
    keys = (((2**61 - 1) * i).to_bytes(10, "little", signed=True) for i in range(1, count))
    return b"}(" + b"".join(b"\x8a\x0a" + key + b"N" for key in keys) + b"u"


def one_among_many(count: int) -> bytes:
    """A tensor under a long name, beside values that are none and would each be told with it."""
    values = b"".join(by_hand.text(str(i)) + b"N" for i in range(count))
    inner = b"}(" + by_hand.text("w") + TENSOR + values + b"u"
    return b"}(" + by_hand.text("n" * 3_000_000) + inner + b"u"


# file -> its content; what our line says, or None where the file can be read
CORPUS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "lists.safetensors": (
        lambda: safetensors(b'{"a":[' + b"[]," * 4_000_000 + b"[]]}"),
        "times '['",
    ),
    "tables.safetensors": (
        lambda: safetensors(b'{"a":[' + b'{"":0},' * 2_000_000 + b"0]}"),
        "times '{'",
    ),
    "numbers.safetensors": (
        lambda: safetensors(b'{"a":[' + b"0," * 9_000_000 + b"0]}"),
        "times ','",
    ),
    "deep.safetensors": (lambda: safetensors(b"[" * 700_000), "is not JSON"),
    "long name.safetensors": (
        lambda: safetensors(empty("module." * 100_000 + "x")),
        "700001 characters",
    ),
    "digits.safetensors": (
        lambda: safetensors(empty("a." + "9" * 400 + ".w", "b.w")),
        "no common backbone",
    ),
    "wrappers.safetensors": (
        lambda: safetensors(empty(*(f"p{i}.patch_embed1.norm.weight" for i in range(20_000)))),
        "no common backbone",
    ),
    "prefixes.pth": (
        lambda: zipped(by_hand.dictionary(**{"module." * 300_000 + "x": TENSOR})),
        "characters",
    ),
    "notes.pth": (lambda: zipped(one_among_many(200_000)), "no common backbone"),
    "sets.pth": (
        lambda: zipped(by_hand.dictionary(a=TENSOR) + b"(" + b"\x8f" * 1_500_000 + b"1"),
        "no common backbone",
    ),
    "expanded.pth": (
        lambda: zipped(by_hand.dictionary(a=by_hand.tensor(shape=(2**25, 4), strides=(0, 1)))),
        None,
    ),
    "collisions.pth": (lambda: legacy(colliding(60_000)), "no state dict"),
    "colliding storages.pth": (
        lambda: legacy(by_hand.dictionary(a=TENSOR), colliding(60_000) + b"0]"),
        "other storages",
    ),
    "numbers for storages.pth": (
        lambda: legacy(by_hand.dictionary(a=TENSOR), b"](" + b"K\x01" * 9 + b"e"),
        "no list of names",
    ),
    "claims.pth": (
        lambda: legacy(
            by_hand.dictionary(a=by_hand.tensor(source=by_hand.storage(count=2**40))),
            b"]" + by_hand.text("0") + b"a",
        ),
        "damaged or truncated",
    ),
    "operations.pth": (
        lambda: legacy(b"]" * 2_100_000 + b"a" * 2_099_999),
        "more than 4000000 operations",
    ),
}
SECONDS, MEGABYTES = 20, 400  # CPU and resident memory of one file; a file of 5 MB took 50 s, 1 GB

JUDGE = """
import resource, sys, time
seconds = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
from lwmm_hub.cli.commands import run
code = run(["plan", sys.argv[2], sys.argv[2], "-q"])
# not getrusage: its peak begins with that of the process that started this one
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(code, int(peak.split()[1]) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_file_costs_little_time_and_memory(name: str, tmp_path: Path) -> None:
    content, says = CORPUS[name]
    (tmp_path / name).write_bytes(content())
    # sh's own memory is small: a child's peak begins at its parent's
    done = subprocess.run(
        [
            "sh",
            "-c",
            'exec "$@" < /dev/null',
            "sh",
            sys.executable,
            "-c",
            JUDGE,
            str(SECONDS),
            name,
        ],
        cwd=tmp_path,
        env=quiet_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"ended by signal: {done.stderr}"
    code, memory = map(int, done.stdout.split()[-2:])
    if says is None:
        assert (code, done.stderr) == (0, "")
    else:
        assert code in {1, 4}
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert len(done.stderr) < 700
    assert memory < MEGABYTES


def test_long_files_beside_the_weights_are_not_read(lwmm: Command, tmp_path: Path) -> None:
    """Sparse files of 20 GB: reading any of them whole ends the process."""
    models = [write_transformers_folder(tmp_path / name, ancestor(TINY, 1), TINY) for name in "ab"]
    for name, says in (
        ("README.md", None),
        ("LICENSE", None),
        ("preprocessor_config.json", "over 256 MiB"),
        ("tokenizer.json", "over 256 MiB"),
        ("config.json", "that is no configuration"),
        ("model.safetensors.index.json", "that is no configuration"),
    ):
        path = models[0] / name
        before = path.read_bytes() if path.is_file() else None
        with path.open("wb") as file:
            file.truncate(20 << 30)
        for command in (("merge", *models, "-o"), ("convert", models[0])):
            out = tmp_path / f"{command[0]}-{name}"
            done = lwmm(*command, out)
            assert done.code == (0 if says is None else 1), done.err
            assert (says or "") in done.err
            assert out.exists() is (says is None)
        path.unlink()
        if before is not None:
            path.write_bytes(before)


# strides and views -------------------------------------------------------------------------------


@settings(SEARCH, max_examples=300)
@given(st.data())
def test_any_view_of_a_storage_is_gathered_as_numpy_sees_it(
    tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever strides (0 too), offset, dtype, and however many pieces it is made in."""
    size = data.draw(st.integers(1, 200), "elements")
    dtype = data.draw(st.sampled_from(["U8", "F16", "F32", "F64"]))
    width = {"U8": 1, "F16": 2, "F32": 4, "F64": 8}[dtype]
    stored = np.random.default_rng(size).bytes(size * width)
    (tmp_path / "data").write_bytes(stored)
    shape, strides, last = [], [], 0
    for _ in range(data.draw(st.integers(0, 4), "dimensions")):
        stride = data.draw(st.integers(0, 7))
        room = (size - 1 - last) // stride if stride else 4
        shape.append(data.draw(st.integers(1, min(room, 9) + 1)))
        strides.append(stride)
        last += (shape[-1] - 1) * stride
    offset = data.draw(st.integers(0, size - 1 - last), "offset")
    entry = TensorEntry("a", dtype, tuple(shape), "data", offset * width, tuple(strides))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "PIECE", data.draw(st.sampled_from([1, 8, 40, 1 << 20])))
        patch.setattr(spool, "KEPT", data.draw(st.sampled_from([0, 50, 1 << 20])))
        found, spooled = contiguous({"a": entry}, LocalFile(tmp_path / "data", "data"))
    assert spooled is not None
    values = np.frombuffer(stored, f"u{width}", offset=offset * width)
    expected = np.lib.stride_tricks.as_strided(values, shape, [s * width for s in strides])
    assert spooled.read(found["a"].offset, entry.size) == expected.tobytes()


def test_a_single_element_of_any_stride_is_read_from_a_legacy_file(tmp_path: Path) -> None:
    import torch

    tensors = {
        "l0.weight": torch.arange(16.0).reshape(4, 4).t(),
        "l0.bias": torch.arange(4.0)[::2][1:],
        "l0.scale": torch.arange(4.0)[3],
        "l0.none": torch.arange(4.0)[::2][:0],
    }
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    checkpoint = lw.resolve(str(tmp_path / "old.pth"))
    for key, value in tensors.items():
        read = np.frombuffer(checkpoint.read(checkpoint.entries[key]), "<f4").reshape(value.shape)
        np.testing.assert_array_equal(read, value.numpy())


@pytest.mark.filterwarnings("ignore")  # of torch: some kinds are new, some on their way out
def test_kinds_of_tensors_that_hold_no_plain_values_are_refused_by_name(tmp_path: Path) -> None:
    import torch

    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    for tensor, words in (
        (torch.eye(2).to_sparse(), "a sparse tensor"),
        (torch.eye(2).to_sparse_csr(), "a sparse tensor"),
        (torch.empty(2, device="meta"), "device 'meta'"),
        (quantised, "a quantized tensor"),
        (torch.ones(2, dtype=torch.complex64).conj(), "conjugated"),
        (torch._neg_view(torch.ones(2)), "negated"),
        (torch.ones(2, dtype=torch.complex128), "ComplexDoubleStorage|complex128"),
        (nested, "nested_tensor|neither a tensor nor a plain container"),
    ):
        torch.save({"w": tensor, "b": torch.ones(1)}, tmp_path / "odd.pth")
        with pytest.raises(CheckpointError, match=words):
            lw.convert(tmp_path / "odd.pth", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["odd.pth"]


def test_tensors_tied_across_shards_are_each_written(tmp_path: Path) -> None:
    import torch
    from safetensors.numpy import load_file

    base = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": base, "a.tied": base}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": base, "b.turned": base.T}, tmp_path / "pytorch_model-00002-of-00002.bin")
    names = {"a": 1, "a.tied": 1, "b": 2, "b.turned": 2}
    index = {key: f"pytorch_model-{n:05}-of-00002.bin" for key, n in names.items()}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    found = load_file(lw.convert(tmp_path, tmp_path.parent / f"{tmp_path.name}.safetensors").path)
    assert found.keys() == names.keys()
    for key, value in found.items():
        expected = base.T if key == "b.turned" else base
        np.testing.assert_array_equal(value, expected.numpy())


# laws --------------------------------------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),  # noqa: E501
    max_leaves=10,
)  # fmt: skip


def judged(command: list[str | Path]) -> None:
    """Run a command in this process: any answer will do but a crash."""
    from lwmm_hub.cli.commands import run

    code = run([str(part) for part in command])
    assert code in {0, 1, 2, 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("hostile")
    return (
        write_transformers_folder(folder / "city", ancestor(TINY, 1), TINY),
        write_transformers_folder(folder / "rain", ancestor(TINY, 1), TINY),
    )


CONFIG_FIELDS = (
    *("architectures", "model_type", "id2label", "label2id", "dtype", "torch_dtype", "num_labels"),
    *("quantization_config", "num_attention_heads", "strides", "depths", "auto_map"),
    *("_name_or_path", "transformers_version", "backbone_config", "image_size"),
)


@settings(SEARCH, max_examples=25)
@given(st.dictionaries(st.sampled_from(CONFIG_FIELDS), anything, min_size=1, max_size=3), st.data())
def test_no_config_crashes_a_plan_a_merge_or_a_conversion(
    models: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    fields: dict[str, Any],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("config")
    city = folder / "city"
    city.mkdir()
    (city / "model.safetensors").symlink_to(models[0] / "model.safetensors")
    config = json.loads((models[0] / "config.json").read_text()) | fields
    (city / "config.json").write_text(json.dumps(config))
    dtype = data.draw(st.sampled_from(["auto", "float16"]))
    for command in (
        ["plan", city, models[1], "--json"],
        ["merge", city, models[1], "-o", folder / "merged", "--dtype", dtype],
        ["convert", city, folder / "own", "--dtype", dtype],
        ["convert", city, folder / "new", "--to", "transformers"],
    ):
        judged(command)
        assert "internal error" not in capsys.readouterr().err


@settings(SEARCH, max_examples=80)
@given(st.data())
def test_no_odd_shapes_or_lost_tensors_crash_a_conversion(
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    data: st.DataObject,
) -> None:
    """Of the tensors that a configuration is derived from, in each family."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("shapes")
    family = data.draw(st.sampled_from(["segformer", "resnet", "swin"]))
    tensors = {
        "segformer": lambda: spell_nvlabs(ancestor(TINY, 1), TINY),
        "resnet": lambda: fill(torchvision_resnet(ResNetSize((1, 1, 1, 1), width=8)), 1),
        "swin": lambda: {
            f"encoder.layers.0.blocks.0.attention.self.{leaf}": np.ones((49, 1), np.float32)
            for leaf in ("relative_position_bias_table", "query.weight", "key.weight")
        },
    }[family]()
    names = sorted(key for key in tensors if not key.endswith(("bias", "mean", "var")))
    for key in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4), "changed"):
        shape = data.draw(st.none() | st.lists(st.integers(0, 9), max_size=5), "shape")
        if shape is None:
            tensors.pop(key, None)
        else:
            tensors[key] = np.ones(shape, np.float32)
    if not tensors:
        return
    save_file(tensors, folder / "a.safetensors")
    (folder / "given.json").write_text(
        json.dumps({"num_attention_heads": [1, 2, 3, 4], "strides": [4, 2, 2, 2],
                    "downsample_in_first_stage": False, "downsample_in_bottleneck": False})
    )  # fmt: skip
    judged(["convert", folder / "a.safetensors", folder / "out", "--to", "transformers",
            "--config", folder / "given.json"])  # fmt: skip
    assert "internal error" not in capsys.readouterr().err


@settings(SEARCH, max_examples=100)
@given(st.dictionaries(st.text(max_size=5), anything, max_size=3) | anything, st.booleans())
def test_no_shard_index_crashes(
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    content: Any,
    mapped: bool,
) -> None:
    folder = tmp_path_factory.mktemp("index")
    (folder / "a.safetensors").write_bytes(safetensors(empty("a.w")))
    index = {"weight_map": content} if mapped else content
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    judged(["plan", folder, folder])
    assert "internal error" not in capsys.readouterr().err


keys = st.text(max_size=4) | st.integers() | st.none() | st.floats() | st.booleans()


def trees(torch: Any) -> st.SearchStrategy[Any]:
    tensors = st.builds(lambda n: torch.ones(n), st.lists(st.integers(0, 2), max_size=3))
    leaves = tensors | st.none() | st.integers() | st.text(max_size=3) | st.binary(max_size=3)
    words = st.sampled_from(["state_dict", "model", "module", "ema", "optimizer", "net", "module."])
    return st.recursive(
        leaves,
        lambda inner: st.dictionaries(words | keys, inner, max_size=4) | st.lists(inner, max_size=3) | st.tuples(inner, inner),  # noqa: E501
        max_leaves=12,
    )  # fmt: skip


@settings(SEARCH, max_examples=120)
@given(st.data(), st.booleans())
def test_no_nesting_of_dictionaries_crashes(
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    data: st.DataObject,
    old: bool,
) -> None:
    import torch

    folder = tmp_path_factory.mktemp("tree")
    tree = data.draw(trees(torch))
    torch.save(tree, folder / "a.pth", _use_new_zipfile_serialization=not old)
    judged(["convert", folder / "a.pth", folder / "a.safetensors"])
    judged(["plan", folder / "a.pth", folder / "a.pth", "--json"])
    assert "internal error" not in capsys.readouterr().err


@settings(SEARCH, max_examples=300)
@given(st.data())
def test_no_zip_directory_crashes_or_points_outside(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Fields of a sound archive set to what hurts: ends, sizes, counts, offsets, zip64."""
    content = bytearray(zipped(by_hand.dictionary(a=TENSOR, b=TENSOR)))
    hurts = st.sampled_from([0, 1, 2**16 - 1, 2**31, 2**32 - 1, len(content), len(content) - 1])
    marks = [m for m in (b"PK\1\2", b"PK\3\4", b"PK\5\6") for _ in range(2)]
    for mark in data.draw(st.lists(st.sampled_from(marks), min_size=1, max_size=3)):
        at = content.find(mark, data.draw(st.integers(0, len(content))))
        at = content.find(mark) if at < 0 else at
        field = at + data.draw(
            st.sampled_from([4, 6, 8, 10, 12, 16, 18, 20, 22, 24, 26, 28, 30, 42])
        )
        width = data.draw(st.sampled_from([2, 4]))
        value = data.draw(hurts) & (2 ** (8 * width) - 1)
        content[field : field + width] = value.to_bytes(width, "little")
    path = by_hand.write(tmp_path_factory.mktemp("zip"), bytes(content))
    with suppress(CheckpointError):
        for record in read_directory(LocalFile(path, "a.pth")).values():
            assert 0 <= record.header <= record.header + record.size <= path.stat().st_size
    with suppress(LwmmError):
        checkpoint = lw.resolve(str(path))
        for entry in checkpoint.entries.values():
            assert len(checkpoint.read(entry)) == entry.size


def test_compressed_records_and_bombs_are_refused_unread(tmp_path: Path) -> None:
    """Many megabytes of zeros in few, as pickle or as storage."""
    for name in ("run/data.pkl", "run/data/0"):
        path = tmp_path / "bomb.pth"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("run/byteorder", b"little")
            if name != "run/data.pkl":
                file.writestr("run/data.pkl", by_hand.pickled(by_hand.dictionary(a=TENSOR)))
            file.writestr(name, bytes(1 << 26), zipfile.ZIP_DEFLATED)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(CheckpointError, match="is compressed"):
            lw.resolve(str(path))
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert after - before < 30_000


def test_a_checksum_that_is_wrong_does_not_matter_and_bytes_that_are_missing_do(
    tmp_path: Path,
) -> None:
    """Archives may be written without checksums; sha256 is what the manifest has."""
    path = write_pth(tmp_path / "a.pth", spell_nvlabs(ancestor(TINY, 1), TINY))
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\1\2")
    content[at + 16 : at + 20] = b"\0\0\0\0"
    path.write_bytes(content)
    assert lw.resolve(str(path)).entries
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        lw.resolve(str(path))
