"""A `KeyMap` without layers that a donor turned out to lack when weights were read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lwmm_hub.key_map.reasons import Reasons
from lwmm_hub.key_map.sharing import KeyMap, SharedParameter


def leave_out(key_map: KeyMap, reasons: Mapping[tuple[int, str], str]) -> KeyMap:
    """Take layers from donors, and from the map where no donor has them any more.

    Args:
        key_map: what the models share by name and shape.
        reasons: (donor, layer) -> why the donor's parameters of that layer are not used.
    """
    reasons = {place: why for place, why in reasons.items() if place not in key_map.left_out}
    if not reasons:
        return key_map
    kept, unused = Reasons(key_map.kept), [Reasons(keys) for keys in key_map.unused]
    shared: list[SharedParameter] = []
    for parameter in key_map.shared:
        sources = list(parameter.sources)
        found = []
        for i, source in enumerate(parameter.sources[1:], start=1):
            why = reasons.get((i, parameter.layer))
            if why is not None and source is not None:
                sources[i] = None
                found.append(why)
                unused[i - 1].add(source, parameter.name, why)
        if any(sources[1:]):
            shared.append(parameter._replace(sources=tuple(sources)) if found else parameter)
        elif sources[0] is not None:
            kept.add(sources[0], parameter.name, "; ".join(dict.fromkeys(found)))
    used = {parameter.part for parameter in shared}
    keys = [
        {source.key for parameter in shared if (source := parameter.sources[i]) is not None}
        for i in range(len(unused) + 1)
    ]
    return replace(
        key_map,
        shared=tuple(shared),
        parts=tuple(part for part in key_map.parts if part.name in used),
        kept=kept.told(keys[0]),
        unused=tuple(r.told(k) for r, k in zip(unused, keys[1:], strict=True)),
        left_out={**key_map.left_out, **reasons},
    )
