"""The settings of the environment."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..common.settings import Count, Whole
from ..evaluation.config import EvaluationConfig
from ..pruning.limits import LimitsConfig
from ..pruning.problem import ProblemConfig
from .budget import Target, check_rates
from .costs import CostName
from .reward import REWARDS
from .targets import Targets, target_tuple

DEFAULT_TARGET = 0.5
OTHER_COSTS: tuple[CostName, ...] = ("params", "latency")
"""Costs that a budget can limit instead of MACs."""
DEFAULT_RATES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)


@dataclass(frozen=True)
class EnvConfig(EvaluationConfig, LimitsConfig):
    """Settings of `FilterPruneEnv`: the rules of the game, and how problem and accuracies are made.

    Raises:
        ValueError: A field has a value that is not allowed, or two fields contradict each other; the message names
            them.
    """

    rounds: Count = 3
    """Rounds of an episode; the last one terminates it."""
    max_cycles: Count | None = None
    """Limit on the steps of an episode; below `rounds` it truncates the episode."""
    rates: tuple[float, ...] = DEFAULT_RATES
    """Pruning rates that agents choose from: the fraction of the remaining filters that is removed in one round.
    rates[0] is 0."""
    target_macs: Targets = DEFAULT_TARGET
    """Fraction of the original MACs that may stay at the end of an episode; None for no budget. Of several, every
    episode gets one, all equally often."""
    target_params: Targets = None
    """Fraction of the original parameters that may stay, instead of `target_macs`; its default then does not count."""
    target_latency: Targets = None
    """Fraction of the original latency that may stay, in the same way; `latency_table` predicts it."""
    latency_table: Path | None = None
    """File with the times of all layers, see `prune_env.scoring.latency_table`; for `target_latency`."""
    reward: str = "budget"
    """Reward function. budget: accuracy; amc: few errors and few MACs; tradeoff: accuracy and saved MACs, only without
    a budget."""
    every_round: bool = False
    """Evaluate after every round. Otherwise only the last round is evaluated, and earlier rounds pay 0."""
    round_finetune_batches: Whole = 0
    """Batches of distillation after every round. The weights are carried to the next round, so a plan no longer names
    one network, and accuracies are not remembered."""

    @property
    def cost(self) -> CostName:
        """What the budget limits."""
        return next((name for name in OTHER_COSTS if getattr(self, f"target_{name}") is not None), "macs")

    @property
    def targets(self) -> tuple[float | None, ...]:
        """The distinct targets; (None,) without a budget."""
        return target_tuple(getattr(self, f"target_{self.cost}"))

    def with_targets(self, targets: Target | tuple[Target, ...]) -> EnvConfig:
        """Return the same settings with other targets of the same cost."""
        changed: dict[str, Any] = {f"target_{self.cost}": targets}
        return replace(self, **changed)

    def texts(self) -> dict[str, str]:
        """Return the name of every field and its value as text; of the latency table, a digest of its content."""
        table = self.latency_table
        if table is None:
            return super().texts()
        return super().texts() | {"latency_table": hashlib.blake2b(table.read_bytes(), digest_size=16).hexdigest()}

    @property
    def trains(self) -> bool:
        """Whether networks are trained during an episode."""
        return bool(self.finetune_batches or self.round_finetune_batches)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reward not in REWARDS:
            raise ValueError(
                f"reward {self.reward!r} is unknown; choose one of {', '.join(REWARDS)}, register your own with "
                "prune_env.game.reward.register_reward, or give a function to the environment: "
                "FilterPruneEnv(problem, config, reward=...)"
            )
        if self.finetune_batches and self.round_finetune_batches:
            raise ValueError(
                "finetune_batches trains a plan's network only for its evaluation, round_finetune_batches carries "
                f"weights from round to round; set one of {self.finetune_batches} and "
                f"{self.round_finetune_batches} to 0"
            )
        check_rates(self.rates)
        self._check_targets()
        if self.reward == "tradeoff" and None not in self.targets:
            raise ValueError(
                "reward 'tradeoff' works without a budget and may end an episode before a budget is met; set "
                f"target_{self.cost} to None (--target-{self.cost} None) instead of {self.targets}, or use 'amc' or "
                "'budget'"
            )

    def _check_targets(self) -> None:
        """Check that there is one budget, and let it replace the default one."""
        others = [name for name in OTHER_COSTS if getattr(self, f"target_{name}") is not None]
        if others and self.target_macs == DEFAULT_TARGET:
            object.__setattr__(self, "target_macs", None)
        given = [f"target_{name}" for name in ("macs", *others) if getattr(self, f"target_{name}") is not None]
        if len(given) > 1:
            raise ValueError(f"a game has one budget; set one of {', '.join(given)}, and leave out the others")
        if () in [getattr(self, name) for name in given]:
            raise ValueError(f"{given[0]} must have at least one target, or be None for no budget; got ()")
        if self.latency_table is not None and self.cost != "latency":
            raise ValueError(f"latency_table={self.latency_table} has no effect without target_latency; set that, too")


def completed(config: ProblemConfig) -> EnvConfig:
    """Return the settings of a problem, completed by defaults."""
    return config if isinstance(config, EnvConfig) else EnvConfig(**vars(config))


class _NotSet:
    def __repr__(self) -> str:
        return "not set"


NOT_SET = _NotSet()
"""Stands for a setting that one side of a comparison does not have; prints as 'not set'."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (name, before, now) of every setting that differs, with NOT_SET where one side lacks it."""
    pairs = [(name, before.get(name, NOT_SET), now.get(name, NOT_SET)) for name in {**now, **before}]
    return [(name, old, new) for name, old, new in pairs if old != new]
