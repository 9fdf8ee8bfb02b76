"""Policies as files: what they keep, where they fit, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from games import Matrix, Ragged
from gymnasium import spaces
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper
from safetensors.torch import load_file, save_file

from qmix_agent import QMIX, CheckpointError, QMIXConfig, SubprocessEnv, TeamPolicy

ANY_TEAM = QMIXConfig(mixer="pooled", agent_id=False, hidden_size=8, batch_size=4, learning_starts=4, eval_every=0)


class Sites(ParallelEnv):
    """Each of n agents picks a number and is paid its own price for it; one step. Prices are what agents observe."""

    metadata = {"name": "sites_v0"}  # noqa: RUF012
    observation_names = ("price_0", "price_1", "price_2")
    action_names = ("take_0", "take_1", "take_2")

    def __init__(self, agents: int) -> None:
        self.possible_agents = [f"site_{number}" for number in range(agents)]
        self.agents: list[str] = []
        self.picked: dict[str, int] = {}
        self.imagined = False
        self.prices_seed: int | None = 0

    def observation_space(self, agent: str) -> spaces.Box:
        return spaces.Box(0, 1, (3,), np.float32)

    def action_space(self, agent: str) -> spaces.Discrete:
        return spaces.Discrete(3)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        self.prices_seed = (options or {}).get("prices", seed)
        rng = np.random.default_rng(self.prices_seed)
        self.prices = {agent: rng.random(3).astype(np.float32) for agent in self.possible_agents}
        self.agents = list(self.possible_agents)
        return dict(self.prices), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> tuple[Any, ...]:
        self.picked, agents, self.agents = dict(actions), self.agents, []
        paid = 0.0 if self.imagined else float(np.mean([self.prices[one][actions[one]] for one in agents]))
        every = dict.fromkeys(agents, True)
        return (
            dict(self.prices),
            dict.fromkeys(agents, paid),
            every,
            dict.fromkeys(agents, False),
            {a: {} for a in agents},
        )

    def imagine(self) -> Sites:
        other = Sites(len(self.possible_agents))
        other.imagined = True
        return other

    @property
    def episode_options(self) -> dict[str, Any]:
        return {"prices": self.prices_seed}

    @property
    def plan(self) -> tuple[int, ...]:
        return tuple(self.picked.values())


class ProposingSites(Sites):
    """Proposes a number that is nearest to the amount of one action."""

    action_proposal = ("price_1", (0.0, 0.3, 1.0))

    def imagine(self) -> Sites:
        other = ProposingSites(len(self.possible_agents))
        other.imagined = True
        return other


def best(env: Sites, prices: int) -> tuple[int, ...]:
    """Return the best plan for these prices."""
    env.reset(options={"prices": prices})
    return tuple(int(price.argmax()) for price in env.prices.values())


@pytest.fixture(scope="module")
def learned() -> QMIX:
    settings = {"recurrent": False, "gamma": 1.0, "hidden_size": 32, "learning_rate": 3e-3, "batch_size": 32}
    config = dataclasses.replace(ANY_TEAM, **settings, learning_starts=32)
    return QMIX(Sites(3), config, seed=0).learn(80, progress=False)


def test_what_a_team_learned_holds_in_a_larger_team(learned: QMIX) -> None:
    env = Sites(9)
    picks = [
        (pick, right)
        for prices in range(20)
        for pick, right in zip(learned.policy().plan(env, prices=prices), best(env, prices), strict=True)
    ]
    assert np.mean([pick == right for pick, right in picks]) > 0.8  # one of three by chance


@pytest.mark.parametrize("settings", [{}, {"mixer": "vdn"}, {"recurrent": False}, {"layer_norm": True, "mixer": "iql"}])
def test_a_file_holds_the_policy(settings: dict[str, Any], tmp_path: Path) -> None:
    agent = QMIX(Sites(3), dataclasses.replace(ANY_TEAM, **settings))
    policy = TeamPolicy.load(agent.save_policy(tmp_path / "policy.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["policy.safetensors"]
    assert policy.interface == agent.policy().interface
    for imagined in (1, 7):
        plans = [one.plan(Sites(5), imagined_episodes=imagined, prices=1) for one in (policy, agent.policy())]
        assert plans[0] == plans[1]


def test_the_plan_is_that_of_the_agent(learned: QMIX) -> None:
    env = Sites(3)
    observations, _ = env.reset(options={"prices": 4})
    assert learned.policy().plan(env, prices=4) == tuple(learned.act(observations, reset=True).values())


def test_what_options_leave_out_is_as_in_the_current_episode(learned: QMIX) -> None:
    env = Sites(4)
    env.reset(seed=11)
    for imagined in (1, 9):
        assert learned.policy().plan(env, imagined_episodes=imagined) == learned.policy().plan(
            env, imagined_episodes=imagined, prices=11
        )


def test_actions_that_start_at_another_number_are_those_of_the_agent(learned: QMIX) -> None:
    class FromFive(Sites):
        def action_space(self, agent: str) -> spaces.Discrete:
            return spaces.Discrete(3, start=5)

        def step(self, actions: dict[str, int]) -> tuple[Any, ...]:
            return super().step({agent: action - 5 for agent, action in actions.items()})

        def imagine(self) -> Sites:
            return FromFive(len(self.possible_agents))

    assert learned.policy().plan(FromFive(4), prices=6) == learned.policy().plan(Sites(4), prices=6)


def test_a_policy_learned_in_another_process_fits(learned: QMIX) -> None:
    with SubprocessEnv(lambda: Sites(2)) as env:
        assert QMIX(env, learned.config).policy().interface == learned.policy().interface


def test_with_a_prior_an_untrained_policy_does_what_is_proposed(tmp_path: Path) -> None:
    for wrapped in (
        ProposingSites(4),
        SubprocessEnv(lambda: ProposingSites(4)),
        BaseParallelWrapper(ProposingSites(4)),
    ):
        agent = QMIX(wrapped, dataclasses.replace(ANY_TEAM, prior=True))
        policy, env = TeamPolicy.load(agent.save_policy(tmp_path / "policy.safetensors")), ProposingSites(9)
        plan = policy.plan(env, prices=1)
        amounts = np.array(ProposingSites.action_proposal[1])
        env.reset(options={"prices": 1})
        assert list(plan) == [int(np.abs(amounts - price[1]).argmin()) for price in env.prices.values()]
        assert len(set(plan)) == 3
        wrapped.close()
    with pytest.raises(ValueError, match="prior is False"):
        QMIX(env, ANY_TEAM, policy=policy)
    with pytest.raises(ValueError, match="proposal"):
        QMIX(Sites(4), dataclasses.replace(ANY_TEAM, prior=True), policy=policy)


def test_a_prior_can_be_unlearned() -> None:
    """What this game proposes is worthless."""
    settings = {"recurrent": False, "gamma": 1.0, "hidden_size": 32, "learning_rate": 3e-3, "batch_size": 32}
    config = dataclasses.replace(ANY_TEAM, **settings, prior=True, learning_starts=32)
    env = ProposingSites(3)
    agent = QMIX(env, config, seed=0).learn(160, progress=False)
    picks = [
        pick == right
        for prices in range(20)
        for pick, right in zip(agent.policy().plan(env, prices=prices), best(env, prices), strict=True)
    ]
    assert np.mean(picks) > 0.8


def test_checkpoints_and_exports_hold_a_prior(tmp_path: Path) -> None:
    config = dataclasses.replace(ANY_TEAM, prior=True, epsilon_start=0.5)
    whole = QMIX(ProposingSites(3), config, seed=2).learn(12, progress=False)
    QMIX(ProposingSites(3), config, seed=2).learn(6, checkpoint_dir=tmp_path, progress=False)
    resumed = QMIX.load(tmp_path, ProposingSites(3)).learn(12, progress=False)
    for name, tensor in whole.learner.network.state_dict().items():
        assert torch.equal(resumed.learner.network.state_dict()[name], tensor), name
    assert resumed.learner.network.state_dict().keys() == whole.learner.network.state_dict().keys()
    assert whole.export_onnx(tmp_path / "agent.onnx") <= 1e-4


def test_a_policy_with_another_proposal_is_refused() -> None:
    policy = QMIX(ProposingSites(3), ANY_TEAM).policy()
    env = ProposingSites(3)
    env.action_proposal = ("price_1", (0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match="action_proposal"):
        policy.plan(env)


@pytest.mark.parametrize(
    "proposal",
    [
        ("price_9", (0.0, 0.3, 1.0)),
        ("price_1", (0.0, 0.3)),
        ("price_1", (0.0, 0.3, float("nan"))),
        ("price_1", 3),
        ("price_1", "abc"),
        "price_1",
    ],
)
def test_a_proposal_that_does_not_fit_is_refused(proposal: Any) -> None:
    env = ProposingSites(2)
    env.action_proposal = proposal
    with pytest.raises(ValueError, match="ProposingSites: action_proposal"):
        QMIX(env, ANY_TEAM)


def test_an_agent_starts_from_a_policy(learned: QMIX) -> None:
    policy, env = learned.policy(), Sites(6)
    config = dataclasses.replace(learned.config, learning_starts=4)
    agent = QMIX(env, config, seed=1, policy=policy)
    assert agent.policy().plan(env, prices=2) == policy.plan(env, prices=2)
    before = policy.plan(env, prices=3)
    agent.learn(8, progress=False)
    assert policy.plan(env, prices=3) == before  # the policy itself does not change
    weights = agent.learner.network.state_dict()
    assert any(not weights[name].equal(one) for name, one in policy.network.state_dict().items())


@pytest.mark.parametrize(
    ("field", "value"),
    [("mixer", "qmix"), ("agent_id", True), ("parameter_sharing", False)],
)
def test_networks_for_one_team_only_are_refused(field: str, value: Any, tmp_path: Path) -> None:
    agent = QMIX(Sites(2), dataclasses.replace(ANY_TEAM, **{field: value}))
    with pytest.raises(ValueError, match=field):
        agent.save_policy(tmp_path / "policy.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["hidden_size", "recurrent", "layer_norm", "last_action", "mixer"])
def test_a_start_with_other_settings_is_refused(learned: QMIX, field: str) -> None:
    value = getattr(learned.config, field)
    other = {"mixer": "vdn", "hidden_size": 16}.get(field, value is False)
    config = dataclasses.replace(learned.config, **{field: other})
    with pytest.raises(ValueError, match=field):
        QMIX(Sites(2), config, policy=learned.policy())


@pytest.mark.parametrize("attribute", ["observation_names", "action_names"])
def test_an_environment_with_other_features_or_actions_is_refused(learned: QMIX, attribute: str) -> None:
    env = Sites(3)
    names = ("another", *getattr(env, attribute)[1:])
    setattr(env, attribute, names)
    with pytest.raises(ValueError, match="another"):
        learned.policy().plan(env)
    with pytest.raises(ValueError, match="another"):
        QMIX(env, learned.config, policy=learned.policy())


def test_agents_of_different_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="Ragged"):
        QMIX(Ragged(), ANY_TEAM).policy()


def test_an_environment_that_cannot_imagine_is_refused() -> None:
    agent = QMIX(Matrix(((0.0, 1.0), (1.0, 2.0))), ANY_TEAM)
    with pytest.raises(ValueError, match="Matrix"):
        agent.policy().plan(Matrix(((0.0, 1.0), (1.0, 2.0))))


class TestFiles:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return QMIX(Sites(3), ANY_TEAM).save_policy(tmp_path / "policy.safetensors")

    @pytest.mark.parametrize("place", [0, 9, 60, 200, 900, -1])
    def test_a_flipped_bit_is_found(self, file: Path, place: int) -> None:
        content = bytearray(file.read_bytes())
        content[place] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=file.name):
            TeamPolicy.load(file)

    @pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\xff" * 64])
    def test_other_files_are_refused(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=file.name):
            TeamPolicy.load(file)

    @pytest.mark.parametrize(
        "change",
        [
            {"format": "other"},
            {"version": 99},
            {"settings": {"hidden_size": 2**30}},
            {"settings": {"unknown": 1}},
            {"interface": {"observations": [], "actions": []}},
            {"interface": {"proposal": {"feature": 3, "amounts": [0, 1, 2]}}},
            {"interface": {"proposal": {"feature": 1, "amounts": [0, 1]}}},
            {"interface": {"proposal": {"feature": 1, "amounts": [0, 1, float("nan")]}}},
            {"settings": {"layer_norm": True}},
        ],
    )
    def test_other_descriptions_are_refused(self, file: Path, change: dict[str, Any]) -> None:
        weights = load_file(file)
        length = int.from_bytes(file.read_bytes()[:8], "little")
        metadata = json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]
        description = json.loads(metadata["policy"])
        for name, value in change.items():
            description[name] = {**description[name], **value} if isinstance(value, dict) else value
        save_file(weights, file, metadata | {"policy": json.dumps(description)})
        with pytest.raises(CheckpointError, match=file.name):
            TeamPolicy.load(file)

    def test_weights_without_a_description_are_refused(self, tmp_path: Path) -> None:
        save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
        with pytest.raises(CheckpointError, match="other"):
            TeamPolicy.load(tmp_path / "other.safetensors")

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            TeamPolicy.load(tmp_path / "nowhere")
