"""One episode: what a move does to the network, what it pays, and what the archive keeps of it."""

from __future__ import annotations

from torch import nn

from ..evaluation.evaluator import Evaluator
from ..pruning import Plan
from ..pruning.problem import PruningProblem
from . import validation
from .archive import Archive, Entry
from .carried_weights import CarriedWeights
from .config import EnvConfig
from .reward import RewardFunction, RewardInput, RoundReward
from .transition import RoundState


class Episode:
    """Carries weights, evaluates, pays, and archives finished plans.

    Call `start` first; every call returns to the original network.

    Args:
        problem: The network, its data and its groups.
        config: Settings of the game.
        evaluator: Returns the accuracy of plans.
        reward: Pays for every move.
        archive: Receives every finished plan.
    """

    state: RoundState
    """The game after the moves played so far."""
    accuracy: float
    """The last known accuracy."""

    def __init__(
        self,
        problem: PruningProblem,
        config: EnvConfig,
        evaluator: Evaluator,
        reward: RewardFunction,
        archive: Archive,
    ) -> None:
        self._every_round, self._evaluator, self._reward, self._archive = config.every_round, evaluator, reward, archive
        self._carried = CarriedWeights(problem, config, evaluator.device)
        self._return: float

    def start(self, state: RoundState) -> None:
        """Return to the original network."""
        self.state, self.accuracy, self._return = state, self._evaluator.original_accuracy, 0.0
        self._carried.reset()

    def announce(self, plan: Plan, last: bool) -> None:
        """Let workers, if there are any, start to evaluate the plan of the next move."""
        if (last or self._every_round) and not self._carried.on:
            self._evaluator.submit(plan)

    def move(self, state: RoundState, last: bool) -> tuple[float, bool]:
        """Enter a round state; see `FilterPruneEnv.move`."""
        before, accuracy_before, self.state = self.state, self.accuracy, state
        if self._carried.on:
            self._carried.step(state.plan, state.number)
        if last or self._every_round:
            self.accuracy = self._evaluate()
        result = self._reward(
            RewardInput(
                accuracy_before=accuracy_before,
                accuracy_after=self.accuracy,
                original_accuracy=self._evaluator.original_accuracy,
                macs_before=before.macs_ratio,
                macs_after=state.macs_ratio,
                last=last,
            )
        )
        if not isinstance(result, RoundReward):
            raise TypeError(f"a reward function must return a RoundReward; {self._reward!r} returned {result!r}")
        self._return += result.reward
        ended = last or result.ended
        if ended:
            latency_ratio = state.cost_ratio if state.budget.cost_name == "latency" else None
            entry = Entry(state.plan, self.accuracy, state.macs_ratio, state.params_ratio, self._return, latency_ratio)
            if self._archive.add(entry):
                validation.warn_missed(state.budget, state.plan)
        return result.reward, ended

    def network(self) -> nn.Module:
        """Return the network of the current plan as it is evaluated, on any device."""
        if not self._carried.on:
            return self._evaluator.network(self.state.plan)
        network = self._carried.network()
        self._evaluator.recalibrate(network)
        return network

    def _evaluate(self) -> float:
        if self._carried.on:
            return self._evaluator.accuracy_of(self._carried.network())
        return self._evaluator.accuracy(self.state.plan)
