"""Networks of torchvision and timm by name: torchvision:resnet18, timm:resnet18."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..common.command import missing_packages

LIBRARIES = ("torchvision", "timm")


def library_of(spec: str) -> tuple[str, str] | None:
    """Return package and model name of torchvision:NAME or timm:NAME, or None for another name of a network."""
    package, colon, name = spec.partition(":")
    return (package, name) if colon and package in LIBRARIES else None


def check_library_model(spec: str) -> None:
    """Check the name of a model of torchvision or timm.

    Raises:
        ImportError: The package is not installed.
        ValueError: It has no such model.
    """
    package, name = _parts(spec)
    if missing_packages([package]):
        raise ImportError(f"network {spec!r} needs the package {package}, not installed: pip install {package}")
    if name not in (names := _list_models(package)):
        similar = [one for one in names if name[:4] and one.startswith(name[:4])][:8]
        hint = f"; similar names: {', '.join(similar)}" if similar else ""
        raise ValueError(f"network {spec!r}: {package} has no classifier {name!r}{hint}")


def library_model(spec: str, num_classes: int | None, *, pretrained: bool) -> nn.Module:
    """Make a model of torchvision or timm. torch's random state is restored.

    Args:
        spec: torchvision:NAME or timm:NAME.
        num_classes: Number of logits; None for that of the model.
        pretrained: Take the package's weights, which it downloads once.

    Raises:
        ImportError: The package is not installed.
        ValueError: It has no such model, or pretrained weights have another number of classes.
    """
    check_library_model(spec)
    package, name = _parts(spec)
    options: dict[str, Any] = {} if pretrained or num_classes is None else {"num_classes": num_classes}
    with torch.random.fork_rng(devices=[]):
        if package == "timm":
            import timm

            return timm.create_model(name, pretrained=pretrained, **options)
        from torchvision.models import get_model

        return get_model(name, weights="DEFAULT" if pretrained else None, **options)


def library_normalisation(spec: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation that a model of torchvision or timm was trained with."""
    package, name = _parts(spec)
    if package == "timm":
        import timm

        config = timm.get_pretrained_cfg(name)
        if config is not None:
            return tuple(config.mean), tuple(config.std)
    return (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _parts(spec: str) -> tuple[str, str]:
    found = library_of(spec)
    assert found is not None
    return found


def _list_models(package: str) -> list[str]:
    if package == "timm":
        import timm

        return list(timm.list_models())
    from torchvision import models

    return list(models.list_models(module=models))
