"""One forward pass in which every tensor carries labels: which filter each of its elements comes from.

A dispatch mode sees every operation of the network, whatever Python wrote it. Layers read labels at their inputs and
hand out new ones; operations that only move elements move the labels with the same arguments; elementwise ones tie
what they bring together. An operation without a rule freezes the filters that it sees: they stay, which is never wrong.
The rules are in `rules.py`. Letters: B batch, C channels, K filters.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from tqdm import tqdm

from ..networks.resnet import ZeroPadShortcut
from .copies import PruningError, twin
from .labels import Labels
from .rules import PRODUCERS, RULES, SEVERAL, Rule, elementwise, is_elementwise
from .surgery import Side, first_input, refusal

Example = torch.Tensor | Sequence[torch.Tensor]
progress_bar = partial(tqdm, delay=5, miniters=0, leave=False)
"""On stderr, for what takes longer than five seconds; gone when it is done. `update(0)` moves its clock."""


class Trace(TorchDispatchMode):
    """What a network did with the labels.

    modules   path -> module of a copy of the network
    labels    all labels, and which are tied or frozen
    slots     (path, side) -> labels of the channels of that side of a layer, int64 [C]
    produced  path -> the labels that a layer hands out, int64 [K], in the order of the first calls
    called    paths of the modules that ran, in the order of their first calls
    borrowed  paths of the modules whose parameters are used while another module runs
    pointwise paths of the linear layers that ran at every position of a map: 1x1 convolutions by another name
    untraced  why branches that only run in training could not be followed, None if they were or there are none
    """

    def __init__(self, model: nn.Module, example: Example, progress: bool = False) -> None:
        """Raises PruningError for a network that cannot be copied, or does not run on the example."""
        super().__init__()
        network = twin(model).eval()
        self.modules = dict(network.named_modules())
        self.labels = Labels()
        self.slots: dict[tuple[str, Side], torch.Tensor] = {}
        self.produced: dict[str, torch.Tensor] = {}
        self.called: dict[str, None] = {}
        self.borrowed: set[str] = set()
        self.pointwise: set[str] = set()
        self.untraced: str | None = None
        self._beside = WeakIdKeyDictionary()  # tensor -> its labels
        self._paused = False
        self._stack = [""]
        self._owner, self._shared = _owners(self.modules)
        self._names = {id(tensor): name for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
        self._inputs = inputs_for(network, example)
        try:
            with _watched(self), progress_bar(desc="tracing", unit=" layers", disable=not progress) as self._bar:
                self._run(network)
                if set(self.modules) - set(self.called):
                    self._run_training_branches(network)
        except RuntimeError as error:  # scripted modules take no hooks
            raise PruningError(f"the network cannot be watched ({error}); prune it before it is scripted") from error

    def _run(self, network: nn.Module) -> None:
        try:
            with torch.inference_mode(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._stack, self._paused = [""], False
                inputs = [images.clone() for images in self._inputs]
                for images in inputs:
                    self._enter(images)
                with self:
                    output = network(*inputs)
        except Exception as error:
            raise PruningError(
                f"the network cannot be traced ({type(error).__name__}: {error}); check that it runs on the example "
                f"input, of shape {', '.join(str(tuple(images.shape)) for images in self._inputs)}, and does not "
                "change its own parameters"
            ) from error
        for tensor in output_tensors(output):
            self.freeze(tensor, "their channels are the network's output")

    def _run_training_branches(self, network: nn.Module) -> None:
        """Branches that only run in training (auxiliary heads) read channels, too; layers stay in eval mode."""
        for module in network.modules():
            module.training = any(True for _ in module.children())
        try:
            self._run(network)
        except PruningError as error:
            self.untraced = str(error)
        finally:
            network.eval()

    def _enter(self, images: torch.Tensor) -> None:
        if images.ndim < 2:
            return
        channels = self.labels.new(images.shape[1])
        self.labels.freeze(channels, "they are tied to the channels of the network's input")
        self[images] = channels.view(1, -1, *[1] * (images.ndim - 2))

    def __getitem__(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The labels beside a tensor, None for one that no filter has touched."""
        return self._beside.get(tensor)

    def __setitem__(self, tensor: torch.Tensor, labels: torch.Tensor | None) -> None:
        if labels is None:
            self._beside.pop(tensor, None)
        else:
            self._beside[tensor] = self.labels.compressed(labels)

    def freeze(self, tensor: Any, reason: str) -> None:
        """All filters that a tensor comes from must stay."""
        labels = self[tensor] if isinstance(tensor, torch.Tensor) else None
        if labels is not None:
            self.labels.freeze(labels, reason)

    def name(self, tensor: torch.Tensor) -> str | None:
        """Name of a parameter or buffer of the network, None for any other tensor."""
        return self._names.get(id(tensor))

    def owner(self, *tensors: torch.Tensor | None) -> tuple[str, str | None]:
        """Path of the module that the given parameters and buffers belong to, and why it cannot be cut, if so."""
        given = {id(tensor) for tensor in tensors if tensor is not None}
        running = self.modules[self.running]
        if given <= {id(tensor) for tensor in (*running._parameters.values(), *running._buffers.values())}:
            path = self.running
        else:
            paths = {self._owner.get(tensor) for tensor in given}
            if len(paths) > 1 or None in paths:
                return self.running, f"{self.running or 'the network'} computes its weight ({type(running).__name__})"
            path = str(paths.pop())
        if path != self.running:
            return path, f"parameters of {path} are used outside of it"
        if path in self._shared:
            return path, f"{path} shares a parameter with {self._shared[path]}"
        reason = refusal(self.modules[path])
        return path, f"{path} {reason}" if reason else None

    def read(self, path: str, side: Side, labels: torch.Tensor) -> None:
        """A layer meets channels [C] at one of its sides; at a second call they go with those of the first."""
        known = self.slots.setdefault((path, side), labels)
        if known is not labels:
            self.labels.tie(known, labels)

    def produce(self, path: str, count: int) -> torch.Tensor:
        """The labels of a layer's filters, [K]; the same at every call."""
        if path not in self.produced:
            self.produced[path] = self.labels.new(count)
            self.slots[(path, "out")] = self.produced[path]
        return self.produced[path]

    @property
    def running(self) -> str:
        """Path of the innermost module that runs now."""
        return self._stack[-1]

    def before(self, path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Zero-padded shortcuts have a rule of their own: their two sides go independently of each other."""
        self._stack.append(path)
        self._paused = isinstance(module, ZeroPadShortcut)

    def after(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Notes the call."""
        self._stack.pop()
        self._bar.update()
        self.called.setdefault(path)
        if not isinstance(module, (_InstanceNorm, ZeroPadShortcut)):
            return
        images = first_input(args, kwargs)
        labels = self[images]
        if isinstance(module, ZeroPadShortcut):
            self._paused = False
            if labels is not None:
                self.read(path, "in", labels.expand(1, module.in_channels, 1, 1).flatten())
            self[output] = self.produce(path, module.out_channels).view(1, -1, 1, 1)
        elif not module.state_dict() and labels is not None:
            self.read(path, "out", labels.flatten().expand(images.shape[1]))  # it still knows its channels' number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        rule: Rule | None = RULES.get(func.overloadpacket) or (elementwise if is_elementwise(func) else None)
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        labelled = [tensor for tensor in inputs if self[tensor] is not None]
        self.borrowed.update(path for t in inputs if (path := self._owner.get(id(t), self.running)) != self.running)
        if rule is None and func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                return func.decompose(*args, **kwargs)
        output = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        if rule is not None and (labelled or rule in PRODUCERS):
            if rule not in SEVERAL:
                for tensor in inputs:
                    if tensor is not args[0]:
                        self.freeze(tensor, f"they are weights or settings of {func.overloadpacket}")
            try:
                if rule in SEVERAL or rule in PRODUCERS or self[args[0]] is not None:
                    rule(self, func, args, kwargs, output)
                return output
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                pass  # called in a form that the rule does not know: as if there were none
        for tensor in labelled:
            self.freeze(tensor, f"they pass through {func.overloadpacket}, which may mix them")
        for tensor in outputs:
            self[tensor] = None
        return output


def inputs_for(network: nn.Module, example: Example) -> list[torch.Tensor]:
    """The example's tensors on the network's device, floating-point ones in its precision."""
    tensors = [example] if isinstance(example, torch.Tensor) else list(example)
    first = next((tensor for tensor in network.parameters() if tensor.is_floating_point()), tensors[0])
    return [t.detach().to(first.device, first.dtype if t.is_floating_point() else t.dtype) for t in tensors]


def output_tensors(output: Any) -> list[torch.Tensor]:
    """All tensors that a network returned. Raises PruningError for what cannot be looked into, or holds none."""
    leaves = tree_leaves(output)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    strange = [leaf for leaf in leaves if not isinstance(leaf, (torch.Tensor, int, float, str, type(None)))]
    if strange or not tensors:
        raise PruningError(
            f"the network returns {type(strange[0] if strange else output).__name__}, in which no tensors can be seen; "
            "return a tensor, or tensors in tuples, lists and dicts"
        )
    return tensors


@contextmanager
def _watched(trace: Trace) -> Iterator[None]:
    handles = []
    for path, module in trace.modules.items():
        handles.append(module.register_forward_pre_hook(partial(trace.before, path)))
        handles.append(module.register_forward_hook(partial(trace.after, path), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _owners(modules: dict[str, nn.Module]) -> tuple[dict[int, str], dict[str, str]]:
    """Id of every parameter and buffer -> its module's path; path of a module that shares one -> the other's path."""
    owner: dict[int, str] = {}
    shared: dict[str, str] = {}
    for path, module in modules.items():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            first = owner.setdefault(id(tensor), path)
            if first != path:
                shared[path], shared[first] = first, path
    return owner, shared
