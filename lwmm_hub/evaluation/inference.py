"""A model's folder -> predictions for images, whole or through a sliding window."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lwmm_hub.errors import EvaluationError, EvaluationUsageError
from lwmm_hub.evaluation.post_processing import DenseScores, MaskScores
from lwmm_hub.evaluation.processors import load_processor, load_tokens, told
from lwmm_hub.evaluation.squares import square_of
from lwmm_hub.evaluation.values import Boxes
from lwmm_hub.evaluation.views import View, batches, together, windows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class InferenceOptions:
    """How images go through a network.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None is the accelerator, if there is one.
        dtype: `float32`, `float16` or `bfloat16` of weights and images.
        batch_size: images (or windows) of one size that go through at once.
        window: (height, width) of a sliding window over the image at its own size; None shows
            the whole image as the model's image processor resizes it, and so is shown an image
            smaller than the window to a network that takes squares alone.
        overlap: least part of a window that the next one shows again.
        flip: also show every image mirrored, and average.
    """

    device: str | None = None
    dtype: str = "float32"
    batch_size: int = 1
    window: tuple[int, int] | None = None
    overlap: float = 1 / 3
    flip: bool = False

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            EvaluationUsageError: which, and what it may be.
        """
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise EvaluationUsageError(
                f"dtype {self.dtype!r} is unknown: choose float32, float16 or bfloat16."
            )
        if self.batch_size < 1:
            raise EvaluationUsageError(f"batch size is {self.batch_size}: give a number from 1 on.")
        if self.window is not None and min(self.window) < 32:
            raise EvaluationUsageError(f"a window of {self.window}: give at least 32 x 32 pixels.")
        if not 0 <= self.overlap < 1:
            raise EvaluationUsageError(f"overlap {self.overlap:g} is not from 0 to under 1.")


