"""A merged folder -> one commit on the Hub, with its licence checked and nothing local in it."""

from __future__ import annotations

from lwmm_hub.publishing.contents import public_config
from lwmm_hub.publishing.pushing import check_push, publish
from lwmm_hub.publishing.targets import KEPT

__all__ = ["KEPT", "check_push", "public_config", "publish"]
