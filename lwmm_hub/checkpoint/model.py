"""`Checkpoint`: one model's weight files, opened, pinned, not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lwmm_hub.checkpoint.entries import MERGEABLE, ByteReader, TensorEntry, dtype_name
from lwmm_hub.reference import ModelReference

# What makes a folder load besides weights: configuration, image processor, tokenizer (OneFormer).
SIDE_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "relative_position_index")


TOGETHER = " and "  # between licences that a card lists


@dataclass(frozen=True)
class ModelFacts:
    """What a repository says of a model; all of it may be missing.

    `license`, `license_name`, `license_link` are as declared, where a card lists several licences
    all of them; `sha256` maps weight files to the Hub's checksums; `links` are those files beside
    the weights that are links to others elsewhere, or were when a merge copied them; `base_models`
    those of the Hub that the model was made from.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    license_files: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    gated: bool = False
    private: bool = False
    datasets: tuple[str, ...] = ()
    base_models: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    download_bytes: int = 0


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """The weights of one model: what there is and where it lies. Tensors are read on demand.

    Attributes:
        reference: how the user named it.
        commit: 40-hex commit of the Hub, None for local files.
        format: `safetensors` or `pytorch`.
        entries: key -> entry, in file order (the order of bytes; of registration in `.pth` files).
        readers: file -> reader of its bytes, those of tensors that we made included.
        config: content of config.json, None where there is none.
        processor: settings of the image processor, None where there are none or they were not read.
        folder: where config and processor files lie, None where nothing was downloaded.
        path: keys that lead to the state dict inside a `.pth` file, e.g. `("state_dict",)`.
        prefix: what was taken off every key, e.g. `module.`.
        parts: names of the state dicts that the file keeps apart (keys are `part/key`).
        pretraining: the frozen copy of what training started from, under the same keys.
        part_files: part -> file, where each part has a file of its own.
        ignored: keys of the file that are not this model's -> why.
        facts: licence and the like.
        warnings: what the user should know of this file.
        marks: file -> what a file on disk is known again by; empty for models of the Hub.
        classes: names of its classes as its training noted them in the weight file.
        name: what to call it where its own label would not tell it from another model.
    """

    reference: ModelReference
    commit: str | None
    format: str
    entries: Mapping[str, TensorEntry]
    readers: Mapping[str, ByteReader]
    config: Mapping[str, Any] | None = None
    folder: Path | None = None
    path: tuple[str, ...] = ()
    prefix: str = ""
    parts: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    facts: ModelFacts = field(default_factory=ModelFacts)
    warnings: tuple[str, ...] = ()
    name: str | None = None
    part_files: Mapping[str, str] = field(default_factory=dict)
    pretraining: Mapping[str, TensorEntry] = field(default_factory=dict)
    marks: Mapping[str, str] = field(default_factory=dict)
    processor: Mapping[str, Any] | None = None
    classes: tuple[str, ...] = ()

    def __repr__(self) -> str:  # of all fields it would fill a notebook
        commit = f" of {self.commit[:8]}" if self.commit else ""
        return (
            f"<Checkpoint {self.label}{commit}: {len(self.entries)} tensors in {self.format}, "
            f"{self.parameters} parameters>"
        )

    @property
    def label(self) -> str:
        """What to call the model in messages and in public."""
        if self.name is not None:
            return self.name
        label = self.reference.label
        return f"{label}@{self.reference.revision}" if self.reference.revision else label

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the weight files, without those of tensors that we gathered or added."""
        return tuple(name for name, reader in self.readers.items() if not reader.derived)

    @property
    def parameters(self) -> int:
        """Number of trainable-looking elements: floats that are not running statistics."""
        return sum(
            entry.elements
            for key, entry in self.entries.items()
            if entry.dtype in MERGEABLE and key.rpartition(".")[2] not in BUFFERS
        )

    @property
    def dtype(self) -> str:
        """The dtype of most float elements, e.g. `float32`."""
        counts: Counter[str] = Counter()
        for entry in self.entries.values():
            if entry.dtype in MERGEABLE:
                counts[entry.dtype] += entry.elements
        return dtype_name(counts.most_common(1)[0][0]) if counts else "none"

    @property
    def architecture(self) -> str | None:
        """The transformers class that config.json names."""
        names = (self.config or {}).get("architectures")
        first = names[0] if isinstance(names, list) and names else None
        return first if isinstance(first, str) else None

    def read(self, entry: TensorEntry, skip: int = 0, length: int | None = None) -> bytes:
        """Bytes `skip` to `skip + length` of a tensor.

        Raises:
            CheckpointError: the file ends before.
        """
        reader = self.readers[entry.file]
        if (
            entry.strides is not None
        ):  # of a file on the Hub; those on disk are gathered when opened
            from lwmm_hub.checkpoint.pytorch import contiguous

            gathered, spooled = contiguous({entry.key: entry}, reader)
            assert spooled is not None
            entry, reader = gathered[entry.key], spooled
        elif entry.zip_record is not None:
            from lwmm_hub.checkpoint.pytorch import locate_entry

            entry = locate_entry(reader, entry)
        return reader.read(entry.offset + skip, entry.size - skip if length is None else length)
