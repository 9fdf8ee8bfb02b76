"""Measure the layers of a network at several widths, so that the latency of every plan can be predicted.

Each layer runs alone on random images of the sizes that it sees in the network. In onnxruntime the time of its kernel
counts, without the conversions of memory layouts around it, which a whole network does not need between its layers.
A few whole networks then tell how their latency follows from the sum over layers.

Letters: B images, C channels, I and O numbers of channels of a layer's grid.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..common.command import require_packages
from ..common.device import seeded
from ..common.onnx_session import PACKAGES
from ..common.progress import progress_bar
from ..common.settings import Count, Settings
from ..pruning import Plan, PruningGroup
from ..pruning.copies import shared_copy
from ..pruning.cost import Cost
from ..pruning.forward import first_input
from ..pruning.limits import fitting_multiple
from ..pruning.surgery import build
from ..scoring.latency import TimingConfig, latencies, time_forward
from ..scoring.latency_table import LatencyTable, LayerTimes
from .export import to_onnx

STEPS = 8
"""Numbers of channels on one side of a grid, at most."""
RUNS = 12
"""Runs of a layer alone. The fastest one counts, because noise only adds time."""
WIDTHS = (1.0, 0.75, 0.5, 0.3)
"""Filters of the whole networks, as fractions of the original ones."""

LEAST_FALL = 0.01
"""Fraction of the latency by which the narrowest of these networks must be faster."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class LayerTiming(Settings):
    """What the latency of a network is measured for.

    Raises:
        ValueError: A field has a value that is not allowed.
    """

    runtime: Literal["onnxruntime", "torch"] = "onnxruntime"
    """The library that runs the network, on the CPU."""
    batch_size: Count = 1
    """Images per forward pass."""
    timing: TimingConfig = field(default_factory=TimingConfig)
    """How the whole networks are timed, and the number of threads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if torch.device(self.timing.device).type != "cpu":
            raise ValueError(f"timing.device must be cpu, where layers are timed, got {self.timing.device}")


def measure_layer_times(
    model: nn.Module, groups: Sequence[PruningGroup], images: torch.Tensor, config: LayerTiming | None = None
) -> LatencyTable:
    """Measure the latency table of a network on this machine.

    Args:
        model: The network, which does not change.
        groups: Its pruning groups.
        images: At least two normalised images [N, C, H, W] of the network's data.
        config: What to measure.

    Returns:
        The table. Its sums are fitted to the latencies of the network at four widths.

    Raises:
        ExportError: The runtime is onnxruntime, and a network cannot be exported.
        ValueError: The latency of the network does not fall with its width.
        ImportError: The runtime is onnxruntime, and the packages of the extra `export` are not installed.

    Example:
        >>> table = measure_layer_times(problem.model, problem.groups, problem.data.example_input)
        >>> table.save("latency.json")
    """
    config = config or LayerTiming()
    if config.runtime == "onnxruntime":
        require_packages(PACKAGES, "a latency table of onnxruntime", "export")
    cost = Cost(model, groups, images)
    full = tuple(group.filters for group in groups)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.timing.threads or threads)
    try:
        layers = _measured_layers(model, cost, full, images, config)
    finally:
        torch.set_num_threads(threads)
    words = f"{config.runtime}, batch size {config.batch_size}, threads {config.timing.threads or threads}"
    table = LatencyTable(layers, measured_on=words)
    plans = [tuple(_rounded(width * filters, filters) for filters in full) for width in WIDTHS]
    predictor = table.predictor(cost, full)
    sums = np.array([predictor.milliseconds(plan) for plan in plans])
    ranking = {group.name: torch.arange(group.filters) for group in groups}
    networks = [build(model, groups, ranking, plan) for plan in plans]
    scale, rest = _fitted(sums, np.array(_whole_ms(networks, images, config)))
    return LatencyTable(layers, scale, rest, table.measured_on)


def _measured_layers(
    model: nn.Module, cost: Cost, full: Plan, images: torch.Tensor, config: LayerTiming
) -> dict[str, LayerTimes]:
    """Return the times of all layers that run."""
    shapes = _input_shapes(model, cost.layers, images[:1])
    most, least = (np.stack(cost.layer_channels(plan), 1).tolist() for plan in (full, (1,) * len(full)))  # [L, 2]
    clock = _Clock(_kernel_ms if config.runtime == "onnxruntime" else _torch_ms, config.batch_size)
    layers: dict[str, LayerTimes] = {}
    bar = progress_bar(cost.layers, desc="measuring layers", leave=False)
    for path, (low_in, low_out), (high_in, high_out) in zip(bar, least, most, strict=True):
        if not shapes[path]:
            continue
        layer: Any = model.get_submodule(path)
        size = high_out // layer.groups if getattr(layer, "groups", 1) > 1 else 0  # filters of a group that stay tied
        inputs = (high_in,) if size else _grid(low_in, high_in, 1)
        outputs = _grid(low_out, high_out, max(1, size))
        times = [
            tuple(
                clock.milliseconds(_narrow(layer, outs * high_in // high_out if size else ins, outs), shapes[path])
                for outs in outputs
            )
            for ins in inputs
        ]
        layers[path] = LayerTimes(inputs, outputs, tuple(times))
    return layers


class _Clock:
    """Times layers, equal ones once."""

    def __init__(self, time_layer: Callable[[nn.Module, torch.Tensor], float], batch_size: int) -> None:
        self._time_layer, self._batch_size = time_layer, batch_size
        self._known: dict[tuple[str, Shape], float] = {}

    def milliseconds(self, layer: nn.Module, calls: Sequence[Shape]) -> float:
        """Return the time of all calls of a layer, given the shapes of its inputs for any batch size and width."""
        total = 0.0
        for call in calls:
            shape = _resized(call, layer, self._batch_size)
            if (repr(layer), shape) not in self._known:
                images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
                self._known[repr(layer), shape] = self._time_layer(layer, images)
            total += self._known[repr(layer), shape]
        return total


def _grid(low: int, high: int, multiple: int) -> tuple[int, ...]:
    """Return at most STEPS rising numbers of channels from `low` or above to `high`."""
    if low == high:
        return (high,)
    counts = {max(low, _rounded(high * step / STEPS, high)) for step in range(1, STEPS + 1)}
    return tuple(sorted({min(high, -(-count // multiple) * multiple) for count in counts}))


def _rounded(count: float, full: int) -> int:
    """Return a number of channels as a multiple that hardware likes, at most all of them."""
    multiple = fitting_multiple(full)
    return min(full, max(1, round(count / multiple)) * multiple)


def _input_shapes(model: nn.Module, paths: Sequence[str], images: torch.Tensor) -> dict[str, list[Shape]]:
    """Return the shapes of the inputs that each layer gets for one image, one for each call."""
    copy = shared_copy(model).eval()
    shapes: dict[str, list[Shape]] = {path: [] for path in paths}

    def recorder(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: shapes[path].append(tuple(first_input(args, kwargs).shape))

    for path in paths:
        copy.get_submodule(path).register_forward_hook(recorder(path), with_kwargs=True)
    with torch.no_grad():
        copy(images)
    return shapes


def _narrow(layer: Any, inputs: int, outputs: int) -> nn.Module:
    """Return a new layer of the same kind with these numbers of channels and random weights."""
    with seeded("cpu", 0):
        if isinstance(layer, nn.Linear):
            return nn.Linear(inputs, outputs).eval()
        kind: Any = next(base for base in type(layer).__mro__ if base.__module__ == nn.Conv2d.__module__)
        names = ["kernel_size", "stride", "padding", "dilation"]
        names += ["output_padding"] * isinstance(layer, _ConvTransposeNd)
        settings = {name: getattr(layer, name) for name in names}
        groups = max(1, layer.groups * outputs // layer.out_channels)
        narrow: nn.Module = kind(inputs, outputs, groups=groups, **settings)
        return narrow.eval()


def _resized(shape: Shape, layer: Any, batch_size: int) -> Shape:
    """Return the shape of an input for another batch size and for the channels of this layer.

    Some networks make several inputs of a layer out of one image, such as windows.
    """
    if isinstance(layer, nn.Linear):
        return (batch_size * shape[0], *shape[1:-1], layer.in_features)
    return (batch_size * shape[0], layer.in_channels, *shape[2:])


def _torch_ms(layer: nn.Module, images: torch.Tensor) -> float:
    """Return the milliseconds of a layer in torch, with channels last where images have two dimensions."""
    layout = torch.channels_last if images.ndim == 4 and isinstance(layer, nn.Conv2d) else torch.contiguous_format
    layer, images = layer.to(memory_format=layout), images.contiguous(memory_format=layout)
    with torch.inference_mode():
        layer(images)
        return 1000 * min(time_forward(layer, images) for _ in range(RUNS))


def _kernel_ms(layer: nn.Module, images: torch.Tensor) -> float:
    """Return the milliseconds that the kernel of a layer takes in onnxruntime, without changes of memory layout."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_profiling = True
    with TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(_onnx(layer, images), options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, {"x": images.numpy()})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    microseconds: dict[str, list[float]] = {}
    for event in events:
        kernel = event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
        if kernel and not event["args"]["op_name"].startswith("Reorder"):
            microseconds.setdefault(event["name"], []).append(event["dur"])
    return sum(map(min, microseconds.values())) / 1000


