"""The exported network chooses as the agent does, from a session of onnxruntime alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from games import Memory, Ragged
from test_qmix_agent import SMALL

from qmix_agent import QMIX
from qmix_agent import export as export_module
from qmix_agent.padding import pad_masks, pad_observations

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"recurrent": False},
        {"parameter_sharing": False},
        {"exploration": "noisy", "layer_norm": True},
        {"last_action": False, "agent_id": False},
    ],
)
def test_a_session_plays_what_the_agent_plays(
    kind: dict[str, Any], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    game = Memory if kind.get("last_action") is False else Ragged
    agent = QMIX(game(), dataclasses.replace(SMALL, **kind)).learn(5, progress=False)
    assert agent.export_onnx(tmp_path / "agent.onnx") < 1e-4
    assert [path.name for path in tmp_path.iterdir()] == ["agent.onnx"]
    assert not list(recwarn)
    session = onnxruntime.InferenceSession(str(tmp_path / "agent.onnx"))
    wanted = {one.name for one in session.get_inputs()}
    env, spec = game(), agent.spec
    for seed in range(3):
        observations, infos = env.reset(seed=seed)
        last = np.full((1, spec.n_agents), -1, np.int64)
        hidden = np.zeros((1, spec.n_agents, SMALL.hidden_size), np.float32)
        first = True
        while env.agents:
            masks = {name: infos[name].get("action_mask") for name in env.agents}
            feed = {"observations": pad_observations(spec, observations)[None], "last_actions": last, "hidden": hidden}
            q, *after = session.run(None, {name: value for name, value in feed.items() if name in wanted})
            hidden = after[0] if after else hidden
            last = np.where(pad_masks(spec, masks)[None], q, -np.inf).argmax(-1)
            actions = agent.act(observations, masks, reset=first)
            assert list(actions.values()) == last[0].tolist()
            observations, _, _, _, infos = env.step(actions)
            first = False


def test_what_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match=r"differ from torch's by .*nothing was written"):
        QMIX(Ragged(), SMALL).export_onnx(tmp_path / "agent.onnx")
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ImportError, match=r"needs no_such_package, not installed: pip install"):
        QMIX(Ragged(), SMALL).export_onnx(tmp_path / "agent.onnx")
