"""ONNX export: onnxruntime alone plays as the agent does."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from games import Memory, Ragged
from qmix_helpers import SMALL

from qmix_agent import QMIX
from qmix_agent import export as export_module
from qmix_agent.padding import pad_action_masks, pad_observations

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"recurrent": False},
        {"parameter_sharing": False},
        {"layer_norm": True},
        {"last_action": False, "agent_id": False},
    ],
)
def test_an_onnxruntime_session_plays_what_the_agent_plays(
    settings: dict[str, Any], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    game = Memory if settings.get("last_action") is False else Ragged
    agent = QMIX(game(), dataclasses.replace(SMALL, **settings)).learn(5, progress=False)
    assert agent.export_onnx(tmp_path / "agent.onnx") < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["agent.onnx"]
    assert not list(recwarn)
    session = onnxruntime.InferenceSession(str(tmp_path / "agent.onnx"))
    input_names = {one.name for one in session.get_inputs()}
    env, spec = game(), agent.spec
    for seed in range(3):
        observations, infos = env.reset(seed=seed)
        last = np.full((1, spec.n_agents), -1, np.int64)
        hidden = np.zeros((1, spec.n_agents, SMALL.hidden_size), np.float32)
        reset = True
        while env.agents:
            masks = {name: infos[name].get("action_mask") for name in env.agents}
            feed = {"observations": pad_observations(spec, observations)[None], "last_actions": last, "hidden": hidden}
            q, *after = session.run(None, {name: value for name, value in feed.items() if name in input_names})
            hidden = after[0] if after else hidden
            last = np.where(pad_action_masks(spec, masks)[None], q, -np.inf).argmax(-1)
            actions = agent.act(observations, masks, reset=reset)
            assert list(actions.values()) == last[0].tolist()
            observations, _, _, _, infos = env.step(actions)
            reset = False


@pytest.mark.slow
def test_a_network_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="onnxruntime"):
        QMIX(Ragged(), SMALL).export_onnx(tmp_path / "agent.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match="onnxscript"):
        QMIX(Ragged(), SMALL).export_onnx(tmp_path / "agent.onnx")
