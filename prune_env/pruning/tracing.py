"""Trace one forward pass in which every tensor has labels: which filter each of its elements comes from.

A dispatch mode sees every operation of the network, however its code is written. Layers read labels at their
inputs and create new ones; operations that only move elements move the labels in the same way; elementwise operations
tie the labels that they combine. An operation without a rule freezes the filters that it reads, so they stay, which is
always correct. The rules are in the folder `rules`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..common.failure import described
from .errors import PruningError
from .forward import Example, first_input, inputs_for, output_tensors, progress_bar
from .groups import Side
from .modules import ModuleSpec, spec_of
from .own_tensors import OriginalReached, OwnTensors
from .rules import Call, Rule, rule_of
from .suitability import check_hooks, check_suitable
from .surgery import cut
from .trace import Trace


def trace_network(model: nn.Module, example: Example, progress: bool = False) -> Trace:
    """Trace a copy of a network, also for a batch of another size and with the branches that only run in training.

    Args:
        model: The network, which does not change.
        example: Example input, float [B, C, H, W], or several inputs.
        progress: Whether to show a progress bar on stderr.

    Raises:
        PruningError: The network cannot be copied, a copy computes something else, or it does not run on the example.
        TypeError: The example is neither a tensor nor a sequence of tensors.
    """
    check_suitable(model)
    if not any(True for _ in model.parameters()):
        raise PruningError(f"the network ({type(model).__name__}) has no parameters, so nothing of it can be pruned")
    network = cut(model, {}).eval()  # a copy with its own tensors
    inputs = inputs_for(network, example)
    check_hooks(model, network, inputs)
    trace, own = Trace(network), OwnTensors(model)
    try:
        with progress_bar(desc="tracing", unit=" layers", disable=not progress) as bar:
            tracer = _Tracer(trace, bar)
            with tracer.watching_modules():
                _run(tracer, own, network, inputs)
                with suppress(_DoesNotRun):  # some networks take no single images
                    _run(tracer, own, network, _of_another_size(inputs))
                if set(trace.modules) - set(trace.called) or any(map(_reads_mode, trace.modules.values())):
                    _run_training_branches(tracer, own, network, inputs)
    except RuntimeError as error:  # scripted modules take no hooks
        raise PruningError(f"the network cannot be traced ({error}); prune it before it is scripted") from error
    return trace


def _reads_mode(module: nn.Module) -> bool:
    """Whether a method of a module's class that is not torch's own reads `training`."""
    own = (kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch."))
    codes = (getattr(value, "__code__", None) for kind in own for value in vars(kind).values())
    return any(code is not None and "training" in code.co_names for code in codes)


class _DoesNotRun(PruningError):
    """The network does not run on the inputs."""


def _of_another_size(inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The first example of a batch, or a batch of two if there is only one; some networks have a branch for either."""
    size = len(inputs[0]) if inputs[0].ndim else 0
    batched = [images.ndim > 0 and len(images) == size for images in inputs]
    return [
        (images[:1] if size > 1 else torch.cat((images, images))) if along else images
        for images, along in zip(inputs, batched, strict=True)
    ]


def _run(tracer: _Tracer, own: OwnTensors, network: nn.Module, inputs: list[torch.Tensor]) -> None:
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inputs = [images.clone() for images in inputs]
            tracer.start(inputs)
            with tracer, own:  # the inner one does not see the operations on labels
                output = network(*inputs)
    except PruningError:
        raise
    except Exception as error:
        raise _DoesNotRun(
            f"the network cannot be traced ({described(error)}); check that it runs on the example input, of shape "
            f"{', '.join(str(tuple(images.shape)) for images in inputs)}, and does not change its own parameters"
        ) from error
    for tensor in output_tensors(output):
        tracer.trace.freeze(tensor, "their channels are the network's output")


def _run_training_branches(tracer: _Tracer, own: OwnTensors, network: nn.Module, inputs: list[torch.Tensor]) -> None:
    """Trace branches that only run in training (auxiliary heads), with layers in eval mode."""
    for module in network.modules():
        module.training = any(True for _ in module.children())
    try:
        _run(tracer, own, network, inputs)
    except OriginalReached:
        raise
    except PruningError as error:
        tracer.trace.untraced = str(error)
    finally:
        network.eval()


