"""Data sets as tables of `datasets`: in memory, saved to a folder, and on the Hub."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import zoo
from clients import assert_one_line, client, files_of, lines, python
from hub import TestHub
from numpy.typing import NDArray
from PIL import Image
from test_reading import save_grey_png

from lwmm_hub.errors import EvaluationError, LwmmError
from lwmm_hub.evaluation.label_spaces import label_space
from lwmm_hub.evaluation.opening import open_data
from lwmm_hub.evaluation.running import RunOptions, evaluate_subjects

SIZE = (40, 56)
NAMES = {str(i): name for i, name in enumerate(zoo.LABELS)}


def shown(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (*SIZE, 3)).astype(np.uint8)


def labels(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).choice([0, 1, 2, 255], SIZE).astype(np.uint8)


def png(array: NDArray[np.uint8]) -> dict[str, Any]:
    """A picture as tables keep it."""
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def table(columns: dict[str, list[Any]], **kinds: Any) -> datasets.Dataset:
    features = {name: kinds.get(name, datasets.Image()) for name in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def semantic(count: int = 3, image: str = "image", label: str = "label") -> datasets.Dataset:
    return table(
        {
            image: [png(shown(i)) for i in range(count)],
            label: [png(labels(i)) for i in range(count)],
        }
    )


@pytest.fixture
def names(tmp_path: Path) -> str:
    path = tmp_path / "names.json"
    path.write_text(json.dumps(NAMES))
    return str(path)


# ---------------------------------------------------------------------------------------- in memory


@pytest.mark.parametrize(
    ("image", "label"), [("image", "label"), ("img", "annotation"), ("pixel_values", "seg_map")]
)
def test_columns_are_recognised(image: str, label: str, names: str) -> None:
    data = open_data(semantic(3, image, label), label_space=names)
    assert (data.task, data.count, data.space.labels) == ("semantic", 3, zoo.LABELS)
    for i, sample in enumerate(data.samples(0, 1)):
        assert (sample.image == shown(i)).all()
        assert (sample.semantic == labels(i)).all()
    assert [s.name for s in data.samples(1, 2)] == ["data in memory, row 1"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
def test_a_label_map_of_few_bits_in_a_table_holds_its_ids(
    names: str, tmp_path: Path, bits: int, embedded: bool, streaming: bool
) -> None:
    values = [[0, 1, 2, 1], [2, 0, 0, 1]]
    path = save_grey_png(tmp_path / "map.png", values, bits)
    stored = {"bytes": path.read_bytes(), "path": None} if embedded else {"path": str(path)}
    rows = table({"image": [png(shown(0))], "label": [stored]})
    data = open_data(rows.to_iterable_dataset() if streaming else rows, label_space=names)
    (sample,) = data.samples(0, 1)
    assert sample.semantic is not None
    assert sample.semantic.tolist() == values


def test_columns_are_named_where_several_could_be_meant(names: str) -> None:
    columns = [png(labels(i + 5)) for i in range(3)]
    odd = table(
        {"image": [png(shown(0))] * 3, "day": columns, "night": columns[::-1]},
    )
    with pytest.raises(EvaluationError, match=r"several columns.*day, night.*--label-column"):
        open_data(odd, label_space=names)
    data = open_data(odd, label_space=names, label_column="night")
    assert (next(data.samples(0, 1)).semantic == labels(7)).all()
    turned = open_data(odd, label_space=names, label_column="image", image_column="day")
    with pytest.raises(EvaluationError, match="mode RGB, not one id per pixel"):
        next(turned.samples(0, 1))
    with pytest.raises(EvaluationError, match=r"no column 'dusk'. It has: image, day, night"):
        open_data(odd, label_space=names, label_column="dusk")


def test_a_table_without_labels_or_names_says_so(names: str) -> None:
    bare = table({"image": [png(shown(0))], "year": [1999]}, year=datasets.Value("int64"))
    with pytest.raises(EvaluationError, match=r"no labels: its columns are image, year"):
        open_data(bare, label_space=names)
    with pytest.raises(EvaluationError, match=r"no images: its columns are year"):
        open_data(bare.remove_columns("image"))
    with pytest.raises(EvaluationError, match=r"what its labels mean.*--labels"):
        open_data(semantic())


def test_an_empty_split_says_so(names: str) -> None:
    data = open_data(semantic().select([]), label_space=names)
    assert data.count == 0
    with pytest.raises(EvaluationError, match=r"data in memory holds no image.*another split"):
        RunOptions().check(data)
    with pytest.raises(EvaluationError, match=r"no image for this run"):
        evaluate_subjects([], data)


def test_class_labels_make_it_classification() -> None:
    names = ["walnut", "almond"]
    rows = {"image": [png(shown(i)) for i in range(3)], "label": [1, 0, -1]}
    data = open_data(table(rows, label=datasets.ClassLabel(names=names)))
    assert (data.task, data.space.labels) == ("classification", ("walnut", "almond"))
    samples = data.samples(0, 1)
    assert [next(samples).label, next(samples).label] == [1, 0]
    with pytest.raises(EvaluationError, match=r"row 2 has the label -1.*split with labels"):
        next(samples)


def test_whole_numbers_that_are_called_labels_make_it_classification(tmp_path: Path) -> None:
    rows = {"image": [png(shown(0))] * 2, "label": [1, 0]}
    (tmp_path / "names.json").write_text('["cat", "dog"]')
    data = open_data(
        table(rows, label=datasets.Value("int64")), label_space=str(tmp_path / "names.json")
    )
    assert (data.task, data.space.labels) == ("classification", ("cat", "dog"))
    assert [sample.label for sample in data.samples(0, 1)] == [1, 0]


def test_panoptic_columns_have_segments(tmp_path: Path) -> None:
    ids = np.zeros(SIZE, np.int32)
    ids[:9], ids[9:12] = 515, 4
    channels = np.stack([ids % 256, ids // 256, ids * 0], -1).astype(np.uint8)
    segments = [
        {"id": 515, "category_id": 1, "iscrowd": 0},
        {"id": 4, "category_id": 2, "iscrowd": 1},
    ]
    kind = {name: datasets.Value("int64") for name in ("id", "category_id", "iscrowd")}
    rows = {"image": [png(shown(0))], "label": [png(channels)], "segments_info": [segments]}
    path = tmp_path / "categories.json"
    path.write_text(
        json.dumps(
            [{"id": i, "name": n, "isthing": int(n == "car")} for i, n in enumerate(NAMES.values())]
        )
    )
    for feature in (datasets.List(kind), [kind]):
        data = open_data(table(rows, segments_info=feature), label_space=str(path))
        assert (data.task, data.space.things) == ("panoptic", {1})
        (sample,) = data.samples(0, 1)
        assert sample.panoptic is not None
        found = [(s.id, s.category, s.is_crowd) for s in sample.panoptic.segments]
        assert found == [(515, 1, False), (4, 2, True)]
        assert (sample.panoptic.ids == ids).all()
        assert sample.semantic is not None
        assert [sample.semantic[row, 0] for row in (0, 10, 20)] == [1, 2, 255]


@pytest.mark.parametrize("as_lists", [False, True])
def test_objects_are_boxes(as_lists: bool) -> None:
    kinds: dict[str, Any] = {
        "bbox": datasets.List(datasets.Value("float32")),
        "category": datasets.ClassLabel(names=list(label_space("ade20k-150").labels)),
        "area": datasets.Value("float32"),
    }
    row: Any = [{"bbox": [1, 2, 3, 4], "category": 149, "area": 6.0}]
    feature: Any = datasets.List(kinds)
    if as_lists:  # as COCO-like sets of the Hub have it
        row = {name: [value] for name, value in row[0].items()}
        feature = {name: datasets.List(kind) for name, kind in kinds.items()}
    data = open_data(table({"image": [png(shown(0))], "objects": [row]}, objects=feature))
    (sample,) = data.samples(0, 1)
    assert sample.boxes is not None
    assert sample.boxes.corners.tolist() == [[1, 2, 4, 6]]
    assert sample.boxes.categories.tolist() == [149]  # counted from 0, unlike ADE20K's own files
    assert sample.boxes.areas is not None
    assert sample.boxes.areas.tolist() == [6]


def test_a_column_of_texts_holds_no_objects(names: str) -> None:
    rows = {"image": [png(shown(0))], "objects": ["car"]}
    data = table(rows, objects=datasets.Value("string"))
    with pytest.raises(EvaluationError, match=r"the column objects of .* has no bbox and category"):
        open_data(data, label_space=names)


def test_a_broken_picture_in_a_table_is_named(names: str) -> None:
    rows = {"image": [png(shown(i)) for i in range(3)], "label": [png(labels(i)) for i in range(3)]}
    rows["image"][1] = {"bytes": rows["image"][1]["bytes"][:200], "path": None}
    rows["label"][2] = {"bytes": b"nothing", "path": None}
    samples = open_data(table(rows), label_space=names).samples
    next(samples(0, 1))
    for row in (1, 2):
        with pytest.raises(EvaluationError, match=rf"data in memory, row {row} cannot be decoded"):
            next(samples(row, 1))


# -------------------------------------------------------------------------------------- in a folder


def test_saved_tables_and_parquet_files_are_read(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": semantic(2), "validation": semantic(3)})
    both.save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "id2label.json").write_text(json.dumps(NAMES))
    data = open_data(tmp_path / "saved")
    assert (data.reference, data.split, data.count) == ("saved", "validation", 3)
    assert (list(data.samples(0, 1))[2].semantic == labels(2)).all()
    assert open_data(tmp_path / "saved", split="train").count == 2
    assert data.revision == open_data(tmp_path / "saved").revision is not None
    (tmp_path / "clone" / "data").mkdir(parents=True)
    semantic(2).to_parquet(tmp_path / "clone" / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "clone" / "id2label.json").write_text(json.dumps(NAMES))
    data = open_data(tmp_path / "clone")
    assert (data.split, data.count, data.space.labels) == ("test", 2, zoo.LABELS)
    with pytest.raises(LwmmError, match=r"clone has no split 'val'. It has: test"):
        open_data(tmp_path / "clone", split="val")
    datasets.DatasetDict({"train": semantic(2), "none": semantic(0)}).save_to_disk(tmp_path / "two")
    shutil.copy(tmp_path / "saved" / "id2label.json", tmp_path / "two")
    assert open_data(tmp_path / "two", split="train").count == 2
    with pytest.raises(EvaluationError, match=r"two none holds no image. Name another split"):
        open_data(tmp_path / "two", split="none")
    semantic(1).save_to_disk(tmp_path / "one")
    with pytest.raises(EvaluationError, match=r"one has no splits"):
        open_data(tmp_path / "one", split="val")
    assert (
        open_data(both, split="train", label_space=str(tmp_path / "saved" / "id2label.json")).count
        == 2
    )


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("dataset_dict.json", b"{", r"dataset_dict.json is not as 'datasets' writes it \(JSONDec"),
        ("dataset_dict.json", b"[]", r"\(it is no table\)\. Save the data set again"),
        ("dataset_dict.json", b"{}", r"dataset_dict.json of saved names no splits\. Save"),
        ("dataset_dict.json", b'{"splits": 3}', r"names no splits"),
        ("dataset_dict.json", b'{"splits": [["test"]]}', r"names no splits"),
        ("dataset_dict.json", b" " * (65 << 20), r"\(it has over 64 MiB, too many\)"),
        ("dataset_dict.json", b"[" * 100_000, r"\(RecursionError\)"),
        ("test/state.json", b"\xff", r"test/state.json is not as .* \(UnicodeDecodeError\)"),
        ("test/state.json", b"3", r"\(it is no table\)"),
        ("test/state.json", None, r"\(No such file or directory\)"),
    ],
)
def test_a_saved_table_that_is_damaged_is_named(
    tmp_path: Path, file: str, content: bytes | None, said: str
) -> None:
    datasets.DatasetDict({"test": semantic(1)}).save_to_disk(tmp_path / "saved")
    path = tmp_path / "saved" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError, match=said) as caught:
        open_data(tmp_path / "saved")
    assert str(tmp_path) not in str(caught.value)


# ------------------------------------------------------------------------------------- on the Hub


def streets(tmp_path: Path) -> dict[str, bytes | Path]:
    files: dict[str, bytes | Path] = {"id2label.json": json.dumps(NAMES).encode()}
    for split, count in (("train", 2), ("validation", 3)):
        path = tmp_path / f"{split}.parquet"
        semantic(count).to_parquet(path, batch_size=2)
        files[f"data/{split}-00000-of-00001.parquet"] = path
    return files


_READ = """
    import json, sys
    from lwmm_hub.evaluation.opening import open_data
    from lwmm_hub.evaluation.running import RunOptions, evaluate_subjects
    found = []
    for options in json.loads(sys.argv[1]):
        data = open_data("org/streets", **options)
        maps = [int(s.semantic.astype(int).sum()) for s in data.samples(0, 1)]
        rest = [s.name for s in data.samples(1, 2)]
        found.append([data.revision, data.split, data.count, list(data.space.labels), maps, rest])
    print(json.dumps(found))
