"""Copies of environments for parallel episodes, and their lasting state."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from games import Archiving, Memory, TwoStep
from qmix_helpers import SMALL, archived_lengths

from qmix_agent import QMIX

NO_EVALUATION = dataclasses.replace(SMALL, eval_every=0)


class Cloning(Archiving):
    """Its clones share the archive."""

    def clone(self) -> Cloning:
        other = Cloning()
        other.lengths = self.lengths
        return other


def test_clones_share_their_lasting_state_and_it_is_saved_once() -> None:
    agent = QMIX(Cloning(), NO_EVALUATION).learn(8, n_envs=4, progress=False)
    assert [len(one) for one in archived_lengths(agent, 4)] == [8] * 4
    assert len(agent.trainer.envs.state_dicts()) == 1


def test_deep_copies_have_their_own_lasting_state() -> None:
    agent = QMIX(Archiving(), NO_EVALUATION).learn(8, n_envs=4, progress=False)
    assert [len(one) for one in archived_lengths(agent, 4)] == [2] * 4
    assert len(agent.trainer.envs.state_dicts()) == 4


def test_an_environment_that_cannot_be_copied_is_named() -> None:
    class Unique(TwoStep):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("a camera")

    with pytest.raises(ValueError, match=r"Unique.*a camera.*clone\(\)"):
        QMIX(Unique(), SMALL).learn(2, n_envs=2, progress=False)


def test_environments_of_different_specifications_are_refused() -> None:
    with pytest.raises(ValueError, match="n_state"):
        QMIX([TwoStep(), Memory()])


def test_an_empty_list_of_environments_is_refused() -> None:
    with pytest.raises(ValueError, match="environments"):
        QMIX([])
