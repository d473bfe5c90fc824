"""Tiny models of the Hub's families, built with the installed transformers; needs torch.

Nothing here imports `lwmm_hub`, and no key of a file is spelled out: `roles` says what each module
of a backbone does by its place in the built model, `building` gives tensors of one role descended
values, `folders` writes models down and finds each tensor's key in the file by its bytes.
"""

from .building import Built, build, descend, describe
from .configs import FAMILIES, SPECIMENS, Specimen
from .folders import DIALECTS, Dialect, keys_by_tensor, write_folder
from .order import last_use
from .roles import UNUSED, backbone_roles

__all__ = [
    "DIALECTS",
    "FAMILIES",
    "SPECIMENS",
    "UNUSED",
    "Built",
    "Dialect",
    "Specimen",
    "backbone_roles",
    "build",
    "descend",
    "describe",
    "keys_by_tensor",
    "last_use",
    "write_folder",
]
