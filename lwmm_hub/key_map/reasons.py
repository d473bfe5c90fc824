"""Why tensors of a file are left out, or which parts of them: gathered parameter by parameter."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lwmm_hub.key_map.naming import Source


class Reasons:
    """Reasons by key. A fused tensor has one for each part, told apart where they differ in fate.

    >>> reasons = Reasons()
    >>> reasons.add(Source("attn.kv", 1, 2), "attn.v", "absent in donor")
    >>> reasons.told(used={"attn.kv"})
    {'attn.kv': 'part 2 of 2 (attn.v): absent in donor'}
    >>> reasons.add(Source("attn.kv", 0, 2), "attn.k", "absent in donor")
    >>> reasons.told(used=())
    {'attn.kv': 'absent in donor'}
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        """`known`: key -> what is told of it already, of whole tensors or of parts."""
        self._known = dict(known or {})
        self._added: dict[str, list[tuple[str, str]]] = {}

    def add(self, source: Source, name: str, why: str) -> None:
        """Say why the parameter `name`, which lies there, is left out."""
        part = f"part {source.part + 1} of {source.parts} ({name}): " if source.parts > 1 else ""
        self._added.setdefault(source.key, []).append((part + why, why))

    def told(self, used: Collection[str]) -> dict[str, str]:
        """Key -> reason.

        Args:
            used: keys of which some part is used; of the others a reason may be that of all parts.
        """
        found = dict(self._known)
        for key, added in self._added.items():
            apart = key in used or key in found
            texts = [part if apart else why for part, why in added]
            if key in found:
                texts.insert(0, found[key])
            found[key] = "; ".join(dict.fromkeys(texts))
        return found
