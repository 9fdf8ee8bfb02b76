"""The proof that surgery is right: cutting filters out equals switching them off.

A filter is switched off where its output is read: zeros at the inputs of every layer that consumes it, behind
BatchNorm and activation, so that a shift (beta != 0) does not leak. Runs on the CPU, in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .copies import PruningError, twin
from .groups import Protected, PruningGroup
from .surgery import Removed, cut, first_input, removed_channels
from .trace import Example, inputs_for, output_tensors, progress_bar

TOLERANCE = 1e-4
VISIBLE = 1e-3
"""An effect on the output, as a fraction of it, below which float32 could not tell a wrong cut from a right one."""
EXACT = 1e-9
"""The same for float64."""
PLANS = 24
"""How many plans are drawn before filters count as invisible: behind ReLU and GroupNorm, some show in few draws."""
JOINT = "joint"
NOT_THE_SAME = "cutting their filters is not the same as switching them off"
INVISIBLE = "their filters do not show at the output, whatever the weights, so nothing can be proven of cutting them"


def prove(
    model: nn.Module,
    groups: Sequence[PruningGroup],
    samples: Example,
    ranking: Mapping[str, torch.Tensor] | None = None,
    plans_per_group: int = 2,
    seed: int = 0,
) -> dict[str, float]:
    """How far the cut network is from the one with the same filters switched off, for random plans.

    samples  float [B, C, H, W], the network's input; a sequence of tensors for a network that takes several
    ranking  which filters go first; None for random filters
    Returns the largest difference of outputs as a fraction of the unpruned network's largest output: for each group
    alone under its agent id, for all groups together under 'joint'. Infinite where the cut network does not run, and
    where filters show in none of the draws.
    Filters that hardly show at the output are compared in float64, as a fraction of what switching them off changes,
    and those that do not show at all with noise on all weights.
    """
    check = _Check(model, groups, samples, ranking, seed)
    result = {}
    for number, group in enumerate(groups):
        result[group.name] = max(check.difference([number])[0] for _ in range(plans_per_group))
    result[JOINT] = max(check.difference(range(len(groups)))[0] for _ in range(plans_per_group))
    return result


def proven_and_failed(
    model: nn.Module, groups: Sequence[PruningGroup], samples: Example, *, seed: int = 0, progress: bool = False
) -> tuple[list[PruningGroup], list[Protected], dict[str, float]]:
    """The groups for which cutting equals switching off to 1e-4, renumbered conv_0, conv_1, ...; those that fail, and
    why; and the difference found for each that holds, by its new agent id, and for all together under 'joint'."""
    proven: dict[int, float] = {}
    failed = []

    def fails(number: int, reason: str) -> None:
        group = groups[number]
        failed.append(Protected(group.layers, group.filters, reason))

    with progress_bar(total=len(groups), desc="proving", unit="group", disable=not progress) as bar:
        check = _Check(model, groups, samples, None, seed, tick=partial(bar.update, 0))
        for number in range(len(groups)):
            difference, reason = check.difference([number])
            if difference <= TOLERANCE:
                proven[number] = difference
            else:
                fails(number, reason)
            bar.update()
        bar.set_description("proving all together", refresh=False)
        joint, _ = check.difference(list(proven))
        if not joint <= TOLERANCE:  # one at a time, then: what breaks those before it stays whole
            bar.total += len(proven)
            together: list[int] = []
            for number in proven:
                difference, reason = check.difference([*together, number])
                if difference <= TOLERANCE:
                    together.append(number)
                    joint = difference
                else:
                    fails(number, f"together with other groups, {reason}")
                bar.update()
            proven = {number: proven[number] for number in together}
    kept = [replace(groups[number], name=f"conv_{place}") for place, number in enumerate(proven)]
    differences = {group.name: value for group, value in zip(kept, proven.values(), strict=True)}
    return kept, failed, differences | ({JOINT: joint} if kept else {})


@contextmanager
def masked(
    model: nn.Module, groups: Sequence[PruningGroup], keep: Mapping[str, torch.Tensor | Sequence[int]]
) -> Iterator[nn.Module]:
    """Within the block, `model` computes as if only the filters in `keep` (agent id -> indices) were there.

    Its shape stays; hooks at the inputs of the consuming layers put zeros, and are gone after the block.
    """
    with zeros_at_consumers(model, removed_channels(groups, keep)):
        yield model


@contextmanager
def zeros_at_consumers(model: nn.Module, removed: Removed) -> Iterator[None]:
    """Within the block, layers of `model` read zeros at the removed positions of their inputs."""
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
    images = first_input(args, kwargs)
    if isinstance(module, nn.Linear):
        axis = -1
    elif isinstance(module, _ConvNd):
        axis = -1 - len(module.kernel_size)
    else:
        axis = 1
    images = images.index_fill(axis, gone.to(images.device), 0.0)
    return ((images, *args[1:]), kwargs) if args else ((), {**kwargs, next(iter(kwargs)): images})


class _Check:
    """Draws plans and compares the two networks."""

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[PruningGroup],
        samples: Example,
        ranking: Mapping[str, torch.Tensor] | None,
        seed: int,
        tick: Callable[[], object] = lambda: None,
    ) -> None:
        """`tick` is called after every pass."""
        self._groups, self._ranking, self._tick = groups, ranking, tick
        self._generator = torch.Generator().manual_seed(seed)
        self._samples = samples
        self._network = twin(model).cpu().float().eval()
        try:
            self._unpruned = self._run(self._network)
        except Exception as error:
            raise PruningError(
                f"a copy of the network does not run in float32 on the CPU ({type(error).__name__}: {error}), where "
                "groups are proven; turn the proof off, or do not cast inside the network"
            ) from error
        # The unpruned network's outputs are the scale: those of a pruned one may all but vanish.
        self._scale = max(_largest(self._unpruned), torch.finfo(torch.float32).tiny)

    def difference(self, chosen: Sequence[int]) -> tuple[float, str]:
        """Relative difference for one random plan of the chosen groups, and what it says against cutting them.

        A plan whose filters do not show at the output (dead ones, say) says nothing: others are drawn.
        """
        if not chosen:
            return 0.0, "nothing is cut"
        for _ in range(PLANS):
            keep = {group.name: torch.arange(group.filters) for group in self._groups}
            for number in chosen:
                keep[self._groups[number].name] = self._draw(self._groups[number])
            try:
                worst = self._difference(removed_channels(self._groups, keep))
            except _Differs as error:
                return float("inf"), f"{NOT_THE_SAME} ({error})"
            except Exception as error:
                return float("inf"), f"{NOT_THE_SAME} (the cut network does not run: {type(error).__name__}: {error})"
            if worst is not None:
                worst = worst if worst == worst else float("inf")  # not a number
                return worst, f"{NOT_THE_SAME} (outputs differ by {worst:.2g} of the largest)"
        return float("inf"), INVISIBLE

    def _difference(self, removed: Removed) -> float | None:
        """Of one plan; None if switching its filters off changes nothing, not even with other weights."""
        difference, effect = self._compare(self._network, self._unpruned, removed)
        if difference > TOLERANCE * self._scale or effect >= VISIBLE * self._scale or difference != difference:
            return difference / self._scale
        # In float64, then; and where that shows nothing (a branch that begins at zero), with noise on all weights.
        lively = self._lively()
        for network, least in (
            (twin(self._network).double(), EXACT),
            (twin(lively).double(), EXACT),
            (lively, VISIBLE),
        ):
            try:
                unpruned = self._run(network)
                difference, effect = self._compare(network, unpruned, removed)
            except RuntimeError:
                if network is lively:
                    raise
                continue  # the network casts, and would mix precisions
            if effect > least * _largest(unpruned):
                return difference / effect
        return None

    def _lively(self) -> nn.Module:
        """The network with fresh noise on all weights and statistics, so that no branch is silent."""
        network = cut(self._network, {})
        generator = self._generator
        state = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
        with torch.no_grad():
            for name, tensor in state.items():
                spread = float(tensor.std(correction=0)) or float(tensor.abs().max()) or 0.3
                noise = spread * torch.randn(tensor.shape, generator=generator)
                tensor.copy_((tensor + noise).abs() + 0.1 if name.endswith("running_var") else tensor + noise)
        return network

    def _compare(self, network: nn.Module, unpruned: list[torch.Tensor], removed: Removed) -> tuple[float, float]:
        """Largest differences between cut and switched off, and between switched off and unpruned."""
        with zeros_at_consumers(network, removed):
            expected = self._run(network)
        found = self._run(cut(network, removed, share=True))
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (expected, found)]
        if shapes[0] != shapes[1]:
            raise _Differs(f"the output changes its shape from {shapes[0]} to {shapes[1]}")
        effect = _largest([off - full for off, full in zip(expected, unpruned, strict=True)])
        return _largest([one - other for one, other in zip(found, expected, strict=True)]), effect

    def _draw(self, group: PruningGroup) -> torch.Tensor:
        """Indices that stay, ascending: between a quarter and three quarters of the filters, at least one."""
        low, high = max(1, group.filters // 4), max(1, 3 * group.filters // 4)
        count = int(torch.randint(low, high + 1, (), generator=self._generator))
        if self._ranking is None:
            order = torch.randperm(group.filters, generator=self._generator)
        else:
            order = self._ranking[group.name]
        return order[:count].sort().values

    def _run(self, network: nn.Module) -> list[torch.Tensor]:
        """All tensors that the network returns."""
        with torch.inference_mode():
            outputs = output_tensors(network(*inputs_for(network, self._samples)))
        self._tick()
        return outputs


class _Differs(Exception):
    """The two networks cannot be compared; the message says why."""


def _largest(tensors: Sequence[torch.Tensor]) -> float:
    """Largest absolute value of all; infinite where one is not a number."""
    values = [float(tensor.abs().max()) for tensor in tensors if tensor.numel()]
    return float("inf") if any(value != value for value in values) else max(values, default=0.0)
