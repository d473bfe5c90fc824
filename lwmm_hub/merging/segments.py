"""What the output is made of: stretches with the same ingredients, cut into ranges."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from numpy.typing import NDArray

from lwmm_hub.checkpoint import DTYPES, Checkpoint, tensor_bytes
from lwmm_hub.checkpoint.entries import open_flags
from lwmm_hub.errors import CheckpointError
from lwmm_hub.key_map import Source
from lwmm_hub.planning import MergedTensor, MergePlan, output_dtype


class OutputTensor(NamedTuple):
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


class Ingredient(NamedTuple):
    """One model's share of a segment: `file` counts the opened files, `offset` is absolute.

    A named tuple, as `Segment` is: thousands are made, in half the time of frozen dataclasses.
    """

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


class Segment(NamedTuple):
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

    def ingredient(self, model: int, source: Source, weight: float) -> Ingredient:
        """A model's share: where its parameter, or its part of a fused one, lies."""
        entry = self._checkpoints[model].entries[source.key]
        offset = entry.offset
        if source.part:
            offset += entry.size // source.parts * source.part
        return Ingredient(self.number(model, entry.file), offset, entry.dtype, weight, model)

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
        return self._numbers[model, file]


def segments_of(
    tensor: OutputTensor,
    parameters: Sequence[MergedTensor],
    files: OpenFiles,
    moments: Mapping[str, NDArray[Any]],
) -> list[Segment]:
    """How one output tensor is made: whole, or part by part where the anchor's is fused."""
    merged = {p.sources[0]: p for p in parameters if p.sources[0]}
    parts = next(iter(merged)).parts if merged else 1
    sources = [Source(tensor.key, part, parts) for part in range(parts)] if parts > 1 else merged
    return [
        _segment(tensor, source, merged.get(source), files, moments)
        for source in sources or [Source(tensor.key)]
    ]


def _segment(
    tensor: OutputTensor,
    source: Source,
    parameter: MergedTensor | None,
    files: OpenFiles,
    moments: Mapping[str, NDArray[Any]],
) -> Segment:
    elements = math.prod(tensor.shape) // source.parts
    starts = ((0, tensor.key),)
    if parameter is None:
        return Segment(starts, tensor.dtype, elements, files.ingredient(0, source, 1.0), ())
    shares = zip(parameter.sources[1:], parameter.weights[1:], strict=True)
    donors = [
        files.ingredient(model, place, weight)
        for model, (place, weight) in enumerate(shares, start=1)
        if place is not None and weight
    ]
    own = files.ingredient(0, source, parameter.weights[0])
    computed = moments.get(parameter.name)
    return Segment(starts, tensor.dtype, elements, own, tuple(donors), computed)


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
    return group[0]._replace(starts=tuple(starts), elements=elements)


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
