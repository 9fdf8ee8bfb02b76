"""The agents' network as ONNX, checked against onnxruntime.

Shapes: B games, N agents, O observation features, A actions, H hidden.
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
"""Largest difference between onnxruntime and torch, as a share of the largest value."""

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class _OneStep(nn.Module):
    """One step of greedy values, without the dimension of time."""

    def __init__(self, network: AgentNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, observations: torch.Tensor, last_actions: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        q, after = self.network(observations.unsqueeze(1), last_actions.unsqueeze(1), hidden)
        return q[:, 0] if after is None else (q[:, 0], after)


def export_onnx(network: AgentNetwork, spec: EnvSpec, path: str | Path) -> float:
    """Writes one step of the network; returns its largest difference from torch, as a share of the largest value.

    Inputs are observations (float32 [B, N, O], agents in the order of `spec.agents`, zeros after the features of the
    smaller ones and for agents that have left) and last_actions (int64 [B, N], -1 where there was none); the output is
    q (float32 [B, N, A]). A recurrent network also takes hidden (float32 [B, N, H], zeros at the start of an episode)
    and gives hidden_after. Choose the largest q among the legal actions. Noisy networks are written with their mean.

    Raises ImportError without the extra `export`, and RuntimeError, leaving no file, where onnxruntime's values differ
    by more than `TOLERANCE`.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise ImportError(f'ONNX needs {", ".join(missing)}, not installed: pip install -e ".[export]" in the clone')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    step = _OneStep(copy.deepcopy(network).cpu()).eval()
    rng = np.random.default_rng(0)
    inputs = _inputs(network, spec, games=2, rng=rng)
    names = ["observations", "last_actions", "hidden"][: len(inputs)]
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the exporter does to itself; its result is compared below
            program = torch.onnx.export(
                step,
                inputs,
                dynamo=True,
                input_names=names,
                output_names=["q", "hidden_after"][: len(inputs) - 1],
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                verbose=False,
            )
        program.save(str(temporary), external_data=False)  # type: ignore[union-attr]
        difference = max(_difference(step, temporary, _inputs(network, spec, games, rng), names) for games in (2, 1, 5))
        if not difference <= TOLERANCE:
            raise RuntimeError(
                f"onnxruntime's values differ from torch's by {difference:.1e} of the largest, more than "
                f"{TOLERANCE:g}; nothing was written"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def _inputs(network: AgentNetwork, spec: EnvSpec, games: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Random inputs in the network's order."""
    agents = spec.n_agents
    observations = torch.tensor(rng.standard_normal((games, agents, spec.max_observation), np.float32))
    last_actions = torch.tensor(rng.integers(-1, spec.max_actions, (games, agents)))
    if not network.recurrent:
        return observations, last_actions
    hidden = torch.tensor(rng.standard_normal((games, agents, network.hidden_size), np.float32))
    return observations, last_actions, hidden


def _difference(step: nn.Module, file: Path, inputs: tuple[torch.Tensor, ...], names: list[str]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = {one.name for one in session.get_inputs()}  # last_actions are not, where the network does not look at them
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True) if name in wanted}
    with torch.no_grad():
        expected = step(*inputs)
    pairs = zip(session.run(None, feed), expected if isinstance(expected, tuple) else (expected,), strict=True)
    return max(float(np.abs(got - right.numpy()).max() / np.abs(right.numpy()).max()) for got, right in pairs)
