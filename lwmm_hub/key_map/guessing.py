"""What to say where the depth order is a guess: that of names in a file that keeps no other."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lwmm_hub.key_map.sharing import KeyMap


def guess_warnings(
    key_map: KeyMap, label: str, layers: Sequence[str], weights: Sequence[Sequence[float]]
) -> list[str]:
    """A warning where layers that are merged stand in an order that their names suggest.

    None where it makes no difference: where all have the same weights, and where their names differ
    in numbers alone, which count.

    Args:
        key_map: of the models.
        label: the anchor's.
        layers: those that are merged, in depth order.
        weights: per layer, those of a schedule; none where they do not come from one.
    """
    among = set(key_map.guessed)
    guessed = [layer for layer in layers if layer in among]
    same = len({tuple(row) for row in weights}) < 2
    if same or len({re.sub(r"[0-9]+", "0", layer) for layer in guessed}) < 2:
        return []
    some = "of the layers" if len(guessed) == len(layers) else f"of {len(guessed)} layers"
    return [
        f"The order {some} ({guessed[0]} to {guessed[-1]}) is guessed from their names and may be "
        f"wrong, and so may be their weights: give a .pth file of {label}, which keeps the order "
        "in which modules were made, or put beside it the config.json that names its transformers "
        "class. Or merge with --schedule isotropic or --weights FILE, which ask for no order."
    ]
