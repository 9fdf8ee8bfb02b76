"""A pruning problem: one trained network, its data, and everything about them that no plan changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import nn

from ..common.device import with_gradients
from ..common.expect import expect
from ..common.failure import described
from ..common.outputs import OutputError
from ..common.settings import Count, Seed
from ..data import DataSplits, check_data
from ..data.objective import Loss, Metric, check_logits, check_metric
from . import importance
from .cost import Cost
from .errors import PruningError
from .groups import Plan, PruningGroup
from .importance import ImportanceFunction
from .inspection import Inspection, inspect
from .output_change import accumulated, output_changes
from .own_tensors import OwnTensors
from .patterns import LayersConfig
from .suitability import check_suitable
from .surgery import build

BATCH, PIXELS = 125, 2**17
"""At most so many images, and so many pixels, are differentiated at a time."""
CHANGE_IMAGES = 128
"""Images for `PruningProblem.output_changes`. On ResNet-20, 500 give no better plans."""


@dataclass(frozen=True)
class ProblemConfig(LayersConfig):
    """Which layers may lose filters, how filters are ranked, and how the pruning groups are checked.

    Raises:
        ValueError: A field has a value that is not allowed; the message names the field.
    """

    importance: Annotated[str | ImportanceFunction, tyro.conf.arg(constructor=str)] = "l1"
    """Ranks the filters of a group: l1, l2, bn_scale, fpgm (geometric median), taylor (first order), output_change,
    random, a name of your own, see `register_importance`, or a function."""
    calibration_images: Count = 500
    """Images of the calibration split for BatchNorm statistics and for the importance `taylor`."""
    # With 1,000, accuracies on 5,000 reward images are the same on VGG-16 and ResNet-20. With 250, the original
    # networks lose 0.1 to 0.2 points.
    prove: bool = True
    """Check for every group that cutting its filters equals masking them."""
    problem_seed: Seed = 0
    """Seed of the crops for recalibration, of the importance `random` and of finetuning. `reset` has its own seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        importance.find(self.importance)


