"""Check that cutting filters equals masking them.

A filter is masked where its output is read: the inputs of every layer that consumes it are set to zero there. This is
behind BatchNorm and activation, so that a shift (beta != 0) has no effect. Checks run on the CPU in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from ..common.failure import described
from ..common.settings import Count, Seed, checked
from .copies import shared_copy
from .errors import PruningError
from .forward import Example, first_input, inputs_for, output_tensors, progress_bar, with_first_input
from .groups import Protected, PruningGroup
from .modules import spec_of
from .surgery import Removed, cut, removed_channels

TOLERANCE = 1e-4
"""Largest difference between cutting and masking that counts as equal, as a fraction of the largest output."""
VISIBLE = 1e-3
"""Effect of masking on the output, as a fraction of it, below which float32 cannot show a wrong cut."""
VISIBLE_IN_FLOAT64 = 1e-9
PLANS = 24
"""Number of random plans until filters count as invisible; some filters behind ReLU and GroupNorm show in few of them.
"""
JOINT = "joint"
"""Key of the difference for all groups together."""
NOT_THE_SAME = "cutting their filters is not the same as masking them"
INVISIBLE = "their filters have no effect on the output with any weights, so cutting them cannot be checked"


def prove(
    model: nn.Module,
    groups: Sequence[PruningGroup],
    samples: Example,
    ranking: Mapping[str, torch.Tensor] | None = None,
    plans_per_group: int = 2,
    seed: int = 0,
) -> dict[str, float]:
    """Return how much cutting differs from masking the same filters, for random plans.

    Filters that hardly affect the output are compared in float64, as a fraction of the effect of masking them. Filters
    that do not affect it at all are compared with noise on all weights.

    Args:
        model: The network, which does not change.
        groups: Its pruning groups.
        samples: Inputs of the network, float [B, C, H, W], or a sequence of tensors for several inputs.
        ranking: Name of a group -> indices of its filters, the first of which are kept; None for random filters.
        plans_per_group: Number of random plans for each group, and for all together.
        seed: Seed of the plans.

    Returns:
        Name of a group, or 'joint' for all groups together -> the largest difference of the outputs, as a fraction of
        the largest output of the original network. Infinite if the cut network does not run, or if the filters do not
        affect the output in any of the plans.

    Raises:
        PruningError: The network does not run on the CPU in float32.
    """
    plans_per_group = checked("plans_per_group", plans_per_group, Count)
    comparison = _Comparison(model, groups, samples, ranking, checked("seed", seed, Seed))
    result = {}
    for number, group in enumerate(groups):
        result[group.name] = max(comparison.difference([number])[0] for _ in range(plans_per_group))
    result[JOINT] = max(comparison.difference(range(len(groups)))[0] for _ in range(plans_per_group))
    return result


def proven_and_failed(
    model: nn.Module, groups: Sequence[PruningGroup], samples: Example, *, seed: int = 0, progress: bool = False
) -> tuple[list[PruningGroup], list[Protected], dict[str, float]]:
    """Separate the groups for which cutting equals masking from the others.

    Args:
        model: The network, which does not change.
        groups: Its pruning groups.
        samples: Inputs of the network, as for `prove`.
        seed: Seed of the random plans.
        progress: Whether to show a progress bar on stderr.

    Returns:
        The proven groups, renamed conv_0, conv_1, ...; the filters of the other groups, with the reason; and the
        difference found for each proven group by its new name, and for all of them together under 'joint'.

    Raises:
        PruningError: The network does not run on the CPU in float32.
    """
    with progress_bar(total=len(groups), desc="proving", unit="group", disable=not progress) as bar:
        comparison = _Comparison(model, groups, samples, None, seed, after_each_run=partial(bar.update, 0))
        proven, failed = _proven_alone(comparison, groups, bar)
        bar.set_description("proving all together", refresh=False)
        joint, _ = comparison.difference(list(proven))
        if not joint <= TOLERANCE:
            bar.total += len(proven)
            together, joint, reasons = _proven_together(comparison, list(proven), bar)
            failed |= reasons
            proven = {number: proven[number] for number in together}
    kept = [replace(groups[number], name=f"conv_{place}") for place, number in enumerate(proven)]
    differences = {group.name: value for group, value in zip(kept, proven.values(), strict=True)}
    protected = [Protected(groups[number].layers, groups[number].filters, failed[number]) for number in failed]
    return kept, protected, differences | ({JOINT: joint} if kept else {})


def _proven_alone(
    comparison: _Comparison, groups: Sequence[PruningGroup], bar: Any
) -> tuple[dict[int, float], dict[int, str]]:
    """Number of a group that can be cut alone -> difference; number of one that cannot -> reason."""
    proven, failed = {}, {}
    for number in range(len(groups)):
        difference, reason = comparison.difference([number])
        if difference <= TOLERANCE:
            proven[number] = difference
        else:
            failed[number] = reason
        bar.update()
    return proven, failed


def _proven_together(
    comparison: _Comparison, numbers: Sequence[int], bar: Any
) -> tuple[list[int], float, dict[int, str]]:
    """Add one group after another, leaving out those that cannot be cut together with the ones before."""
    together: list[int] = []
    joint, failed = float("inf"), {}
    for number in numbers:
        difference, reason = comparison.difference([*together, number])
        if difference <= TOLERANCE:
            together.append(number)
            joint = difference
        else:
            failed[number] = f"together with other groups, {reason}"
        bar.update()
    return together, joint, failed


@contextmanager
def masked(
    model: nn.Module, groups: Sequence[PruningGroup], keep: Mapping[str, torch.Tensor | Sequence[int]]
) -> Iterator[nn.Module]:
    """Let a network compute as if it had only some of its filters, within a block.

    Hooks at the inputs of the consuming layers set the other channels to zero; they are removed at the end.

    Args:
        model: The network, with its shape unchanged.
        groups: Its pruning groups.
        keep: Name of a group -> indices of the filters to keep, ascending.

    Yields:
        The network.
    """
    with zeros_at_consumers(model, removed_channels(groups, keep)):
        yield model


@contextmanager
def zeros_at_consumers(model: nn.Module, removed: Removed) -> Iterator[None]:
    """Set the removed channels of layers' inputs to zero, within a block."""
    handles = [
        model.get_submodule(path).register_forward_pre_hook(partial(_zero_channels, gone), with_kwargs=True)
        for (path, side), gone in removed.items()
        if side == "in"
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero_channels(gone: torch.Tensor, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    images, spec = first_input(args, kwargs), spec_of(module)
    assert spec is not None, "groups contain registered modules only"
    images = images.index_fill(spec.channel_axis, gone.to(images.device), 0.0)
    return with_first_input(images, args, kwargs)


class _Comparison:
    """Draws random plans and compares the cut network with the masked one."""

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[PruningGroup],
        samples: Example,
        ranking: Mapping[str, torch.Tensor] | None,
        seed: int,
        after_each_run: Callable[[], object] = lambda: None,
    ) -> None:
        self._groups, self._ranking, self._after_each_run = groups, ranking, after_each_run
        self._generator = torch.Generator().manual_seed(seed)
        self._samples = samples
        self._network = shared_copy(model).cpu().float().eval()
        try:
            self._original = self._run(self._network)
        except Exception as error:
            raise PruningError(
                f"a copy of the network does not run in float32 on the CPU ({described(error)}), where "
                "groups are proven; turn the proof off, or do not cast inside the network"
            ) from error
        # Differences are relative to the original outputs, because those of a pruned network may be almost zero.
        self._scale = max(_largest(self._original), torch.finfo(torch.float32).tiny)

    def difference(self, chosen: Sequence[int]) -> tuple[float, str]:
        """The relative difference for one random plan of the chosen groups, and why they are not cut if it is large.

        Other plans are drawn if masking the filters of one has no effect on the output.
        """
        if not chosen:
            return 0.0, "nothing is cut"
        for _ in range(PLANS):
            keep = {group.name: torch.arange(group.filters) for group in self._groups}
            for number in chosen:
                keep[self._groups[number].name] = self._draw(self._groups[number])
            try:
                worst = self._difference(removed_channels(self._groups, keep))
            except _OtherShape as error:
                return float("inf"), f"{NOT_THE_SAME} ({error})"
            except Exception as error:
                return float("inf"), f"{NOT_THE_SAME} (the cut network does not run: {described(error)})"
            if worst is not None:
                worst = worst if worst == worst else float("inf")  # not a number
                return worst, f"{NOT_THE_SAME} (outputs differ by {worst:.2g} of the largest)"
        return float("inf"), INVISIBLE

    def _difference(self, removed: Removed) -> float | None:
        """The difference for one plan; None if masking its filters has no effect, not even with other weights."""
        difference, effect = self._compare(self._network, self._original, removed)
        if difference > TOLERANCE * self._scale or effect >= VISIBLE * self._scale or difference != difference:
            return difference / self._scale
        # Then in float64; and if that shows no effect either (a branch whose weights are zero), with other weights.
        noisy = self._with_noise()
        for network, least in (
            (shared_copy(self._network).double(), VISIBLE_IN_FLOAT64),
            (shared_copy(noisy).double(), VISIBLE_IN_FLOAT64),
            (noisy, VISIBLE),
        ):
            try:
                original = self._run(network)
                difference, effect = self._compare(network, original, removed)
            except RuntimeError:
                if network is noisy:
                    raise
                continue  # the network casts to float32, which cannot be combined with float64
            if effect > least * _largest(original):
                return difference / effect
        return None

    def _with_noise(self) -> nn.Module:
        """The network with noise on all weights and statistics, so that no branch is zero."""
        network = cut(self._network, {})
        state = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
        with torch.no_grad():
            for name, tensor in state.items():
                spread = float(tensor.std(correction=0)) or float(tensor.abs().max()) or 0.3
                noise = spread * torch.randn(tensor.shape, generator=self._generator)
                tensor.copy_((tensor + noise).abs() + 0.1 if name.endswith("running_var") else tensor + noise)
        return network

    def _compare(self, network: nn.Module, original: list[torch.Tensor], removed: Removed) -> tuple[float, float]:
        """Largest differences between cut and masked outputs, and between masked and original ones."""
        with zeros_at_consumers(network, removed):
            expected = self._run(network)
        found = self._run(cut(network, removed, share=True))
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (expected, found)]
        if shapes[0] != shapes[1]:
            raise _OtherShape(f"the output changes its shape from {shapes[0]} to {shapes[1]}")
        effect = _largest([masked - full for masked, full in zip(expected, original, strict=True)])
        return _largest([one - other for one, other in zip(found, expected, strict=True)]), effect

    def _draw(self, group: PruningGroup) -> torch.Tensor:
        """Indices of a quarter to three quarters of a group's filters, at least one, ascending."""
        low, high = max(1, group.filters // 4), max(1, 3 * group.filters // 4)
        count = int(torch.randint(low, high + 1, (), generator=self._generator))
        if self._ranking is None:
            order = torch.randperm(group.filters, generator=self._generator)
        else:
            order = self._ranking[group.name]
        return order[:count].sort().values

    def _run(self, network: nn.Module) -> list[torch.Tensor]:
        with torch.inference_mode():
            outputs = output_tensors(network(*inputs_for(network, self._samples)))
        self._after_each_run()
        return outputs


class _OtherShape(Exception):
    """The outputs of the cut network have other shapes, which the message names."""


def _largest(tensors: Sequence[torch.Tensor]) -> float:
    """Largest absolute value in some tensors; infinite if one is not a number."""
    values = [float(tensor.abs().max()) for tensor in tensors if tensor.numel()]
    return float("inf") if any(value != value for value in values) else max(values, default=0.0)
