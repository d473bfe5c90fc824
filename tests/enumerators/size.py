"""How big a SegFormer is: the few numbers that every enumerator starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class SegformerSize:
    """Depth, width, head count and reduction of the four stages, then the head."""

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    sr_ratios: tuple[int, int, int, int] = (8, 4, 2, 1)
    decoder_width: int = 256
    mlp_ratio: int = 4
    num_classes: int = 19

    def with_classes(self, num_classes: int) -> SegformerSize:
        return replace(self, num_classes=num_classes)


B0 = SegformerSize(depths=(2, 2, 2, 2), widths=(32, 64, 160, 256))
B1 = SegformerSize(depths=(2, 2, 2, 2), widths=(64, 128, 320, 512))
B5 = SegformerSize(depths=(3, 6, 40, 3), widths=(64, 128, 320, 512), decoder_width=768)
TINY = SegformerSize(
    depths=(2, 1, 1, 2), widths=(8, 16, 24, 32), heads=(1, 2, 3, 4), decoder_width=16, num_classes=5
)
