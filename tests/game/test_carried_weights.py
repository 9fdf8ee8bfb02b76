"""Weights that are carried from round to round, distilled after every cut."""

from __future__ import annotations

import torch
from episodes import EnvMaker, equal, last_info, play

SETTINGS = {"round_finetune_batches": 4, "every_round": True}


def test_equal_actions_give_equal_networks(make_env: EnvMaker) -> None:
    env = make_env(**SETTINGS)
    assert equal(play(env), play(env))
    assert equal(play(env, 1), play(make_env(**SETTINGS), 1))


def test_the_network_has_the_shapes_of_its_plan_and_other_weights_than_a_mere_cut(make_env: EnvMaker) -> None:
    env, untuned = make_env(**SETTINGS), make_env(every_round=True)
    carried = last_info(play(env))["accuracy"]
    assert carried >= last_info(play(untuned))["accuracy"] - 0.02
    pairs = list(zip(env.pruned_model().parameters(), untuned.pruned_model().parameters(), strict=True))
    assert all(one.shape == two.shape for one, two in pairs)
    assert not all(torch.equal(one, two) for one, two in pairs)


def test_clones_carry_their_own_weights(make_env: EnvMaker) -> None:
    env, alone = make_env(**SETTINGS), make_env(**SETTINGS)
    clone = env.clone()
    for one in (env, clone):
        one.reset()
    actions = dict.fromkeys(env.agents, 1)
    env.step(actions), clone.step(dict.fromkeys(clone.agents, 3)), env.step(actions)
    alone.reset()
    alone.step(actions), alone.step(actions)
    for one, two in zip(env.pruned_model().parameters(), alone.pruned_model().parameters(), strict=True):
        assert torch.equal(one, two)


def test_plans_are_measured_again_because_they_no_longer_name_one_network(make_env: EnvMaker) -> None:
    env = make_env(**SETTINGS)
    play(env)
    other = make_env(**SETTINGS)
    other.load_state_dict(env.state_dict())
    before = other.evaluator.evaluations
    play(other)
    assert other.evaluator.evaluations == before + env.config.rounds
