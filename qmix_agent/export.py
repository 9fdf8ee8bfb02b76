"""Export of the agent network to ONNX, checked against onnxruntime.

Shapes: B games, N agents, O observation features, A actions, H hidden features.
"""

from __future__ import annotations

import copy
import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .networks import AgentNetwork
from .types import EnvSpec

TOLERANCE = 1e-4
"""Largest accepted difference between onnxruntime and torch, relative to the largest value."""

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class _OneStep(nn.Module):
    """One step of the agent network, without the time dimension."""

    def __init__(self, network: AgentNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, observations: torch.Tensor, last_actions: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        q, hidden_after = self.network(observations.unsqueeze(1), last_actions.unsqueeze(1), hidden)
        return q[:, 0] if hidden_after is None else (q[:, 0], hidden_after)


def export_onnx(network: AgentNetwork, spec: EnvSpec, path: str | Path) -> float:
    """Write one step of the agent network as ONNX.

    The model has the inputs

    - observations: float32 [B, N, O], agents in the order of `spec.agents`, zeros after the features of smaller agents
      and for agents that have left;
    - last_actions: int64 [B, N], -1 at the start of an episode;
    - hidden, if recurrent: float32 [B, N, H], zeros at the start of an episode;

    and the outputs

    - q: float32 [B, N, A]; the action is the legal one with the largest value;
    - hidden_after, if recurrent: float32 [B, N, H], the next step's hidden.

    Args:
        network: The agent network.
        spec: Specification of the environment.
        path: File to write.

    Returns:
        Largest difference between onnxruntime and torch, relative to the largest value.

    Raises:
        ImportError: A package of the extra `export` is not installed.
        RuntimeError: The difference exceeds `TOLERANCE`. No file is written.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ImportError(f'ONNX export needs {", ".join(missing)}; run pip install -e ".[export]" in the repository')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    step = _OneStep(copy.deepcopy(network).cpu()).eval()
    rng = np.random.default_rng(0)
    try:
        _write(step, _random_inputs(network, spec, games=2, rng=rng), temporary)
        batches = (_random_inputs(network, spec, games, rng) for games in (2, 1, 5))
        difference = max(_difference(step, temporary, inputs) for inputs in batches)
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"onnxruntime differs from torch by {difference:.1e} of the largest value, more than {TOLERANCE:g}; no "
                "file was written"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def _write(step: nn.Module, inputs: dict[str, torch.Tensor], file: Path) -> None:
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals; its result is checked afterwards
        program = torch.onnx.export(
            step,
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=["q", "hidden_after"] if "hidden" in inputs else ["q"],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            verbose=False,
        )
    assert program is not None
    program.save(str(file), external_data=False)


def _random_inputs(
    network: AgentNetwork, spec: EnvSpec, games: int, rng: np.random.Generator
) -> dict[str, torch.Tensor]:
    """Return random inputs by name, in the order of the network's arguments."""
    agents = spec.n_agents
    inputs = {
        "observations": torch.tensor(rng.standard_normal((games, agents, spec.max_observation), np.float32)),
        "last_actions": torch.tensor(rng.integers(-1, spec.max_actions, (games, agents))),
    }
    if network.recurrent:
        inputs["hidden"] = torch.tensor(rng.standard_normal((games, agents, network.hidden_size), np.float32))
    return inputs


def _difference(step: nn.Module, file: Path, inputs: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between onnxruntime and torch, relative to the largest value of each output."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    used = {one.name for one in session.get_inputs()}  # the exporter drops last_actions if the network ignores them
    feed = {name: value.numpy() for name, value in inputs.items() if name in used}
    with torch.no_grad():
        outputs = step(*inputs.values())
    expected = [one.numpy() for one in (outputs if isinstance(outputs, tuple) else (outputs,))]
    pairs = zip(session.run(None, feed), expected, strict=True)
    return max(float(np.abs(actual - right).max() / np.abs(right).max()) for actual, right in pairs)
