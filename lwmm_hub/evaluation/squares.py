"""Networks that take squares alone: which ones, and of what size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# All of these fold the row of their patches into a square again, whatever the image was. Of most
# other sizes they fail; of some (2 x 8 patches as 4 x 4) they score what is nowhere in the image.
_OF_ANY_SIDE = ("DPTForSemanticSegmentation",)
_OF_ONE_SIDE = (  # that of their config: their positions are not resized
    "Data2VecVisionForSemanticSegmentation",
    "EomtForUniversalSegmentation",
    "EomtDinov3ForUniversalSegmentation",
)


@dataclass(frozen=True)
class Square:
    """The shape of all images that a network takes.

    Attributes:
        side: in pixels; None is any.
    """

    side: int | None

    def takes(self, height: int, width: int) -> bool:
        """Whether an image of that size is such a square."""
        return height == width and self.side in (None, height)

    def __str__(self) -> str:
        """For messages: "squares", or "squares of 64 x 64 pixels"."""
        return "squares" if self.side is None else f"squares of {self.side} x {self.side} pixels"


def square_of(model: Any) -> Square | None:
    """What a model takes; None where it takes images of any shape.

    Args:
        model: of a transformers class, or any module.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if name not in _OF_ANY_SIDE + _OF_ONE_SIDE:
        return None
    fixed = name in _OF_ONE_SIDE or getattr(config, "is_hybrid", False)
    side = getattr(config, "image_size", None)
    return Square(side if fixed and isinstance(side, int) else None)