class _Tracer(TorchDispatchMode):
    """Calls the rule of every operation that runs inside."""

    def __init__(self, trace: Trace, bar: Any) -> None:
        super().__init__()
        self.trace, self._bar = trace, bar
        self._whole: str | None = None
        """Path of the module that is running and is traced as a whole."""

    def start(self, inputs: list[torch.Tensor]) -> None:
        """Freeze the channels of the network's inputs, which layers may be tied to."""
        trace = self.trace
        trace.stack, self._whole = [""], None
        for images in inputs:
            if images.ndim >= 2:
                channels = trace.labels.new(images.shape[1])
                trace.labels.freeze(channels, "they are tied to the channels of the network's input")
                trace[images] = channels.view(1, -1, *[1] * (images.ndim - 2))

    @contextmanager
    def watching_modules(self) -> Iterator[None]:
        """Follow which module is running."""
        handles = []
        for path, module in self.trace.modules.items():
            handles.append(module.register_forward_pre_hook(partial(self._before, path)))
            handles.append(module.register_forward_hook(partial(self._after, path), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.trace.stack.append(path)
        spec = spec_of(module)
        if self._whole is None and spec is not None and spec.traced_as_whole:
            self._whole = path

    def _after(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        trace, spec = self.trace, spec_of(module)
        trace.stack.pop()
        trace.called.setdefault(path)
        self._bar.update()
        if self._whole == path:
            assert spec is not None
            self._whole = None
            _pass_as_whole(trace, path, spec, (args, kwargs), output)
        elif self._whole is not None:
            trace.enclosed[path] = self._whole
        elif spec is not None and spec.sizes and not module.state_dict():
            # No rule has read the channels of a normalisation without tensors; its size must follow all the same.
            channels = trace.along(first_input(args, kwargs), spec.channel_axis, f"{path} reads several dimensions")
            if channels is not None and len(channels) == spec.channels(module, "out"):
                trace.read(path, "out", channels)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._whole is not None:
            return func(*args, **kwargs)
        trace, rule = self.trace, rule_of(func)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        labelled = [tensor for tensor in inputs if trace[tensor] is not None]
        owners = {owner for tensor in inputs if (owner := trace.owner_of(tensor)) is not None}
        trace.borrowed |= owners - {trace.running}
        if rule is None and func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                return func.decompose(*args, **kwargs)
        output = func(*args, **kwargs)
        if owners and func.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy):
            trace.cast[output] = True
        if rule is None or not _applied(trace, rule, Call(func, args, kwargs, output), inputs):
            for tensor in labelled:
                trace.freeze(tensor, f"they pass through {func.overloadpacket}, which may mix them")
            for leaf in tree_leaves(output):
                if isinstance(leaf, torch.Tensor):
                    trace[leaf] = None
        return output


def _applied(trace: Trace, rule: Rule, call: Call, inputs: list[torch.Tensor]) -> bool:
    """Apply a rule; return False if no operand has labels, or if the rule does not support this form of the call."""
    if not rule.without_labels and all(trace[tensor] is None for tensor in inputs):
        return False
    try:
        if not rule.all_operands:
            for tensor in inputs:
                if tensor is not call.input:
                    trace.freeze(tensor, f"they are weights or settings of {call.operation}")
        if rule.all_operands or rule.without_labels or trace[call.input] is not None:
            rule.apply(trace, call)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return True


def _pass_as_whole(trace: Trace, path: str, spec: ModuleSpec, inputs: tuple[Any, Any], output: Any) -> None:
    """Read the labels of a whole module's input, and set those of its output."""
    images = first_input(*inputs)
    for leaf in tree_leaves(inputs):
        if leaf is not images:
            trace.freeze(leaf, f"{path} reads them as a further input")
    reason, sides = trace.why_uncut(path), set(spec.sizes.values())
    if reason is None and not isinstance(output, torch.Tensor):
        reason = f"{path} returns {type(output).__name__} instead of one tensor"
    elif reason is None and not sides:
        reason = f"{path} has no channels that could be cut ({type(trace.modules[path]).__name__})"
    if reason is not None:
        trace.freeze(images, reason)
        return
    labels = trace.along(images, spec.channel_axis, f"{path} reads them at different positions")
    channels = _channels(trace, path, spec, "in" if "in" in sides else "out", images)
    if "in" in sides:
        trace.read(path, "in", torch.zeros(channels, dtype=torch.long) if labels is None else labels)
        labels = None
        if "out" in sides:
            labels = trace.produce(path, _channels(trace, path, spec, "out", output))
    elif labels is not None:
        trace.read(path, "out", labels)
    if labels is not None:
        axis = spec.channel_axis % output.ndim
        trace[output] = labels.view([-1 if dimension == axis else 1 for dimension in range(output.ndim)])


def _channels(trace: Trace, path: str, spec: ModuleSpec, side: Side, tensor: torch.Tensor) -> int:
    """The number of channels on a side of a whole module, which a tensor has to have, too."""
    channels = spec.channels(trace.modules[path], side)
    if tensor.shape[spec.channel_axis] != channels:
        raise PruningError(
            f"{path} has {channels} channels on its {side} side, but a tensor of shape {tuple(tensor.shape)} has "
            f"{tensor.shape[spec.channel_axis]} along dimension {spec.channel_axis}; correct its ModuleSpec"
        )
    return channels