class Predictor:
    """A network with its image processor and label names, ready for images.

    Attributes:
        labels: names of the classes, in the order of the network's outputs.
        name: what to call the model in messages.
        network: the module itself, on its device.
        square: the shape of all images that it takes; None is any.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        processor: Any,
        labels: Sequence[str],
        options: InferenceOptions | None = None,
        name: str = "the model",
        tokens: Callable[[str], Tensor] | None = None,
    ) -> None:
        """Move a model to its device.

        Args:
            model: of a transformers class.
            processor: its image processor.
            labels: names of its classes.
            options: how images go through.
            name: what to call the model in messages.
            tokens: task -> tokens of shape (1, length), for models that are told their task.

        Raises:
            EvaluationError: an option is out of range, there is no such device, or the network does
                not take images of the size of the window.
        """
        import torch

        self.options = options or InferenceOptions()
        self.options.check()
        self.labels, self.name = tuple(labels), name
        self.square = square_of(model)
        self._check_window()
        self._processor, self._tokens = processor, tokens
        try:
            self._device = torch.device(self.options.device or _best_device())
            self._dtype = getattr(torch, self.options.dtype)
            self.network = model.to(self._device, self._dtype).eval()
        except (RuntimeError, AssertionError) as error:  # no such device, or it is full
            raise EvaluationError(
                f"{name} cannot be moved to the device {self.options.device!r}: {told(error)} "
                "Name another with --device, e.g. cpu."
            ) from error
        self._accepts = set(inspect.signature(model.forward).parameters)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        options: InferenceOptions | None = None,
        name: str | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Predictor:
        """The model in a folder, as config.json and preprocessor_config.json describe it.

        Args:
            folder: with both, and with weights unless they are given.
            options: how images go through.
            name: what to call the model in messages; None is the folder's name.
            weights: its tensors, where they are not those that transformers finds in the folder.

        Raises:
            OutputError: config.json names no class, or weights and class do not go together.
            EvaluationError: there is no image processor, or names and classes do not agree.
        """
        from lwmm_hub.loading import load_model

        folder = Path(folder)
        name = name or folder.name
        model = load_model(folder, weights)
        processor = load_processor(folder, name)
        tokens = None
        if "task_inputs" in inspect.signature(model.forward).parameters:
            tokens = load_tokens(folder, name, int(model.config.task_seq_len))
        labels = _labels_of(model.config, name)
        return cls(model, processor, labels, options, name, tokens)

    def segment(
        self, images: Sequence[Image], task: str = "semantic", gradients: bool = False
    ) -> list[DenseScores | MaskScores]:
        """Scores of each image, from which label and panoptic maps are made.

        Args:
            images: uint8 RGB, (height, width, 3), of any sizes.
            task: `semantic` or `panoptic`: OneFormer is told.
            gradients: whether a backward pass through the scores is wanted.

        Raises:
            EvaluationError: the model gives no scores of pixels, or memory ran out.
        """
        queue = [(i, view) for i, image in enumerate(images) for view in self._views(image, task)]
        found: list[list[tuple[View, DenseScores | MaskScores]]] = [[] for _ in images]
        for batch in batches(queue, self.options.batch_size):
            outputs = self._forward([view for _, view in batch], task, gradients)
            for k, (i, view) in enumerate(batch):
                size = images[i].shape[:2]
                scores = _scores_of(outputs, k, view, size, self.name)
                if scores.class_count != len(self.labels):
                    raise wrong_names(self.name, scores.class_count, len(self.labels))
                found[i].append((view, scores))
        return [
            together(views, image.shape[:2]) for views, image in zip(found, images, strict=True)
        ]

    def classify(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Probabilities of each image's classes, (images, classes).

        Raises:
            EvaluationError: the model classifies no images, memory ran out, or options are given
                that are of maps alone.
        """
        self._only_whole("classes of images")
        found = np.empty((len(images), len(self.labels)), np.float32)
        queue = [(i, self._whole(image)) for i, image in enumerate(images)]
        for batch in batches(queue, self.options.batch_size):
            outputs = self._forward([view for _, view in batch])
            logits = getattr(outputs, "logits", None)
            if logits is None or logits.ndim != 2:
                raise EvaluationError(
                    f"{self.name} gives no class of an image: evaluate it on data for its task."
                )
            if logits.shape[1] != len(self.labels):
                raise wrong_names(self.name, logits.shape[1], len(self.labels))
            found[[i for i, _ in batch]] = logits.float().softmax(-1).cpu().numpy()
        return found

    def detect(self, images: Sequence[Image]) -> list[Boxes]:
        """Objects of each image in its own pixels, by the model's own post-processing.

        Raises:
            EvaluationError: the model finds no boxes, memory ran out, or options are given that are
                of maps alone.
        """
        self._only_whole("boxes")
        found = []
        for image in images:
            outputs = self._forward([self._whole(image)])
            if getattr(outputs, "pred_boxes", None) is None:
                raise EvaluationError(
                    f"{self.name} finds no boxes: evaluate it on data for its task."
                )
            (result,) = self._processor.post_process_object_detection(
                outputs, threshold=0.0, target_sizes=[image.shape[:2]]
            )
            boxes, labels, scores = (
                result[name].float().cpu().numpy() for name in ("boxes", "labels", "scores")
            )
            found.append(Boxes(boxes, labels.astype(np.int64), scores))
        return found

    def _only_whole(self, what: str) -> None:
        """Refuse options that would be ignored."""
        if self.options.window is not None or self.options.flip:
            raise EvaluationError(
                f"{what} are predicted of whole images as they are. Leave --window and --flip out."
            )

    def _check_window(self) -> None:
        window, square = self.options.window, self.square
        if window is None or square is None or square.takes(*window):
            return
        raise EvaluationError(
            f"{self.name} takes {square} alone, and the window is {window[0]} high and {window[1]} "
            f"wide. Use --window {square.side or min(window)}, or none."
        )

    def _views(self, image: Image, task: str) -> list[View]:
        """The inputs that show one image."""
        square = hasattr(self._processor, "do_split_image")  # EoMT sees a fixed square
        window = self.options.window
        if window is not None and self.square is not None:
            fits = image.shape[0] >= window[0] and image.shape[1] >= window[1]
            window = window if fits else None
        if window is not None:
            pixels = self._pixels(image, do_resize=False, do_pad=False, do_split_image=False)
            views = windows(pixels, window, self.options.overlap)
        elif square and task == "semantic" and self._processor.do_split_image:
            pixels = self._pixels(image, do_pad=False, do_split_image=False)
            views = windows(pixels, (min(pixels.shape[1:]),) * 2, 0.0)
        elif square:
            pixels = self._pixels(image, do_pad=False, do_split_image=False)
            views = [_padded(pixels, self._processor)]
        else:
            views = [self._whole(image, do_center_crop=False)]
        return views + [view.mirror() for view in views] if self.options.flip else views

    def _whole(self, image: Image, **options: bool) -> View:
        prepared = self._prepare(image, **options)
        pixels, mask = prepared["pixel_values"][0], prepared.get("pixel_mask")
        extent = tuple(pixels.shape[1:])
        if mask is not None:
            extent = (int(mask[0].any(1).sum()), int(mask[0].any(0).sum()))
        return View(pixels, (0, 0), extent)

    def _pixels(self, image: Image, **options: bool) -> Tensor:
        options["do_center_crop"] = False
        pixels: Tensor = self._prepare(image, **options)["pixel_values"][0]
        return pixels

    def _prepare(self, image: Image, **options: bool) -> Any:
        import PIL.Image

        known: dict[str, Any] = {k: v for k, v in options.items() if hasattr(self._processor, k)}
        if self._tokens is not None:
            known["task_inputs"] = ["semantic"]  # its processor wants one; `_forward` sets ours
        try:
            return self._processor([PIL.Image.fromarray(image)], return_tensors="pt", **known)
        except (ValueError, TypeError, KeyError) as error:
            raise EvaluationError(
                f"the image processor of {self.name} does not take an image of {image.shape[1]} x "
                f"{image.shape[0]}: {told(error)} Check its preprocessor_config.json."
            ) from error

    def _forward(self, views: Sequence[View], task: str = "", gradients: bool = False) -> Any:
        import torch

        batch = torch.stack([view.pixels for view in views])
        height, width = batch.shape[2:]
        if self.square is not None and not self.square.takes(height, width):
            raise EvaluationError(
                f"{self.name} takes {self.square} alone, and its image processor makes images of "
                f"{width} x {height}. Correct the size in its preprocessor_config.json."
            )
        inputs = {"pixel_values": batch.to(self._device, self._dtype)}
        if self._tokens is not None:
            inputs["task_inputs"] = self._tokens(task).repeat(len(views), 1).to(self._device)
        if "pixel_mask" in self._accepts:
            mask = torch.zeros((len(views), *batch.shape[2:]), dtype=torch.long)
            for i, view in enumerate(views):
                mask[i, : view.extent[0], : view.extent[1]] = 1
            inputs["pixel_mask"] = mask.to(self._device)
        try:
            with torch.inference_mode(not gradients), memory_watched(self.name):
                return self.network(**inputs)
        except EvaluationError:  # memory ran out, which is no fault of the size: said already
            raise
        except (ValueError, IndexError, RuntimeError) as error:
            step = "Correct the size in its preprocessor_config.json."
            if self.options.window is not None:
                step = "Choose another --window, or none."
            raise EvaluationError(
                f"{self.name} does not take images of {width} x {height}: {told(error)} {step}"
            ) from error


