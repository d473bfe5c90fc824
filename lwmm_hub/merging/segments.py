"""What the output is made of: stretches with the same ingredients, cut into ranges."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from lwmm_hub.checkpoint import DTYPES, Checkpoint, tensor_bytes
from lwmm_hub.checkpoint.entries import open_flags
from lwmm_hub.errors import CheckpointError
from lwmm_hub.key_map import Source
from lwmm_hub.planning import MergedTensor, MergePlan, output_dtype


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the result: where it comes from and how it is stored."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes in the output."""
        return tensor_bytes(self.dtype, self.shape)


def output_tensors(plan: MergePlan, anchor: Checkpoint) -> list[OutputTensor]:
    """The tensors of the result in the order they are stored.

    A safetensors anchor gives its own order, so that reading it is one sweep; a `.pth` file's order
    of registration is kept within each element size, large ones first, so that all are aligned.
    """
    entries = list(anchor.entries.values())
    tensors = [
        OutputTensor(e.key, output_dtype(e.dtype, plan.options.dtype), e.shape) for e in entries
    ]
    aligned = anchor.format == "safetensors" and plan.options.dtype == "auto"
    if not aligned or len(anchor.files) > 1:
        tensors.sort(key=lambda t: -DTYPES[t.dtype][0])
    return tensors


@dataclass(frozen=True)
class Ingredient:
    """One model's share of a segment: `file` counts the opened files, `offset` is absolute."""

    file: int
    offset: int
    dtype: str
    weight: float
    model: int

    def goes_on(self, elements: int, other: Ingredient) -> bool:
        """Whether `other` is what follows `elements` of this one, with the same weight."""
        return (
            other.offset == self.offset + elements * DTYPES[self.dtype][0] // 8
            and other.file == self.file
            and other.weight == self.weight
            and other.dtype == self.dtype
            and other.model == self.model
        )


@dataclass(frozen=True)
class Segment:
    """A stretch of the output whose elements all have the same ingredients.

    Part of a tensor, a tensor, or neighbours that lie side by side in every file and have one
    vector of weights; `starts` says at which element each tensor begins.
    """

    starts: tuple[tuple[int, str], ...]
    dtype: str
    elements: int
    anchor: Ingredient
    donors: tuple[Ingredient, ...]
    computed: NDArray[Any] | None = None  # values made beforehand (batch-norm moments)

    def key(self, element: int) -> str:
        """The tensor that an element belongs to."""
        return next(key for start, key in reversed(self.starts) if start <= element)


@dataclass
class Piece:
    """Part of a segment inside one range."""

    segment: Segment
    skip: int  # elements of the segment before it
    elements: int
    at: int  # byte in the range's result


@dataclass
class Range:
    """A range of one output file, made by one worker call."""

    offset: int
    size: int
    pieces: list[Piece] = field(default_factory=list)


class OpenFiles:
    """The parents' files as descriptors, each opened once."""

    def __init__(self, checkpoints: Sequence[Checkpoint], stack: ExitStack) -> None:
        self.descriptors: list[int] = []
        self._numbers: dict[tuple[int, str], int] = {}
        self._checkpoints = checkpoints
        self._stack = stack
        self.names: list[str] = []

    def number(self, model: int, file: str) -> int:
        """The index of a model's file among the opened ones."""
        if (model, file) not in self._numbers:
            reader = self._checkpoints[model].readers[file]
            descriptor = getattr(reader, "fd", None)
            if descriptor is None:
                path = getattr(reader, "path", None)
                if path is None:
                    raise CheckpointError(f"{file} is not on this machine: download it first.")
                descriptor = os.open(path, open_flags())
                self._stack.callback(os.close, descriptor)
            self._numbers[model, file] = len(self.descriptors)
            self.descriptors.append(descriptor)
            self.names.append(f"{self._checkpoints[model].label}: {file}")
        return self._numbers[model, file]


def segments_of(
    tensor: OutputTensor,
    parameters: Sequence[MergedTensor],
    checkpoints: Sequence[Checkpoint],
    files: OpenFiles,
    moments: Mapping[str, NDArray[Any]],
) -> Iterator[Segment]:
    """How one output tensor is made: whole, or part by part where the anchor's is fused."""
    entry = checkpoints[0].entries[tensor.key]

    def ingredient(model: int, source: Source, weight: float) -> Ingredient:
        found = checkpoints[model].entries[source.key]
        offset = found.offset + found.size // source.parts * source.part
        return Ingredient(files.number(model, found.file), offset, found.dtype, weight, model)

    def segment(source: Source, parameter: MergedTensor | None) -> Segment:
        donors, own, computed = [], 1.0, None
        if parameter is not None:
            own = parameter.weights[0]
            computed = moments.get(parameter.name)
            donors = [
                ingredient(model, donor, weight)
                for model, (donor, weight) in enumerate(
                    zip(parameter.sources, parameter.weights, strict=True)
                )
                if model and donor is not None and weight
            ]
        return Segment(
            ((0, tensor.key),),
            tensor.dtype,
            entry.elements // source.parts,
            ingredient(0, source, own),
            tuple(donors),
            computed,
        )

    by_part = {p.sources[0].part: p for p in parameters if p.sources[0]}
    parts = next((p.sources[0].parts for p in parameters if p.sources[0]), 1)
    for part in range(parts):
        yield segment(Source(tensor.key, part, parts), by_part.get(part))


def join(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Make one of neighbours that continue each other in every file, with the same weights.

    Small tensors (biases, norms) lie beside the weight of their module: each numpy call then does
    for all of them.
    """
    group: list[Segment] = []
    elements = 0
    for segment in segments:
        if group and not _continues(group[0], elements, segment):
            yield _joined(group, elements)
            group, elements = [], 0
        group.append(segment)
        elements += segment.elements
    if group:
        yield _joined(group, elements)


def _continues(first: Segment, elements: int, segment: Segment) -> bool:
    return (
        first.dtype == segment.dtype
        and first.computed is None
        and segment.computed is None
        and len(first.donors) == len(segment.donors)
        and first.anchor.goes_on(elements, segment.anchor)
        and all(
            mine.goes_on(elements, theirs)
            for mine, theirs in zip(first.donors, segment.donors, strict=True)
        )
    )


def _joined(group: Sequence[Segment], elements: int) -> Segment:
    if len(group) == 1:
        return group[0]
    starts, at = [], 0
    for segment in group:
        starts.append((at, segment.starts[0][1]))
        at += segment.elements
    return replace(group[0], starts=tuple(starts), elements=elements)


def cut(segments: Iterable[Segment], offset: int, chunk: int) -> list[Range]:
    """Cut a file into ranges of at most `chunk` result bytes, whatever the tensors."""
    ranges = [Range(offset, 0)]
    for segment in segments:
        width = DTYPES[segment.dtype][0] // 8
        skip = 0
        while skip < segment.elements:
            current = ranges[-1]
            room = (chunk - current.size) // width
            if room < min(segment.elements - skip, 64):
                ranges.append(Range(current.offset + current.size, 0))
                continue
            count = min(segment.elements - skip, room)
            current.pieces.append(Piece(segment, skip, count, current.size))
            current.size += count * width
            skip += count
    return [r for r in ranges if r.size]
