"""Other data sets: ADE20K, COCO panoptic, Pascal VOC, LoveDA, Office, and two plain ways to lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.layouts.grammar import Item, Layout, Listing, folders_in, pictures_in
from lwmm_hub.evaluation.layouts.segments import read_annotations
from lwmm_hub.small_files import read_small_text

_MAX_LIST = 16 << 20  # bytes of a list of images


def _ade20k(root: Path, split: str, _task: str) -> Listing:
    labels = root / "annotations" / split
    images = pictures_in(root / "images" / split)
    return Listing([Item(image, labels / f"{image.stem}.png") for image in images])


ADE20K = Layout(
    "ade20k",
    ("images/*/ADE_*.jpg", "annotations/*/ADE_*.png"),
    lambda root: folders_in(root / "annotations"),
    _ade20k,
    space="ade20k-150",
)


def _coco(root: Path, split: str, _task: str) -> Listing:
    known = read_annotations(root / "annotations" / f"panoptic_{split}.json")
    maps = root / "annotations" / f"panoptic_{split}"
    if not maps.is_dir():
        maps = root / f"panoptic_{split}"
    items = [
        Item(root / split / _plain(about.image), None, maps / _plain(file), about.segments)
        for file, about in known.maps.items()
    ]
    return Listing(sorted(items, key=lambda item: item.image.name), categories=known.categories)


def _plain(name: str) -> str:
    """A file's name, which must lead nowhere else."""
    if Path(name).name != name or "\\" in name or name in ("", ".", ".."):
        raise EvaluationError(
            f"the annotations name the file {name!r}, which is no plain name. Correct the JSON."
        )
    return name


def _coco_splits(root: Path) -> list[str]:
    found = (root / "annotations").glob("panoptic_*.json")
    return sorted(path.stem.removeprefix("panoptic_") for path in found)


COCO_PANOPTIC = Layout(
    "coco-panoptic",
    ("annotations/panoptic_*.json",),
    _coco_splits,
    _coco,
    tasks=("panoptic", "semantic"),
)


_VOC_LABELS = ("SegmentationClass", "SegmentationClassAug")
_VOC_YEARS = ("", "VOC20[0-9][0-9]/", "VOCdevkit/VOC20[0-9][0-9]/")


def _voc_years(root: Path) -> list[Path]:
    """The folders of the years that lie in a folder; it may be one itself."""
    lists = [path for year in _VOC_YEARS for path in root.glob(f"{year}ImageSets/Segmentation")]
    years = sorted(path.parents[1] for path in lists)
    return [year for year in years if any((year / name).is_dir() for name in _VOC_LABELS)]


def _voc_year(root: Path) -> Path:
    """The folder of the one year that there is.

    Raises:
        EvaluationError: there are several.
    """
    years = _voc_years(root)
    if len(years) > 1:
        names = ", ".join(year.relative_to(root).as_posix() for year in years)
        raise EvaluationError(
            f"{root.resolve().name} holds several years of Pascal VOC: {names}. Name the folder of "
            "one."
        )
    return years[0] if years else root


def _voc(root: Path, split: str, _task: str) -> Listing:
    """Images of a list; where their own label map is absent, that of the augmented set."""
    if not split:
        return Listing([])
    year = _voc_year(root)
    path = year / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        lines = read_small_text(path, _MAX_LIST).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is not text"
        raise EvaluationError(
            f"the list of images {split}.txt cannot be read: {what}. Complete the data set, or "
            "name another split."
        ) from error
    # the augmented lists say "/JPEGImages/NAME.jpg /SegmentationClassAug/NAME.png"
    words = [line.split()[0] for line in lines if line.strip()]
    names = [_plain(word.rpartition("/")[2].removesuffix(".jpg")) for word in words]
    items = []
    for name in names:
        maps = [year / folder / f"{name}.png" for folder in _VOC_LABELS]
        truth = next((path for path in maps if path.is_file()), maps[0])
        items.append(Item(year / "JPEGImages" / f"{name}.jpg", truth))
    return Listing(items)


def _voc_splits(root: Path) -> list[str]:
    lists = (_voc_year(root) / "ImageSets" / "Segmentation").glob("*.txt")
    return sorted(path.stem for path in lists)


PASCAL_VOC = Layout(
    "pascal-voc",
    tuple(
        "|".join(f"{year}{sign}" for year in _VOC_YEARS)
        for sign in ("ImageSets/Segmentation/*.txt", "SegmentationClass*/*.png")
    ),
    _voc_splits,
    _voc,
    space="pascal-voc-21",
)