"""


def test_a_data_set_of_the_hub_is_pinned_and_may_be_streamed(hub: TestHub, tmp_path: Path) -> None:
    first = hub.create_repo("org/streets", streets(tmp_path), repo_type="dataset")
    path = tmp_path / "more.parquet"
    semantic(4).to_parquet(path)
    second = hub.add_commit(
        "org/streets", {"data/validation-00000-of-00001.parquet": path}, repo_type="dataset"
    )
    asked: list[dict[str, Any]] = [
        {},
        {"streaming": True},
        {"revision": first},
        {"split": "train", "streaming": True},
    ]
    found = python(_READ, json.dumps(asked), hub=hub, home=tmp_path / "h", cwd=tmp_path / "w")
    sums = [int(labels(i).astype(int).sum()) for i in range(4)]
    odd = ["org/streets, row 1", "org/streets, row 3"]
    assert found == [
        [second, "validation", 4, list(zoo.LABELS), sums, odd],
        [second, "validation", None, list(zoo.LABELS), sums, odd],
        [first, "validation", 3, list(zoo.LABELS), sums[:3], odd[:1]],
        [second, "train", None, list(zoo.LABELS), sums[:2], odd[:1]],
    ]
    assert all(first in line or second in line for line in lines(hub, "GET /datasets/"))


_OFFLINE = """
    import json, os, sys
    import datasets
    datasets.config.MAX_SHARD_SIZE = 6000  # several files of a split
    from lwmm_hub.errors import LwmmError
    from lwmm_hub.evaluation.opening import open_data
    found = []
    for name, options in json.loads(sys.argv[1]):
        try:
            data = open_data(name, **options)
        except LwmmError as error:
            found.append(str(error))
            continue
        maps = [int(s.semantic.astype(int).sum()) for s in data.samples(0, 1)]
        found.append([data.revision, data.split, data.count, list(data.space.labels), maps])
    print(json.dumps(found))
