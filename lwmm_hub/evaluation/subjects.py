"""What is evaluated: a model of transformers, a user's own module, an ensemble of several."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.checkpoint import Checkpoint, LocalFile
from lwmm_hub.errors import EvaluationError
from lwmm_hub.evaluation.classification import NO_CLASS
from lwmm_hub.evaluation.inference import InferenceOptions, wrong_names
from lwmm_hub.evaluation.label_maps import LabelMap, LabelOptions
from lwmm_hub.evaluation.label_spaces import LabelSpace
from lwmm_hub.evaluation.networks import predictor_of
from lwmm_hub.evaluation.post_processing import DenseScores, MaskScores
from lwmm_hub.evaluation.values import Labels, Panoptic, Prediction, Segment
from lwmm_hub.meanings import labels_in
from lwmm_hub.reference import ModelReference
from lwmm_hub.resolving import resolve

if TYPE_CHECKING:
    import torch

Image = NDArray[np.uint8]
Predict = Callable[[Any, Image], Any]


def labels_of_models(references: Iterable[str | os.PathLike[str] | ModelReference]) -> set[str]:
    """The labels that models' configs name; no weights are read.

    Raises:
        ResolveError: there is no such model.
    """
    configs = (resolve(reference).config for reference in references)
    return {name for config in configs for name in labels_in(config).values()}


class Subject(Protocol):
    """Something that can be evaluated.

    Attributes:
        name: what to call it in a table.
        reference: how the user named it.
        commit: of the Hub, None for local ones.
        identity: changes when its predictions may change; "" where nobody can tell.
        notes: what a reader of its scores has to know, one line each.
    """

    name: str
    reference: str
    commit: str | None
    identity: str

    @property
    def notes(self) -> tuple[str, ...]:
        """One line each."""
        ...

    def predict(self, images: Sequence[Image], task: str) -> list[Prediction]:
        """Predictions in the data set's labels; what it does not have is none of them."""
        ...


# a pinned revision in a label: eight digits tell it from others in a table
_COMMIT = re.compile(r"(@[0-9a-f]{8})[0-9a-f]{32}(?![0-9a-f])")


class HubModel:
    """A model of a transformers class, from the Hub or a folder, in a data set's labels."""

    def __init__(
        self,
        reference: str | os.PathLike[str] | ModelReference,
        space: LabelSpace,
        labels: LabelOptions | None = None,
        options: InferenceOptions | None = None,
    ) -> None:
        """Resolve, download and load it.

        Args:
            reference: as `lwmm_hub.merge` takes them.
            space: the labels of the data set.
            labels: what to do where the model's own differ.
            options: how images go through.

        Raises:
            ResolveError: there is no such model.
            OutputError: config.json names no class, or weights and class do not go together.
            EvaluationError: it has no image processor, or other labels.
        """
        checkpoint = resolve(reference, download=True)
        self.name = _COMMIT.sub(r"\1", checkpoint.label)
        self.reference = (
            str(reference) if isinstance(reference, ModelReference) else os.fspath(reference)
        )
        self.commit = checkpoint.commit
        self.options = options or InferenceOptions()
        self._predictor = predictor_of(
            checkpoint,
            self.options,
            "Evaluate it from Python: lw.evaluate(module, data, predict=...).",
        )
        self.map = (labels or LabelOptions()).match(self._predictor.labels, space, self.name)
        # Scores do not hang on how many images go through together: after memory ran out, a
        # smaller batch goes on where the larger one stopped.
        how = replace(self.options, batch_size=1)
        # images are prepared and networks computed by transformers: another one may do it otherwise
        self.identity = (
            f"{identity_of_checkpoint(checkpoint)} {how} {self.map.table.tobytes().hex()} "
            f"transformers {version('transformers')}"
        )

    @property
    def network(self) -> torch.nn.Module:
        """The network itself."""
        return self._predictor.network

    @property
    def notes(self) -> tuple[str, ...]:
        """Which classes it cannot score on, which of its own count as wrong, how it saw images."""
        notes = _notes(self.name, self.map)
        if self.options.window is not None and self._predictor.square is not None:
            notes += (
                f"{self.name} takes {self._predictor.square} alone: images smaller than the window "
                "are shown whole, as its image processor resizes them.",
            )
        return notes

    def scores(self, images: Sequence[Image]) -> list[DenseScores | MaskScores]:
        """Scores of the model's own classes."""
        return self._predictor.segment(images)

    def predict(self, images: Sequence[Image], task: str) -> list[Prediction]:
        """Predictions in the data set's labels."""
        if task == "classification":
            rows = self._predictor.classify(images)
            labels = self.map.table[rows.argmax(1)]
            ignored = self.map.target.ignored
            return [
                Prediction(label=NO_CLASS if label == ignored else int(label), probabilities=row)
                for label, row in zip(labels, rows, strict=True)
            ]
        if task == "detection":
            boxes = self._predictor.detect(images)
            return [Prediction(boxes=_mapped_boxes(found, self.map)) for found in boxes]
        outputs = self._predictor.segment(images, task)
        if task == "panoptic":
            return [self._panoptic(output) for output in outputs]
        return [Prediction(semantic=self.map.table[output.labels()]) for output in outputs]

    def _panoptic(self, output: DenseScores | MaskScores) -> Prediction:
        if not isinstance(output, MaskScores):
            raise EvaluationError(
                f"{self.name} tells no objects apart: it gives a class for each pixel. Evaluate it "
                "with --task semantic, or without --window and --flip."
            )
        things = self.map.target.things
        if things is None:
            raise EvaluationError(
                f"nobody says which classes of {self.map.target.name} are things. Give --labels a "
                "JSON file of COCO's categories, with isthing."
            )
        own = {i for i, label in enumerate(self.map.of_labels.tolist()) if label in things}
        found = mapped_panoptic(output.panoptic(own), self.map, things)
        return Prediction(self.map.table[output.labels()], found)


