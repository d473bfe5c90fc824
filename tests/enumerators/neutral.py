"""One SegFormer in a spelling that no system uses, and values for it.

Names say what a parameter does (`stage2.block0.query.weight`); q, k and v are apart, the head's
projections are numbered by the stage they read. Every dialect in `dialects.py` says how it writes
these names, so the same model can be written in all of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from .size import SegformerSize

Values = dict[str, np.ndarray]
Shape = tuple[int, ...]


def neutral_shapes(size: SegformerSize) -> dict[str, Shape]:
    """Shape of each parameter and buffer; the only int64 one is `head.norm.counter`."""
    return dict(_shapes(size))


def _shapes(size: SegformerSize) -> Iterator[tuple[str, Shape]]:
    in_width = 3
    stages = zip(size.depths, size.widths, size.sr_ratios, strict=True)
    for s, (depth, width, reduction) in enumerate(stages, start=1):
        kernel = 7 if s == 1 else 3
        hidden = width * size.mlp_ratio
        yield from _layer(f"stage{s}.embed", (width, in_width, kernel, kernel))
        yield from _layer(f"stage{s}.embed_norm", (width,))
        for b in range(depth):
            block = f"stage{s}.block{b}"
            yield from _layer(f"{block}.norm_attention", (width,))
            for part in ("query", "key", "value", "output"):
                yield from _layer(f"{block}.{part}", (width, width))
            if reduction > 1:
                yield from _layer(f"{block}.reduce", (width, width, reduction, reduction))
                yield from _layer(f"{block}.reduce_norm", (width,))
            yield from _layer(f"{block}.norm_mlp", (width,))
            yield from _layer(f"{block}.mlp_in", (hidden, width))
            yield from _layer(f"{block}.mlp_conv", (hidden, 1, 3, 3))
            yield from _layer(f"{block}.mlp_out", (width, hidden))
        yield from _layer(f"stage{s}.norm", (width,))
        in_width = width

    decoder = size.decoder_width
    for s, width in enumerate(size.widths, start=1):
        yield from _layer(f"head.project{s}", (decoder, width))
    yield "head.fuse.weight", (decoder, 4 * decoder, 1, 1)
    yield from _layer("head.norm", (decoder,))
    yield "head.norm.mean", (decoder,)
    yield "head.norm.variance", (decoder,)
    yield "head.norm.counter", ()
    yield from _layer("head.classifier", (size.num_classes, decoder, 1, 1))


def _layer(name: str, weight: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


def ancestor(size: SegformerSize, seed: int) -> Values:
    """The pre-trained model that all the fine-tuned ones of a test come from."""
    return {
        name: random_value(name, shape, "I64" if shape == () else "F32", seed)
        for name, shape in neutral_shapes(size).items()
    }


def finetuned(values: Mapping[str, np.ndarray], seed: int, noise: float = 0.3) -> Values:
    """The ancestor plus independent noise of `noise` times each tensor's standard deviation."""
    tuned = {}
    for name, value in values.items():
        random = _generator(f"finetuned {name}", seed)
        if value.dtype == np.int64:
            tuned[name] = np.asarray(value + random.integers(1, 1000), dtype=np.int64)
            continue
        step = random.standard_normal(value.shape, dtype=np.float32) * np.float32(value.std())
        tuned[name] = value + np.float32(noise) * step
        if name.endswith("variance"):
            tuned[name] = np.maximum(tuned[name], np.float32(0.1))
    return tuned


def with_classes(values: Mapping[str, np.ndarray], n: int, seed: int) -> Values:
    """The same model with a new classifier of `n` classes."""
    decoder = values["head.classifier.weight"].shape[1]
    classifier = dict(_layer("head.classifier", (n, decoder, 1, 1)))
    return {
        name: random_value(name, classifier[name], "F32", seed) if name in classifier else value
        for name, value in values.items()
    }


def random_value(name: str, shape: Shape, dtype: str, seed: int) -> np.ndarray:
    """A value that keeps a forward pass sane; it depends on the name and the seed alone.

    Norm weights (the only vectors called `weight`) lie around 1, biases and running means around
    0, variances between 0.5 and 1.5, matrices and kernels at 1/sqrt(inputs per output).
    """
    random = _generator(name, seed)
    if dtype == "I64":
        return np.asarray(random.integers(1000, 2000, size=shape), dtype=np.int64)
    if name.endswith(("variance", "running_var")):
        return random.random(shape, dtype=np.float32) + np.float32(0.5)
    value = random.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return value / np.float32(np.sqrt(np.prod(shape[1:])))
    is_norm_weight = name.endswith("weight")
    return np.float32(0.1) * value + np.float32(1 if is_norm_weight else 0)


def _generator(name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])
