"""Flattening of observations, and padding of observations and masks."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from qmix_helpers import SPEC

from qmix_agent.padding import flatten_observation, pad_action_masks, pad_observations, space_spec, split_observation


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2, 3), np.float32),
        spaces.Box(0, 255, (4,), np.uint8),
        spaces.Discrete(5),
        spaces.Discrete(4, start=-2),
        spaces.MultiBinary((2, 2)),
    ],
)
def test_observations_are_flattened_as_in_gymnasium(space: spaces.Space) -> None:
    spec = space_spec("a", space)
    space.seed(0)
    for _ in range(5):
        sample = space.sample()
        expected = gymnasium.spaces.flatten(space, sample).astype(np.float32)
        assert np.array_equal(flatten_observation("a", spec, sample), expected)
    assert spec.size == gymnasium.spaces.flatdim(space)


@pytest.mark.parametrize("value", [-3, 2])
def test_a_discrete_observation_outside_its_space_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"'a'.*{value}"):
        flatten_observation("a", space_spec("a", spaces.Discrete(4, start=-2)), value)


def test_a_dict_observation_is_split_into_observation_and_mask() -> None:
    assert split_observation({"observation": 1, "action_mask": 2}) == (1, 2)
    assert split_observation({"observations": 1, "action_mask": 2}) == (1, 2)
    assert split_observation({"observation": 1}) == (1, None)
    assert split_observation(1) == (1, None)


def test_absent_agents_observe_zeros() -> None:
    padded = pad_observations(SPEC, {"agent_1": np.array([1.0, 2.0], np.float32)})
    assert padded.tolist() == [[0, 0, 0], [1, 2, 0], [0, 0, 0]]


def test_absent_agents_can_only_take_action_0() -> None:
    masks = pad_action_masks(SPEC, {"agent_1": None})
    assert masks.tolist() == [[True] + [False] * 4, [True] * 5, [True] + [False] * 4]