class OwnModule:
    """A user's own network: `predict(module, image)` gives scores or labels of one image."""

    commit: str | None = None
    identity = ""  # nobody can tell whether it changed

    def __init__(
        self,
        module: Any,
        predict: Predict,
        space: LabelSpace,
        labels: Sequence[str] | None = None,
        options: LabelOptions | None = None,
        name: str | None = None,
    ) -> None:
        """Wrap a module.

        Args:
            module: passed to `predict` as it is.
            predict: (module, uint8 RGB image of (height, width, 3)) -> float scores of
                (classes, h, w), resized to the image, or integer labels of (height, width).
            space: the labels of the data set.
            labels: names of its classes in order; None means the data set's.
            options: what to do where they differ.
            name: what to call it.
        """
        self.name = name or type(module).__name__
        self.reference = self.name
        self._module, self._predict = module, predict
        names = space.labels if labels is None else tuple(labels)
        self.map = (options or LabelOptions()).match(names, space, self.name)

    @property
    def notes(self) -> tuple[str, ...]:
        """Which classes it cannot score on, and which of its own count as wrong."""
        return _notes(self.name, self.map)

    def scores(self, images: Sequence[Image]) -> list[DenseScores]:
        """Scores of the module's own classes."""
        found = []
        for image in images:
            given = self._given(image)
            if not isinstance(given, DenseScores):
                raise EvaluationError(
                    f"predict gave labels for {self.name}: an ensemble needs float scores of "
                    f"({len(self.map.source)}, h, w)."
                )
            found.append(given)
        return found

    def predict(self, images: Sequence[Image], task: str) -> list[Prediction]:
        """Predictions in the data set's labels."""
        if task != "semantic":
            raise EvaluationError(
                f"a module of one's own is evaluated on label maps, not on {task} truth. Pass "
                "task='semantic'."
            )
        found = [self._given(image) for image in images]
        return [
            Prediction(self.map(given.labels() if isinstance(given, DenseScores) else given))
            for given in found
        ]

    def _given(self, image: Image) -> DenseScores | Labels:
        """What `predict` says of one image, checked."""
        import torch

        with torch.inference_mode():
            said = self._predict(self._module, image)
            try:
                given = torch.as_tensor(said)
            except (TypeError, ValueError, RuntimeError) as error:
                raise _not_scores(f"a {type(said).__name__}", self.name) from error
            given = given.detach().cpu()
        height, width = image.shape[:2]
        if given.ndim == 3 and given.is_floating_point():
            if len(given) != len(self.map.source):
                raise wrong_names(self.name, len(given), len(self.map.source))
            extent = (float(given.shape[1]), float(given.shape[2]))
            return DenseScores(given, (height, width), extent)
        if given.ndim == 2 and not given.is_floating_point():
            labels: Labels = given.numpy()
            return labels
        raise _not_scores(f"{given.dtype} of shape {tuple(given.shape)}", self.name)


def _not_scores(what: str, name: str) -> EvaluationError:
    """The error of a `predict` that returns something else than it has to."""
    return EvaluationError(
        f"predict gave {what} for {name}: return float scores of (classes, h, w) without a batch "
        "axis, or integer labels of (height, width)."
    )


