"""Pictures of every depth are read as what they hold, or refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.columns import Columns, from_table
from lwmm_hub.evaluation.label_spaces import custom_space
from lwmm_hub.evaluation.reading import ids_of, image_of, open_picture, panoptic_from
from lwmm_hub.evaluation.values import Segment


def save_grey_png(path: Path, values: Sequence[Sequence[int]], bits: int) -> Path:
    """A grey PNG of 1, 2, 4, 8 or 16 bits a pixel; PIL writes those of 1, 8 and 16 alone."""
    packed = b""
    for row in values:
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        packed += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", len(values[0]), len(values), bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(packed)), (b"IEND", b""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d))
            for n, d in chunks
        )
    )
    return path


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_label_map_of_any_depth_holds_its_ids(tmp_path: Path, bits: int) -> None:
    top = min(2**bits - 1, 300)
    values = [[0, 1, top, 1, top], [top, min(2, top), 0, 0, 1]]
    path = save_grey_png(tmp_path / "map.png", values, bits)
    assert ids_of(open_picture(path, "map"), "map").tolist() == values


@pytest.mark.parametrize("bits", [2, 4])
def test_a_grey_image_of_few_bits_is_white_at_its_top(tmp_path: Path, bits: int) -> None:
    path = save_grey_png(tmp_path / "image.png", [[0, 1, 2**bits - 1]], bits)
    step = 255 // (2**bits - 1)
    assert image_of(open_picture(path, "image"), "image")[0, :, 0].tolist() == [0, step, 255]


def test_a_label_map_of_few_bits_that_is_turned_over_is_refused(tmp_path: Path) -> None:
    white_is_zero = {262: 0, 258: 4, 256: 2, 257: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    entries = b"".join(struct.pack("<HHII", k, 4, 1, v) for k, v in sorted(white_is_zero.items()))
    directory = struct.pack("<H", len(white_is_zero)) + entries + struct.pack("<I", 0)
    path = tmp_path / "map.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", 10) + b"\x01\0" + directory)
    with pytest.raises(EvaluationError, match=r"turned over \(L;4I\).*Save it as a PNG"):
        ids_of(open_picture(path, "map.tif"), "map.tif")


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_an_image_of_16_bits_keeps_its_shades(tmp_path: Path, ending: str) -> None:
    wide = np.array([[0, 128, 129, 256], [257, 32896, 65406, 65535]], np.uint16)
    Image.fromarray(wide).save(tmp_path / f"image.{ending}")
    found = image_of(open_picture(tmp_path / f"image.{ending}", "image"), "image")
    assert found.shape == (2, 4, 3)
    assert found.dtype == np.uint8
    for channel in range(3):
        assert found[..., channel].tolist() == [[0, 0, 1, 1], [1, 128, 254, 255]]


def test_greys_of_16_bits_that_pil_hands_out_as_32_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "image.pgm").write_bytes(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32896, 65535))
    picture = open_picture(tmp_path / "image.pgm", "image")
    assert image_of(picture, "image")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_an_image_of_32_bit_numbers_is_refused(tmp_path: Path, kind: Any) -> None:
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "image.tif")
    with pytest.raises(EvaluationError, match=r"^depth is an image of 32-bit numbers.*Save it"):
        image_of(open_picture(tmp_path / "image.tif", "depth"), "depth")


def test_an_image_that_pillow_does_not_turn_into_rgb_is_named() -> None:
    """Pillow's own error came through, without the image's name."""
    with pytest.raises(EvaluationError, match=r"^scan is an image of mode La, .* Save it as a PNG"):
        image_of(Image.new("La", (4, 4)), "scan")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "1"])
def test_an_image_belongs_to_who_asked_for_it(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "image.png")
    assert image_of(open_picture(tmp_path / "image.png", "image"), "image").flags.writeable


@pytest.mark.parametrize("side", [14_000, 60_000])
def test_a_picture_of_absurdly_many_pixels_is_refused(tmp_path: Path, side: int) -> None:
    """PIL says so in an error that is of no kind we know, and of fewer pixels in a warning."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path = save_grey_png(tmp_path / "a.png", [[0]], 8)
    content = path.read_bytes()
    chunk = b"IHDR" + header
    checksum = struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:12] + chunk + checksum + content[33:])
    with pytest.raises(EvaluationError, match=r"pixels.* Evaluate smaller images"):
        open_picture(path, "a")
    rows = {"image": [{"bytes": path.read_bytes(), "path": None}]}
    table = datasets.Dataset.from_dict(rows | {"label": rows["image"]})
    for column in ("image", "label"):
        table = table.cast_column(column, datasets.Image())
    for images, labels in (("image", "label"), ("label", "image")):
        data = from_table(table, "t", None, None, SPACE, Columns("semantic", images, labels))
        with pytest.raises(EvaluationError, match=r"^t, row 0 "):
            next(data.samples(0, 1))


# ----------------------------------------------------------------------------------- panoptic maps

SPACE = custom_space(["road"])
KNOWN = {0: None, 1: 1, 2: 2}
MAP = np.array([[0, 5], [5, 7]], np.int32)
SEVEN = {"id": 7, "category_id": 1}


def test_segments_are_read_as_they_are_listed() -> None:
    five = {"id": np.int64(5), "category_id": 2, "iscrowd": True}
    found = panoptic_from(MAP, [five, {**SEVEN, "iscrowd": None}], KNOWN, "one")
    assert found.segments == (Segment(5, 2, True), Segment(7, 1))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([{"id": 5, "category_id": 1}, {"id": 5, "category_id": 2}], r"5 is listed twice, again"),
        ([{"id": 5, "category_id": 0}, {"id": 5, "category_id": 2}], r"5 is listed twice"),
        ([{"id": 0, "category_id": 1}, {"id": 5, "category_id": 1}], "id is 0: below 1 a map"),
        ([{"id": 5.9, "category_id": 1}], r"\{'id': 5.9, .*id is 5.9, not a whole number"),
        ([{"id": 5, "category_id": 1.9}], r"category_id is 1.9, not a whole number"),
        ([{"id": 5, "category_id": True}], r"category_id is True, not a whole number"),
        ([{"id": 5, "category_id": "1"}], r"category_id is '1', not a whole number"),
        ([{"id": 1e400, "category_id": 1}], r"id is inf, not a whole number"),
        ([{"id": 2**70, "category_id": 0}], r"above 2147483647"),
        ([{"id": 5, "category_id": 1, "iscrowd": "0"}], r"iscrowd is '0', neither 0 nor 1"),
        ([{"id": 5, "category_id": None}], r"category_id is None"),
        ([{"id": 5}], r"without id and category_id"),
        ([[5, 1]], r"without id and category_id \(\[5, 1\]\)"),
    ],
)
def test_a_list_of_segments_that_lies_is_refused(entries: list[Any], said: str) -> None:
    with pytest.raises(EvaluationError, match=rf"^one: .*{said}") as caught:
        panoptic_from(MAP, [*entries, SEVEN], KNOWN, "one")
    assert "orrect the annotations" in str(caught.value)
