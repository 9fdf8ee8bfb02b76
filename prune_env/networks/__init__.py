"""Get networks by name, and register your own."""

from . import alexnet, resnet, small_cnn, vgg  # noqa: F401  registers them
from .registry import NetworkEntry, create, list_networks, network_entry, register_network

__all__ = ["NetworkEntry", "create", "list_networks", "network_entry", "register_network"]