class Ensemble:
    """The mean of several models' probabilities over the labels that all of them name.

    The paper's output ensemble (Table 1): M inferences for one prediction. Probabilities of
    several classes that are one class of the data set are added.
    """

    commit: str | None = None

    def __init__(self, members: Sequence[HubModel | OwnModule]) -> None:
        """Join models that are loaded.

        Raises:
            EvaluationError: fewer than two, or no class is shared by all.
        """
        import torch

        if len(members) < 2:
            raise EvaluationError("an ensemble needs at least two models: name more.")
        self.members = tuple(members)
        self.name = "ensemble"
        self.reference = "ensemble of " + ", ".join(member.name for member in members)
        self.identity = " + ".join(member.identity for member in members)
        if not all(member.identity for member in members):
            self.identity = ""
        space = members[0].map.target
        shared = [
            index
            for index in range(len(space))
            if all((m.map.of_labels == index).any() for m in members)
        ]
        if not shared:
            raise EvaluationError(f"the models of {self.reference} share no class of {space.name}.")
        self.left_out = tuple(n for i, n in enumerate(space.labels) if i not in shared)
        self._shared = np.array(shared, np.int64)
        self._sums = []
        for member in members:
            sums = torch.zeros(len(shared), len(member.map.source))
            for row, index in enumerate(shared):
                sums[row, np.flatnonzero(member.map.of_labels == index)] = 1
            self._sums.append(sums)

    @property
    def notes(self) -> tuple[str, ...]:
        """What it averages, and over which classes."""
        names = ", ".join(member.name for member in self.members)
        notes = [f"{self.name} averages the probabilities of {names}."]
        if self.left_out:
            notes.append(
                f"{self.name} has no class for {_listed(self.left_out)}: 0 where there are any."
            )
        return tuple(notes)

    def predict(self, images: Sequence[Image], task: str) -> list[Prediction]:
        """Label maps in the data set's labels."""
        if task != "semantic":
            raise EvaluationError(
                f"an ensemble averages probabilities of pixels; it cannot be evaluated on {task} "
                "truth. Use --task semantic."
            )
        outputs = [member.scores(images) for member in self.members]
        return [Prediction(self._labels([o[i] for o in outputs])) for i in range(len(images))]

    def _labels(self, outputs: Sequence[DenseScores | MaskScores]) -> Labels:
        labels = np.empty(outputs[0].size, np.uint16)
        for strips in zip(*(output.strips() for output in outputs), strict=True):
            total: Any = 0
            for (_, probabilities), sums in zip(strips, self._sums, strict=True):
                flat = sums.to(probabilities.device) @ probabilities.flatten(1)
                total = total + flat.reshape(-1, *probabilities.shape[1:]).cpu()
            labels[strips[0][0]] = self._shared[total.argmax(0).numpy()]
        return labels


def _notes(name: str, label_map: LabelMap) -> tuple[str, ...]:
    notes = []
    if label_map.never:
        notes.append(f"{name} has no class for {_listed(label_map.never)}: 0 where there are any.")
    if label_map.left_out:
        notes.append(f"{name} predicts {_listed(label_map.left_out)}, counted as wrong.")
    return tuple(notes)


def _listed(labels: Sequence[str]) -> str:
    """Some labels of many.

    >>> _listed(["road", "sky"]), _listed([str(i) for i in range(40)])
    ('road, sky', '0, 1, 2, 3, 4, 5, 6, 7 and 32 more')
    """
    rest = len(labels) - 8
    return ", ".join(labels[:8]) + (f" and {rest} more" if rest > 0 else "")


def identity_of_checkpoint(checkpoint: Checkpoint) -> str:
    """Tells a model from another one: its commit and files, or a checksum of what is read of it."""
    about = f"{checkpoint.reference.weights} {checkpoint.reference.stage} {list(checkpoint.files)}"
    if checkpoint.commit is not None:
        return f"{checkpoint.reference.location}@{checkpoint.commit} {about}"
    assert checkpoint.folder is not None
    settings = [LocalFile(path, path.name) for path in sorted(checkpoint.folder.glob("*.json"))]
    seen = hashlib.sha256(about.encode())
    for reader in (*checkpoint.readers.values(), *settings):  # that of a `.pkl` is no `LocalFile`
        seen.update(f"{reader.name} {reader.size} ".encode())
        for start in range(0, reader.size, 1 << 20):
            seen.update(reader.read(start, min(1 << 20, reader.size - start)))
    return seen.hexdigest()


def mapped_panoptic(found: Panoptic, label_map: LabelMap, things: Collection[int]) -> Panoptic:
    """A panoptic map in other labels; what has none is void, and a stuff class is one segment.

    Args:
        found: in a model's own labels.
        label_map: from the model's labels to those of the data set.
        things: labels of the data set whose objects are told apart.
    """
    number = np.zeros(max((s.id for s in found.segments), default=0) + 1, np.int32)
    kept: list[Segment] = []
    stuff: dict[int, int] = {}
    for segment in found.segments:
        category = int(label_map.table[segment.category])
        if category == label_map.target.ignored:
            continue
        if category in stuff:
            number[segment.id] = stuff[category]
            continue
        kept.append(Segment(segment.id, category))
        number[segment.id] = segment.id
        if category not in things:
            stuff[category] = segment.id
    return Panoptic(number[found.ids], tuple(kept))


def _mapped_boxes(boxes: Any, label_map: LabelMap) -> Any:
    """Boxes in the data set's labels; what it does not have is left out."""
    categories = label_map.table[boxes.categories]
    kept = categories != label_map.target.ignored
    return replace(
        boxes,
        corners=boxes.corners[kept],
        categories=categories[kept].astype(np.int64),
        confidences=boxes.confidences[kept],
    )


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names for a table, each once.

    >>> distinct_names(["merged", "latest", "latest"])
    ('merged', 'latest', 'latest-2')
    """
    found: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in found:
            number += 1
            candidate = f"{name}-{number}"
        found.append(candidate)
    return tuple(found)