def _loveda(root: Path, split: str, _task: str) -> Listing:
    """Of both domains, or of `Val/Rural` alone."""
    items = [
        Item(image, folder / "masks_png" / image.name)
        for folder in (root / split, *(root / split / name for name in folders_in(root / split)))
        for image in pictures_in(folder / "images_png")
    ]
    return Listing(items)


def _loveda_splits(root: Path) -> list[str]:
    found = [path.parent.relative_to(root) for path in root.glob("*/*/images_png")]
    return sorted({path.parts[0] for path in found} | {path.as_posix() for path in found})


LOVEDA = Layout(
    "loveda",
    ("*/*/images_png/*.png", "*/*/masks_png/*.png"),
    _loveda_splits,
    _loveda,
    space="loveda-7",
)


def _by_class(root: Path, split: str, _task: str) -> Listing:
    folder = root / split if split else root
    if split and folders_in(folder) == ["images"]:
        folder = folder / "images"  # Office-31 as it is handed out
    classes = folders_in(folder)
    if "images" in classes and (beside := [name for name in classes if name in _LABELS]):
        raise EvaluationError(
            f"{folder.name} has the folders images and {beside[0]}, which are no classes. Name the "
            "data set as pairs:FOLDER."
        )
    items = [
        Item(image, label=index)
        for index, name in enumerate(classes)
        for image in pictures_in(folder / name, deep=True)
    ]
    return Listing(items, tuple(classes))


def _domains(*names: str) -> Callable[[Path], list[str]]:
    return lambda root: [name for name in names if (root / name).is_dir()]


OFFICE_31 = Layout(
    "office-31",
    ("amazon/*", "dslr/*", "webcam/*"),
    _domains("amazon", "dslr", "webcam"),
    _by_class,
    tasks=("classification",),
)
OFFICE_HOME = Layout(
    "office-home",
    ("Art/*", "Clipart/*", "Product/*"),
    _domains("Art", "Clipart", "Product", "Real World", "Real_World", "RealWorld"),
    _by_class,
    tasks=("classification",),
)

_LABELS = ("labels", "annotations", "masks", "labels_ids", "gt")


def _labels_in(folder: Path) -> Path | None:
    """The folder of label maps that lies beside `images`, if both are there."""
    if not (folder / "images").is_dir():
        return None
    return next((folder / name for name in _LABELS if (folder / name).is_dir()), None)


def _pair_splits(root: Path) -> list[str]:
    """Of images/SPLIT beside labels/SPLIT, or of SPLIT/images beside SPLIT/labels."""
    if _labels_in(root) is not None:
        return folders_in(root / "images")
    return [name for name in folders_in(root) if _labels_in(root / name) is not None]


def _pairs(root: Path, split: str, _task: str) -> Listing:
    if (beside := _labels_in(root)) is not None:
        images, labels = root / "images" / split, beside / split
    elif (beside := _labels_in(root / split)) is not None:
        images, labels = root / split / "images", beside
    else:
        return Listing([])

    def truth(image: Path) -> Path:
        """A PNG, or a TIFF, as label maps of 16 bits often are."""
        names = [labels / f"{image.stem}{ending}" for ending in (".png", ".tif", ".tiff")]
        return next((path for path in names if path.is_file()), names[0])

    return Listing([Item(image, truth(image)) for image in pictures_in(images)])


PAIRS = Layout(
    "pairs",
    ("images/*|*/images/*", "|".join(f"{name}/*|*/{name}/*" for name in _LABELS)),
    _pair_splits,
    _pairs,
    sure=lambda root: _labels_in(root) is not None or bool(_pair_splits(root)),
    plain=True,
)


def _class_splits(root: Path) -> list[str]:
    """Folders of folders of pictures, where no class lies directly in the data set's folder."""
    found = folders_in(root)
    if any(pictures_in(root / name) for name in found):
        return []
    return [name for name in found if folders_in(root / name)]


def _only_classes(root: Path) -> bool:
    """Whether there are only folders of pictures, one for each class, perhaps in splits.

    A class may be called `masks`, a split may not; neither is called `images` or, as in LoveDA,
    `images_png`: that is half of the pairs, whether or not their labels are there.
    """
    splits = _class_splits(root)
    above = [root / split for split in splits] or [root]
    classes = [folder / name for folder in above for name in folders_in(folder)]
    images = {"images", "images_png"}
    pairs = {*images, *_LABELS}.intersection(name.lower() for name in splits)
    pairs |= images.intersection(path.name.lower() for path in classes)
    return bool(classes) and not pairs and all(map(pictures_in, classes))


CLASSES = Layout(
    "classes",
    ("*/*",),
    _class_splits,
    _by_class,
    tasks=("classification",),
    sure=_only_classes,
    plain=True,
)