@dataclass(frozen=True, eq=False)
class PruningProblem:
    """A trained network, its data, its pruning groups, the ranking of their filters, and the cost of every plan.

    Make one with `PruningProblem.create`; build it once and hand it on. Nothing in it ever changes.

    Example:
        >>> problem = PruningProblem.create(model, data)
        >>> print(problem.inspection)  # what can be pruned, what cannot, and why
        >>> small = problem.build(tuple(filters // 2 for filters in problem.full_plan))
    """

    model: nn.Module = field(repr=False)
    """The original network: a copy without hooks, in float32 and eval mode, on the CPU."""
    data: DataSplits = field(repr=False)
    inspection: Inspection = field(repr=False)
    """What can be pruned, what is protected and why, and how well that is proven; prints as a table."""
    scores: Mapping[str, torch.Tensor] = field(repr=False)
    """Name of a group -> importance of its filters, float32 [C]."""
    ranking: Mapping[str, torch.Tensor] = field(repr=False)
    """Name of a group -> indices of its filters, the most important first, int64 [C]."""
    cost: Cost = field(repr=False)
    """MACs and parameters of every plan."""
    config: ProblemConfig
    metric: Metric | None = None
    """Scores a network; None for top-1 accuracy, or for mean IoU where labels are masks."""
    loss: Loss | None = None
    """Trains a network; None for cross-entropy."""

    @classmethod
    def create(
        cls,
        model: nn.Module,
        data: DataSplits,
        config: ProblemConfig | None = None,
        *,
        metric: Metric | None = None,
        loss: Loss | None = None,
    ) -> PruningProblem:
        """Inspect a network and rank its filters.

        Args:
            model: The trained network: any device, precision and mode. It is copied and never changed. Of a network
                with several outputs choose one, see `prune_env.one_output`.
            data: The four splits.
            config: How to rank and check; an `EnvConfig` is one.
            metric: Scores a network instead of top-1 accuracy or mean IoU. Environment, archive and `finalise` call its
                result the accuracy. Data without classes need one.
            loss: Trains pruned networks instead of cross-entropy. Data without classes need one as soon as something
                is trained.

        Returns:
            The problem. A warning names every layer that cannot be pruned, and why.

        Raises:
            TypeError: `model`, `data` or `config` is of another type.
            ValueError: Network and data do not fit together, or no group of filters can be pruned.
        """
        expect(
            model, nn.Module, "the model must be a network (nn.Module)", 'make_env("small_cnn", "digits") takes names'
        )
        check_data(data)
        expect(config, (ProblemConfig, type(None)), "config must be a ProblemConfig or EnvConfig", "write EnvConfig()")
        config = config or ProblemConfig()
        check_metric(metric, data)
        check_suitable(model)
        original = build(model, (), {}, ()).cpu().float().eval()  # a plan without groups: a copy without hooks
        with OwnTensors(model):
            _check_output(original, data)
        inspection = inspect(
            model,
            data.example_input,
            prove=config.prove,
            exclude=config.exclude,
            only=config.only,
            linear=config.linear,
        )
        inspection.warn_protected()
        inspection.require_groups()
        scores = importance.scores(
            config.importance,
            original,
            inspection.groups,
            batches=_labelled_batches(data, config),
            seed=config.problem_seed,
        )
        cost = Cost(original, inspection.groups, data.example_input)
        return cls(original, data, inspection, scores, importance.ranking(scores), cost, config, metric, loss)

    @property
    def groups(self) -> tuple[PruningGroup, ...]:
        """The pruning groups in forward order."""
        return self.inspection.groups

    @cached_property
    def full_plan(self) -> Plan:
        """The plan that keeps every filter."""
        return tuple(group.filters for group in self.groups)

    @cached_property
    def output_changes(self) -> tuple[np.ndarray, ...]:
        """For each group, how much the outputs change without its k least important filters, float64 [C + 1].

        See `prune_env.pruning.output_change`. The first access differentiates the network on some calibration images.
        """
        batches = (images for images, _ in _batches(self.data, min(CHANGE_IMAGES, self.config.calibration_images)))
        changes = output_changes(self.model, self.groups, batches, self.config.problem_seed)
        known = [change for change in changes.values() if change.any()]
        usual = torch.cat(known).mean() if known else torch.tensor(1.0)
        return tuple(
            # Filters whose change is unknown count like an average one, or they would be removed first.
            accumulated(change if change.any() else usual.expand(len(change)), self.ranking[name])
            for name, change in changes.items()
        )

    def build(self, plan: Plan) -> nn.Module:
        """Return the pruned network of a plan: new, smaller, with the original weights and BatchNorm statistics."""
        return build(self.model, self.groups, self.ranking, plan)

    def calibration_crops(self) -> torch.Tensor:
        """Return the images for BatchNorm recalibration: augmented as in training, normalised, float32 [N, C, H, W].

        They are the same at every call. Statistics of centred images differ from those that the weights were trained
        with.
        """
        generator = torch.Generator().manual_seed(self.config.problem_seed)
        split = self.data.calibration.balanced(self.config.calibration_images)
        rows = torch.randperm(len(split), generator=generator)
        return self.data.augmented(split.images[rows], generator)


@with_gradients  # tensors of inference mode could not be differentiated through
def _labelled_batches(data: DataSplits, config: ProblemConfig) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return normalised calibration images and their labels where the importance needs them."""
    if not importance.find(config.importance).needs_batches:
        return []
    if config.importance == "taylor" and not data.classes:
        raise ValueError(
            f"importance 'taylor' differentiates the cross-entropy, which needs classes; data {data.name!r} has "
            "floating-point targets: choose another importance"
        )
    return _batches(data, config.calibration_images)


def _batches(data: DataSplits, images: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return normalised calibration images and their labels, in batches whose feature maps fit into memory."""
    split = data.calibration.balanced(images)
    size = max(1, min(BATCH, PIXELS // data.example_input.shape[-2:].numel()))
    batches = zip(split.images.split(size), split.labels.split(size), strict=True)
    return [(data.normalise(images), labels.long() if data.has_masks else labels) for images, labels in batches]


def _check_output(model: nn.Module, data: DataSplits) -> None:
    """Check that the network takes the images and returns one logit for every class, of every pixel if it has one."""
    try:
        with torch.inference_mode():
            logits = model(data.example_input)
    except (PruningError, OutputError):
        raise
    except Exception as error:  # a forward pass may raise anything
        raise ValueError(
            f"the network takes no images of shape {data.image_shape} (C, H, W): {described(error)}"
        ) from error
    check_logits(logits, data)
