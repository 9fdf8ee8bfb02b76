"""The registered networks: create one by name, or get it trained."""

from .pretrained import pretrained
from .registry import NETWORKS, create

__all__ = ["NETWORKS", "create", "pretrained"]
