"""VGG-16."""

from __future__ import annotations

from torch import nn

from prune_env.networks import create


def test_parameters_have_the_names_and_shapes_of_torchvision() -> None:
    from torchvision.models import vgg16_bn

    ours, theirs = create("vgg16"), vgg16_bn(weights=None)
    shapes = {name: tensor.shape for name, tensor in theirs.features.state_dict(prefix="features.").items()}
    assert {name: t.shape for name, t in ours.state_dict().items() if name.startswith("features.")} == shapes
    assert isinstance(ours.classifier, nn.Linear)
    assert ours.classifier.in_features == 512
