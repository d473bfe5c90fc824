"""Label spaces: tables that are what they say, maps that leave nothing out in silence."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.label_maps import map_labels, match_labels
from lwmm_hub.evaluation.label_spaces import (
    canonical,
    custom_space,
    label_space,
    labels_of,
    space_of_labels,
)
from lwmm_hub.evaluation.label_tables import MAPS, SYNONYMS, TABLES

NAMES = tuple(TABLES)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_has_as_many_classes_as_its_name_says_all_different(name: str) -> None:
    space = label_space(name)
    count = int(name.rpartition("-")[2])
    assert len(space) == len(space.labels) == len(space.ids) == len(space.colors) == count
    assert len(set(map(canonical, space.labels))) == count
    assert len(set(space.ids)) == count
    assert set(space.ids).isdisjoint({*space.void, 255})
    if space.things is not None:
        assert space.things < frozenset(range(count))


@pytest.mark.parametrize("name", NAMES)
def test_a_space_is_recognised_by_its_labels_however_they_are_spelled(name: str) -> None:
    space = label_space(name)
    spelled = {str(i): label.upper().replace(" ", "_") for i, label in enumerate(space.labels)}
    found = space_of_labels(spelled)
    assert found is not None
    assert found.labels == space.labels  # gta-19 has the names of cityscapes-19
    assert space_of_labels(space.labels[1:] + space.labels[:1]) is None


def test_cityscapes_is_what_its_own_scripts_say() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        labels = importlib.import_module("cityscapesscripts.helpers.labels").labels
    all_ids = [label for label in labels if label.id >= 0]
    space = label_space("cityscapes-34")
    assert space.labels == tuple(label.name for label in all_ids)
    assert space.colors.tolist() == [list(label.color) for label in all_ids]
    assert space.things == {label.id for label in all_ids if label.hasInstances}
    scored = sorted((x for x in all_ids if x.trainId != 255), key=lambda x: x.trainId)
    for name in ("cityscapes-19", "gta-19"):
        space = label_space(name)
        assert space.labels == tuple(label.name for label in scored)
        assert space.colors.tolist() == [list(label.color) for label in scored]
        assert space.things == {label.trainId for label in scored if label.hasInstances}
    assert label_space("gta-19").ids == tuple(label.id for label in scored)
    table = map_labels(label_space("cityscapes-34"), label_space("cityscapes-19")).table
    assert [int(table[label.id]) for label in all_ids] == [label.trainId for label in all_ids]


def test_cocos_ids_leave_gaps() -> None:
    """Its things have 80 of the ids 1 to 90, its stuff has 53 above."""
    space = label_space("coco-133")
    assert space.things == set(range(80))
    assert max(space.ids[:80]) == 90
    assert min(space.ids[80:]) == 92
    assert max(space.ids) == 200
    assert sorted(space.ids) == list(space.ids)


def test_ids_become_indices_and_void_becomes_255() -> None:
    space = label_space("gta-19")
    ids = np.array([[7, 33, 0], [34, 255, 26]], np.uint8)
    assert space.indices(ids).tolist() == [[0, 18, 255], [255, 255, 13]]
    assert space.indices(ids.astype(np.int64)).dtype == np.uint8
    assert label_space("synthia-16").indices(np.array([3, 21, 16, 22])).tolist() == [0, 3, 255, 255]
    assert label_space("synthia-13").indices(np.array([3, 21, 12])).tolist() == [0, 255, 11]
    assert label_space("coco-133").indices(np.array([200, 0, 1])).tolist() == [132, 255, 0]
    assert label_space("mapillary-65").indices(np.array([64, 65])).tolist() == [64, 255]
    assert space.indices(np.zeros((0, 3), int)).shape == (0, 3)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([0, 19, 40, 20, 21, 22]), r"frame_7 holds the ids 19, 20, 21, 22, \.\.\."),
        (np.array([0, 19]), r"has 0 to 18; ignored: 255"),
        (np.array([-1]), "ids -1, which cityscapes-19 does not have"),
        (np.array([70000]), "ids 70000"),
        (np.array([0.5]), "holds float64 values"),
    ],
)
def test_ids_outside_the_space_are_an_error(ids: Any, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        label_space("cityscapes-19").indices(ids, "frame_7")


def test_a_mask_of_bools_is_one_of_two_classes() -> None:
    space = custom_space(["background", "road"])
    mask = np.array([[True, False], [False, True]])
    found = space.indices(mask)
    assert (found.dtype, found.tolist()) == (np.uint8, [[1, 0], [0, 1]])
    assert map_labels(space, space)(mask).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(EvaluationError, match="labels 0 to 1 where custom-1 has 0 to 0"):
        map_labels(custom_space(["road"]), space)(mask)


def test_background_zero_is_counted_down_where_the_table_says_so() -> None:
    raw = np.array([[0, 1, 150, 255]], np.uint8)
    assert label_space("ade20k-150").indices(raw).tolist() == [[255, 0, 149, 255]]


def test_counting_down_is_what_image_processors_do() -> None:
    from transformers import SegformerImageProcessor
    from transformers.image_processing_utils import BaseImageProcessor

    raw = np.array([*range(151), 255], np.uint8).reshape(8, 19)
    processor: BaseImageProcessor = SegformerImageProcessor(
        do_resize=False, do_rescale=False, do_normalize=False, do_reduce_labels=True
    )
    image = np.zeros((8, 19, 3), np.uint8)
    theirs = processor(image, segmentation_maps=raw, return_tensors="np")["labels"][0]
    assert (label_space("ade20k-150").indices(raw) == theirs).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_space_maps_to_itself_unchanged(name: str) -> None:
    same = map_labels(label_space(name), label_space(name))
    indices = np.array([*range(len(label_space(name))), 255], np.uint8)
    assert (same(indices) == indices).all()
    assert same.left_out == same.never == ()


def test_maps_say_what_they_leave_out() -> None:
    synthia = map_labels(label_space("synthia-16"), label_space("cityscapes-19"))
    assert synthia.left_out == ()
    assert synthia.never == ("terrain", "truck", "train")
    assert synthia.of_labels.tolist() != list(range(16))
    city = map_labels(label_space("cityscapes-19"), label_space("synthia-13"))
    assert city.left_out == ("wall", "fence", "pole", "terrain", "truck", "train")
    assert city(np.array([3, 18, 255], np.uint8)).tolist() == [255, 12, 255]


def test_the_map_to_camvid_is_the_one_that_its_read_me_states(shared: Any) -> None:
    """Train ids 0 to 18 of Cityscapes -> CamVid, as ../shared/data/README.md lists them."""
    wanted = [3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10]
    found = map_labels(label_space("cityscapes-19"), label_space("camvid-11"))
    assert found.table[:19].tolist() == wanted
    text = (shared / "data" / "README.md").read_text().partition("one byte a pixel): ")[2]
    numbers = {entry.split()[1]: int(entry.split()[0]) for entry in text.split(", ")[:11]}
    assert [numbers[x] for x in ("Sky", "Road", "SignSymbol", "Bicyclist")] == [0, 3, 6, 10]
    lowered = tuple(name.lower() for name, _ in sorted(numbers.items(), key=lambda x: x[1]))
    assert label_space("camvid-11").labels == lowered


@pytest.mark.parametrize("name", ["mapillary-65", "mapillary-124"])
def test_mapillary_reaches_all_of_cityscapes(name: str) -> None:
    found = map_labels(label_space(name), label_space("cityscapes-19"))
    assert found.never == ()
    target = {
        label: found.target.labels[index] if index < 19 else None
        for label, index in zip(found.source.labels, found.table, strict=False)
    }
    assert target["Lane Marking - Crosswalk"] == "road"
    assert target["Curb"] == "sidewalk"
    assert target["Traffic Sign (Back)"] == "traffic sign"
    assert target["Motorcyclist"] == "rider"
    assert target["On Rails"] == "train"
    assert target["Ego Vehicle"] is None
    assert target["Building"] == "building"


@pytest.mark.parametrize("pair", MAPS, ids=str)
def test_every_label_of_our_maps_exists(pair: tuple[str, str]) -> None:
    for source, target in MAPS[pair].items():
        assert source in label_space(pair[0]).labels
        assert target in label_space(pair[1]).labels


def test_synonyms_are_spelled_as_they_are_compared_and_unambiguous() -> None:
    words = [word for group in SYNONYMS for word in group]
    assert len(words) == len(set(words))
    for group in SYNONYMS:
        assert {canonical(word) for word in group} == {group[0]}


def test_the_same_classes_in_another_order_are_put_in_order() -> None:
    target = label_space("cityscapes-19")
    found = match_labels(target.labels[::-1], target)
    assert found(np.arange(19, dtype=np.uint8)).tolist() == list(range(18, -1, -1))


def test_labels_that_disagree_are_an_error_with_both_lists_and_a_way_out() -> None:
    ade, city = label_space("ade20k-150"), label_space("cityscapes-19")
    with pytest.raises(EvaluationError) as caught:
        match_labels(ade.labels, city)
    message = str(caught.value)
    assert "150 labels (wall, building, sky, floor, ...)" in message
    assert "19 labels (road, sidewalk, building, wall, ...)" in message
    assert "--map-labels" in message
    assert "\n" not in message
    assert match_labels(ade.labels, city, allow_partial=True).never[0] == "traffic sign"
    with pytest.raises(EvaluationError, match="place-holders: say with --model-labels"):
        match_labels([f"LABEL_{i}" for i in range(19)], city)
    with pytest.raises(EvaluationError, match="share no label"):
        map_labels(custom_space(["cat", "dog"]), city)


def test_a_map_of_ones_own_goes_before_names() -> None:
    model, city = custom_space(["street", "sky", "wall"]), label_space("cityscapes-19")
    names = {"Street": "road", "wall": "building"}
    found = match_labels(model.labels, city, names=names, allow_partial=True)
    assert found.table[:3].tolist() == [0, 10, 2]
    german = dict(zip("ABCDEFGHIJKLMNOPQRS", city.labels, strict=True))
    told = match_labels(tuple(german), city, names=german)
    assert told.of_labels.tolist() == list(range(19))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            ("lane", "road"),
            r"'lane', on the left of it, .* model's 2 labels \(street, sky\)\. Corr",
        ),
        (
            ("street", "lane"),
            r"'lane', on the right of it, .* data set's 19 labels \(road, .*bicyc",
        ),
        (
            ("wall", "wall"),
            r"'wall', on the left of it, .* model's 2 .*It is one of the data set's",
        ),
        (("street", "street"), r"'street', on the right .*It is one of the model's: write"),
        (("road", "street"), r"'road', on the left .*Swap the sides: the model's label stands on"),
    ],
)
def test_a_label_of_a_map_that_nobody_has_is_told_with_the_side_that_was_looked_up(
    line: tuple[str, str], said: str
) -> None:
    with pytest.raises(EvaluationError, match=rf"^the label map says '{line[0]}' = .*{said}"):
        match_labels(["street", "sky"], label_space("cityscapes-19"), names=dict([line]))


def test_a_map_that_leaves_classes_out_says_so() -> None:
    city = label_space("cityscapes-19")
    model = ("street", *city.labels[1:], "dirt")
    with pytest.raises(
        EvaluationError, match=r"model's 1 label \(dirt\)\. Add lines .* --map-labels"
    ):
        match_labels(model, city, names={"street": "road"})
    with pytest.raises(EvaluationError, match=r"nothing for the data set's 1 label \(truck\)"):
        match_labels(city.labels, city, names={"truck": "bus"})
    found = match_labels(model, city, names={"street": "road"}, allow_partial=True)
    assert found.left_out == ("dirt",)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_indices_that_a_space_does_not_have_are_not_mapped_in_silence(dtype: type) -> None:
    found = map_labels(label_space("synthia-16"), label_space("cityscapes-19"))
    with pytest.raises(EvaluationError, match="labels 3 to 16 where synthia-16 has 0 to 15"):
        found(np.array([3, 16], dtype))


@pytest.mark.parametrize(
    "wrong", [{0: "a", 2: "b"}, {"x": "a"}, {}, {1: "a"}], ids=["gap", "text", "empty", "from 1"]
)
def test_id2label_must_count_from_zero(wrong: dict[Any, str]) -> None:
    with pytest.raises(EvaluationError, match="id2label has the keys"):
        labels_of(wrong)
    assert labels_of({"1": "b", "0": "a"}) == ("a", "b")
    with pytest.raises(EvaluationError, match="are texts"):
        labels_of([1, 2])  # type: ignore[list-item]


def test_custom_spaces_need_different_labels() -> None:
    with pytest.raises(EvaluationError, match="mean the same: Pavement, sidewalk"):
        custom_space(["sidewalk", "road", "Pavement"])
    with pytest.raises(EvaluationError, match="0 labels"):
        custom_space([])
    assert len({tuple(color) for color in custom_space(list("abcdefgh")).colors.tolist()}) == 8


def test_unknown_spaces_are_named_with_the_known_ones() -> None:
    with pytest.raises(EvaluationError, match=r"'kitti'\. There are ade20k-150, camvid-11"):
        label_space("kitti")


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_comparing_a_spelling_twice_changes_nothing(label: str) -> None:
    assert canonical(canonical(label)) == canonical(label)
