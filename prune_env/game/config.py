"""The environment's settings. Standard library only, so that a command line can be made from them cheaply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Reward = Literal["budget", "tradeoff", "amc"]
Importance = Literal["l1", "l2", "bn_scale", "fpgm", "taylor", "random"]

DEFAULT_RATES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)


@dataclass(frozen=True)
class EnvConfig:
    """Settings of `FilterPruneEnv`. Raises ValueError that names the field."""

    rounds: int = 3
    """Transitions in an episode; the last one terminates it."""
    max_cycles: int | None = None
    """An outside limit on steps; below `rounds` it truncates the episode."""
    rates: tuple[float, ...] = DEFAULT_RATES
    """What an agent chooses from: the fraction of its remaining filters that goes in one round. rates[0] is 0."""
    target_macs: float | None = 0.5
    """Fraction of the MACs that may stay at the end of an episode; None for no budget."""
    reward: Reward = "budget"
    """What pays. budget: accuracy; amc: few errors and few MACs; tradeoff: the sum of both, only without a budget."""
    every_round: bool = False
    """Evaluate after every round; otherwise the last round only, and earlier rounds pay 0."""
    importance: Importance = "l1"
    """What ranks a group's filters: norms, BatchNorm's scale, geometric median (fpgm), first order (taylor), chance."""
    min_filters: int = 2
    """Filters that stay in every group."""
    round_to: int = 1
    """Kept filter counts are multiples of this; 8 suits most hardware."""
    reward_images: int = 1000
    """Images of the reward split that an accuracy is measured on, the same for every plan."""
    calibration_images: int = 500
    """Images of the calibration split that BatchNorm statistics are estimated from."""
    # 1000 change nothing that 5,000 reward images show on VGG-16 and ResNet-20; 250 cost the unpruned networks 0.1 to
    # 0.2 points.
    measure_at: float = 1.0
    """How far on the way to a plan its network is cut when its accuracy is measured, above 0 and up to 1: a group of n
    filters, of which the plan keeps k, has n^(1-a) k^a of them then. A network that is cut deeply, and not trained, is
    hardly better than chance, which tells plans apart badly; benchmarks/COMPARISON.md says what little 0.5 gains."""
    racing: float | None = None
    """A probability, 0.01 say: counting ends early where a plan is none of the ten best so far, with at most this
    chance of being wrong at each look. Its accuracy is then that of the images seen. None counts all, always. Refused
    where it changes nothing: for images of a single batch, and where a GPU replays a recording, in less time."""
    finetune_batches: int = 0
    """Batches of 128 training images by which a pruned network is distilled before its accuracy is measured: always the
    same images, from the original weights, so a plan still has one accuracy. With ten of them a plan takes some ten
    times as long; benchmarks/COMPARISON.md says what they gain. They are kept in memory, up to 1.6 MB a batch of 32x32
    pixels in colour."""
    round_finetune_batches: int = 0
    """Batches of distillation after every round. Weights are then carried on, and nothing is memoised."""
    prove: bool = True
    """Check at construction, group by group, that cutting filters equals switching them off."""
    problem_seed: int = 0
    """Of what is random in the problem itself: crops, `random` importance, recovery. `reset` has a seed of its own."""

    @property
    def trains(self) -> bool:
        """Whether networks are trained while the game goes on."""
        return bool(self.finetune_batches or self.round_finetune_batches)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", tuple(self.rates))
        for name, allowed in (("reward", get_args(Reward)), ("importance", get_args(Importance))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}")
        counts = dict.fromkeys(("rounds", "min_filters", "round_to", "reward_images", "calibration_images"), 1)
        counts |= {"finetune_batches": 0, "round_finetune_batches": 0}
        for name, least in counts.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if self.max_cycles is not None and self.max_cycles < 1:
            raise ValueError(f"max_cycles must be at least 1, or None for no limit; got {self.max_cycles}")
        if self.finetune_batches and self.round_finetune_batches:
            raise ValueError(
                "finetune_batches trains a plan's network for its measurement alone, round_finetune_batches carries "
                f"what was trained from round to round; set one of {self.finetune_batches} and "
                f"{self.round_finetune_batches} to 0"
            )
        if not 0 < self.measure_at <= 1:
            raise ValueError(f"measure_at must be above 0 and at most 1, got {self.measure_at}")
        if self.measure_at < 1 and self.round_finetune_batches:
            raise ValueError(
                "measure_at measures a network that is cut less than the plan says, and round_finetune_batches carries "
                f"the plan's own on; set measure_at=1 or round_finetune_batches=0, got {self.measure_at} and "
                f"{self.round_finetune_batches}"
            )
        if self.racing is not None and not 0 < self.racing < 1:
            raise ValueError(f"racing must be a probability above 0 and below 1, or None; got {self.racing}")
        if self.racing is not None and (self.reward != "budget" or self.round_finetune_batches):
            raise ValueError(
                "racing compares a plan with the most accurate ones of equal cost: it needs reward 'budget' and "
                f"round_finetune_batches=0; got {self.reward!r} and {self.round_finetune_batches}"
            )
        rising = all(low < high for low, high in zip(self.rates, self.rates[1:], strict=False))
        if len(self.rates) < 2 or self.rates[0] != 0 or not rising or self.rates[-1] >= 1:
            raise ValueError(f"rates must rise from 0.0 and stay below 1, at least two of them; got {self.rates}")
        if self.target_macs is not None and not 0 < self.target_macs <= 1:
            raise ValueError(f"target_macs must be in (0, 1], or None for no budget; got {self.target_macs}")
        if self.reward == "tradeoff" and self.target_macs is not None:
            raise ValueError(
                f"reward 'tradeoff' plays without a budget and can end before one is met; set target_macs to None "
                f"(--target-macs None) instead of {self.target_macs}, or take 'amc' or 'budget'"
            )


class _NotSet:
    def __repr__(self) -> str:
        return "not set"


NOT_SET = _NotSet()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, before, now) of every setting that differs; NOT_SET, printed as 'not set', where one side lacks it."""
    pairs = [(name, before.get(name, NOT_SET), now.get(name, NOT_SET)) for name in {**now, **before}]
    return [(name, was, is_now) for name, was, is_now in pairs if was != is_now]