"""


def test_a_data_set_in_the_cache_is_read_offline_at_the_same_commit(
    hub: TestHub, tmp_path: Path, names: str
) -> None:
    """The client is the ordinary one; whatever was stored last, the commit decides."""

    def opened(*asked: tuple[str, dict[str, Any]], **more: str) -> Any:
        return python(
            _OFFLINE, json.dumps(asked), hub=hub, home=tmp_path / "h", cwd=tmp_path / "w", **more
        )

    first = hub.create_repo("org/streets", streets(tmp_path), repo_type="dataset")
    hub.create_repo("org/bare", streets(tmp_path), repo_type="dataset")
    online = opened(("org/streets", {}), ("org/bare", {"label_space": names}))
    path = tmp_path / "more.parquet"
    semantic(4).to_parquet(path)
    second = hub.add_commit(
        "org/streets", {"data/validation-00000-of-00001.parquet": path}, repo_type="dataset"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    assert opened(("org/streets", {}), **offline) == online[:1]  # as it was, not as it is
    assert online[0][:3] == [first, "validation", 3]
    stored = tmp_path / "h" / "datasets" / "org___streets" / "default" / "0.0.0" / first
    assert len(list(stored.glob("streets-validation-0000*.arrow"))) > 1
    next(stored.glob("streets-train*.arrow")).unlink()
    newer = opened(("org/streets", {}))
    assert newer[0][:3] == [second, "validation", 4]
    before = len(hub.requests)
    kept = opened(
        ("org/streets", {}),
        ("org/streets", {"streaming": True}),
        (f"org/streets@{first}", {}),
        (f"org/streets@{first}", {"split": "train"}),
        ("org/streets@old", {}),
        ("org/streets", {"split": "test"}),
        ("org/*", {}),
        ("org/street", {}),
        ("org/bare", {}),
        ("org/bare", {"label_space": names}),
        HF_HUB_OFFLINE="1",
    )
    assert len(hub.requests) == before
    assert kept[:3] == [newer[0], newer[0], online[0]]
    assert "holds a part of org/streets@" in kept[3]
    assert "org/streets@old is not in the cache, and HF_HUB_OFFLINE is set" in kept[4]
    assert "no split 'test'. It has: train, validation" in kept[5]
    assert "not a valid name" in kept[6]
    assert "org/street is not in the cache" in kept[7]
    assert "does not say what the labels of org/bare are" in kept[8]
    assert kept[9] == online[1]
    about = tmp_path / "h" / "datasets" / "org___streets" / "default" / "0.0.0" / second
    for content in ("{", "[]", "{}", '{"splits": {"validation": 3}}'):
        (about / "dataset_info.json").write_text(content)
        (said,) = opened(("org/streets", {}), HF_HUB_OFFLINE="1")
        assert "the cache holds a damaged copy of org/streets, and HF_HUB_OFFLINE" in said
    about.rename(tmp_path / "aside")  # as the message says
    assert opened(("org/streets", {})) == newer


@pytest.fixture
def model(hub: TestHub, tmp_path: Path) -> Iterator[str]:
    hub.create_repo("org/model", files_of(zoo.write(tmp_path / "model", zoo.segformer)))
    return "org/model"


def test_what_the_hub_does_not_give_is_one_line(hub: TestHub, tmp_path: Path, model: str) -> None:
    hub.create_repo("org/streets", streets(tmp_path), repo_type="dataset")
    hub.create_repo("org/notes", {"notes.txt": b"nothing"}, repo_type="dataset")
    hub.create_repo("org/empty", {"README.md": b"# Nothing\n"}, repo_type="dataset")
    hub.create_repo("org/secret", streets(tmp_path), repo_type="dataset", gated=True)
    script = b"raise SystemExit('run')\n"
    hub.create_repo("org/script", {"script.py": script, "README.md": b"#\n"}, repo_type="dataset")
    broken = {"data/test-00000-of-00001.parquet": b"PAR1 nothing PAR1"}
    hub.create_repo("org/broken", broken, repo_type="dataset")
    cases = {
        ("org/street",): ("no data set 'org/street'", "Did you mean org/streets"),
        ("org/streets", "--revision", "old"): ("no revision 'old'. It has main",),
        ("org/streets@older",): ("no revision 'older'. It has main",),
        ("org/streets", "--split", "test"): ("no split 'test'. It has: train, validation",),
        ("org/streets", "--label-column", "truth"): ("no column 'truth'. It has: image, label",),
        ("org/streets", "--open-partial"): ("office-31:FOLDER",),
        ("org/notes",): ("org/notes has no images: its columns are text",),
        ("org/empty",): ("org/empty cannot be read as a data set",),
        ("org/secret",): ("org/secret is gated", "/datasets/org/secret"),
        ("org/script",): ("org/script cannot be read as a data set",),
        ("org/broken",): ("org/broken cannot be read as a data set",),
        ("a b",): ("not a valid name",),
    }
    with client(hub, tmp_path / "home", tmp_path / "work") as lwmm:
        for (name, *options), said in cases.items():
            assert_one_line(lwmm("evaluate", model, "--dataset", name, *options), *said)
        fault = hub.fail(r"^GET /api/datasets/org/streets", status=403, times=None)
        assert_one_line(lwmm("evaluate", model, "--dataset", "org/streets"), "may not read")
        assert fault.hits
        hub.clear_faults()
        done = lwmm("evaluate", model, "--dataset", "org/streets", "--json", "--limit", "2")
        assert done.code == 0, done.err
        [scores] = done.data["models"]
        assert scores["reference"] == model
        assert len(scores["commit"]) == 40
        assert done.data["dataset"]["images"] == 2


def test_a_hub_that_cannot_be_reached_is_one_line(hub: TestHub, tmp_path: Path) -> None:
    for more, said in (
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach the Hub at http://127.0.0.1:9"),
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
    ):
        with client(hub, tmp_path / "home", tmp_path / "work", **more) as lwmm:
            assert_one_line(lwmm("evaluate", "org/x", "--dataset", "nothere/x"), said)
