"""The replay buffer, padded batches, and checkpoint tensors."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from qmix_helpers import an_episode, equal_episodes

from qmix_agent import Episode
from qmix_agent.replay_buffer import ReplayBuffer, episodes_to_tensors, make_batch, tensors_to_episodes


def episodes_of(lengths: list[int]) -> list[Episode]:
    rng = np.random.default_rng(0)
    return [
        Episode(
            rng.normal(size=(n + 1, 2, 3)).astype(np.float32),
            rng.normal(size=(n + 1, 4)).astype(np.float32),
            np.ones((n + 1, 2, 2), dtype=bool),
            rng.random((n + 1, 2)) < 0.5,
            rng.integers(0, 2, (n, 2)),
            rng.normal(size=n).astype(np.float32),
            np.zeros(n, dtype=bool),
        )
        for n in lengths
    ]


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_a_batch_holds_every_episode_followed_by_zeros(lengths: list[int]) -> None:
    episodes = episodes_of(lengths)
    batch = make_batch(episodes)
    assert batch.filled.sum(dim=1).tolist() == lengths
    for row, episode in enumerate(episodes):
        n = len(episode)
        assert np.array_equal(batch.observations[row, : n + 1], episode.observations)
        assert np.array_equal(batch.rewards[row, :n], episode.rewards)
        assert not batch.observations[row, n + 1 :].any()
        assert not batch.action_masks[row, n + 1 :].any()
        assert not batch.rewards[row, n:].any()


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 5), max_size=6))
def test_episodes_survive_the_conversion_to_tensors(lengths: list[int]) -> None:
    episodes = episodes_of(lengths)
    back = tensors_to_episodes(episodes_to_tensors(episodes))
    for one, two in zip(episodes, back, strict=True):
        assert equal_episodes(one, two)
        assert one.actions.dtype == two.actions.dtype
        assert one.rewards.dtype == two.rewards.dtype
        assert one.terminated.dtype == two.terminated.dtype
        assert one.observations.dtype == two.observations.dtype
        assert one.states.dtype == two.states.dtype
        assert one.action_masks.dtype == two.action_masks.dtype


def test_a_full_buffer_drops_the_oldest_and_samples_distinct_episodes() -> None:
    buffer = ReplayBuffer(3)
    episodes = [an_episode(2, True, seed) for seed in range(5)]
    for episode in episodes:
        buffer.add(episode)
    assert list(buffer) == episodes[2:]
    drawn = buffer.sample(2, np.random.default_rng(0))
    assert drawn[0] is not drawn[1]
    assert {id(one) for one in buffer.sample(9, np.random.default_rng(0))} == {id(one) for one in episodes[2:]}
    again = [id(one) for one in buffer.sample(2, np.random.default_rng(1))]
    assert [id(one) for one in buffer.sample(2, np.random.default_rng(1))] == again