def _onnx(layer: Any, images: torch.Tensor) -> bytes:
    """Return a layer as an ONNX model with the input x and the output y."""
    from onnx import TensorProto, helper, numpy_helper

    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        weight = weight.T.contiguous()
        node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    else:
        attributes = {"kernel_shape": layer.kernel_size, "strides": layer.stride, "dilations": layer.dilation}
        attributes |= {"group": layer.groups, "pads": _pads(layer)}
        if isinstance(layer, _ConvTransposeNd):
            attributes["output_padding"] = layer.output_padding
        operation = "ConvTranspose" if isinstance(layer, _ConvTransposeNd) else "Conv"
        node = helper.make_node(operation, ["x", "weight"], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, images.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight.numpy(), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8  # what onnxruntime reads, even where it is older than onnx
    content: bytes = model.SerializeToString()
    return content


def _pads(layer: _ConvNd) -> list[int]:
    """Return the padding of a convolution as ONNX has it: at the start of all dimensions, then at their ends."""
    if layer.padding == "valid":
        return [0] * 2 * len(layer.kernel_size)
    if layer.padding == "same":
        whole = [rate * (size - 1) for rate, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [pad // 2 for pad in whole] + [pad - pad // 2 for pad in whole]
    return [int(pad) for pad in layer.padding] * 2


def _whole_ms(networks: Sequence[nn.Module], images: torch.Tensor, config: LayerTiming) -> list[float]:
    """Return the milliseconds of whole networks: of their fastest runs, like those of layers."""
    shape = images.shape[1], images.shape[2], images.shape[3]
    with TemporaryDirectory() as folder:
        timed: dict[str, nn.Module | Path] = {}
        for number, network in enumerate(networks):
            timed[str(number)] = network
            if config.runtime == "onnxruntime":
                timed[str(number)] = file = Path(folder, f"{number}.onnx")
                to_onnx(network, file, images)
        found = latencies(timed, shape, config.batch_size, config.timing)
    return [found[str(number)].fastest_ms for number in range(len(networks))]


def _fitted(sums: np.ndarray, measured: np.ndarray) -> tuple[float, float]:
    """Return the scale and the rest of the line through (sum, latency), nearest to it in relative terms."""
    line = np.stack((sums, np.ones_like(sums)), 1) / measured[:, None]
    scale, rest = np.linalg.lstsq(line, np.ones(len(sums)), rcond=None)[0]
    if scale * (sums[0] - sums[-1]) < LEAST_FALL * measured[0]:
        times, widths = (", ".join(f"{one:.4g}" for one in values) for values in (measured, WIDTHS))
        raise ValueError(
            f"the latency does not fall with the width of the layers: {times} ms with {widths} of the filters; measure "
            "while nothing else runs, with larger images or batches, or choose another budget"
        )
    return float(scale), float(rest)