def _padded(pixels: Tensor, processor: Any) -> View:
    """A square with the image in its top left corner and black around it, as EoMT was trained."""
    import torch

    height, width = pixels.shape[1:]
    side = max(height, width)
    black = torch.zeros(3)
    if getattr(processor, "do_normalize", False):
        black = -torch.tensor(processor.image_mean) / torch.tensor(processor.image_std)
    square = black[:, None, None].expand(3, side, side).clone()
    square[:, :height, :width] = pixels
    return View(square, (0, 0), (height, width))


def _scores_of(
    outputs: Any, k: int, view: View, size: tuple[int, int], name: str
) -> DenseScores | MaskScores:
    """What a network gave for the `k`-th view of a batch, whatever its class calls it."""
    height, width = view.pixels.shape[1:]

    def extent(scores: Tensor) -> tuple[float, float]:
        return (
            view.extent[0] * scores.shape[-2] / height,
            view.extent[1] * scores.shape[-1] / width,
        )

    masks = getattr(outputs, "masks_queries_logits", None)
    classes = getattr(outputs, "class_queries_logits", None)
    if masks is None:  # DETR's names
        masks, classes = getattr(outputs, "pred_masks", None), getattr(outputs, "logits", None)
    if masks is not None and classes is not None:
        return MaskScores(classes[k], masks[k], size, extent(masks))
    logits = getattr(outputs, "logits", None)
    if logits is None or logits.ndim != 4:
        raise EvaluationError(
            f"{name} gives no scores of pixels: evaluate a segmentation model, or pass predict=."
        )
    return DenseScores(logits[k], size, extent(logits))


def _labels_of(config: Any, name: str) -> list[str]:
    """Names of a model's classes, in order; a number without a name is "unnamed" with its number.

    Raises:
        EvaluationError: config.json names none.
    """
    labels = dict(getattr(config, "id2label", None) or {})
    if sorted(labels) != list(range(len(labels))):
        top = max(labels, default=-1)
        labels = {i: labels.get(i, f"unnamed {i}") for i in range(top + 1)}
    if not labels:
        raise EvaluationError(
            f"{name} names no classes. Add id2label to its config.json, as its model card lists "
            "them."
        )
    return [str(labels[i]) for i in range(len(labels))]


def wrong_names(name: str, classes: int, names: int) -> EvaluationError:
    """The error of a network with more or fewer outputs than names for them."""
    return EvaluationError(
        f"{name} gives scores of {classes} classes and has names for {names}. Name every class, in "
        "order: id2label in its config.json, or labels= of a module of your own."
    )


def _best_device() -> str:
    import torch

    accelerator = getattr(torch, "accelerator", None)
    if accelerator is not None and accelerator.is_available():
        return str(accelerator.current_accelerator())
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def memory_watched(name: str, hint: str = "") -> Iterator[None]:
    """Make memory running out an error that says what helps.

    Args:
        name: whose work it is.
        hint: what helps, where it is not the usual.

    Raises:
        EvaluationError: it ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        out = isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text
        if not out:
            raise
        raise EvaluationError(
            f"memory ran out while {name} looked at images. "
            + (hint or "Use a smaller --batch-size, or a --window of e.g. 512.")
        ) from error
