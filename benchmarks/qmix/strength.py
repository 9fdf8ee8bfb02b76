"""How well does QMIX learn? Ours against TorchRL and PyMARL at equal environment steps: learning curves with intervals.

    python -m benchmarks.qmix.strength --workers 2                                # ours and TorchRL
    python -m benchmarks.qmix.strength --workers 2 --pymarl PATH --games digits

Games:
simple_spread  of mpe2 (`pip install mpe2`): three agents cover three landmarks; all get the team's reward
               (local_ratio=0), episodes are truncated after 25 steps
digits         FilterPruneEnv on small_cnn, the accuracy of the pruned network as the return; one cache for all runs
two_step       the example of Rashid et al. (2018, section 5): 8 for those who dare, 7 for those who do not

All play the same number of episodes with the same exploration, replay, updates for each episode and widths of networks;
every evaluation is of greedy episodes from the same starts. `peers/` says what is each one's own. One row a
run goes to `out`/runs.jsonl; runs whose row is there are not repeated. Also writes curves.png.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any

import torch
import tyro

from ..compare.jobs import Job, complete
from ..compare.statistics import mean_interval
from .games import Seeded, TwoStep
from .peers import Env, Peer, Settings, available, make


@dataclass(frozen=True)
class Game:
    """What is played, and for how long."""

    steps: int
    """of every episode"""
    episodes: int
    epsilon_episodes: int
    updates_per_episode: int
    eval_every: int
    eval_episodes: int


GAMES = {
    "simple_spread": Game(25, 300, 100, 2, 50, 20),
    "digits": Game(3, 200, 100, 4, 20, 1),
    "two_step": Game(2, 300, 150, 4, 20, 1),
}


@dataclass(frozen=True)
class Config:
    games: tuple[str, ...] = tuple(GAMES)
    """which to play"""
    seeds: int = 5
    """runs with different seeds"""
    target_macs: float = 0.5
    """of digits"""
    pymarl: Path | None = None
    """a clone of oxwhirl/pymarl"""
    workers: int = 1
    """processes, each with one thread"""
    cache: Path = Path("runs/qmix_strength.sqlite")
    """accuracies of plans, for all runs"""
    out: Path = Path("runs/qmix_strength")
    """where results go"""


def main(config: Config) -> None:
    torch.set_num_threads(1)
    peers = available(config.pymarl)
    jobs = [
        {
            "game": game,
            "terms": vars(GAMES[game]),
            "options": {"target_macs": config.target_macs} if game == "digits" else {},
            "peer": peer,
            "seed": seed,
        }
        for seed in range(config.seeds)
        for game in config.games
        for peer in peers
    ]
    rows = complete(
        jobs, partial(run, pymarl=config.pymarl, cache=config.cache), config.out / "runs.jsonl", config.workers
    )
    curves = summary(rows)
    print(table(curves))
    picture(curves, config.out / "curves.png")


def run(job: Job, pymarl: Path | None, cache: Path) -> dict[str, Any]:
    """The learning curve of one implementation: environment steps, and mean return of greedy episodes."""
    game, seed = Game(**job["terms"]), job["seed"]
    training, evaluation = (play(job["game"], job["options"], cache) for _ in range(2))
    training = Seeded(training, count(10**4 * (seed + 1)))
    settings = Settings(
        steps=game.steps, epsilon_episodes=game.epsilon_episodes, updates_per_episode=game.updates_per_episode
    )
    peer = make(job["peer"], training, settings, seed, pymarl)
    steps, returns = [], []
    for episode in range(0, game.episodes, game.eval_every):
        train(peer, settings, episode, game.eval_every)
        steps.append((episode + game.eval_every) * game.steps)
        # The same starts every time; far from any that training has seen.
        starts = Seeded(evaluation, cycle(range(10**6, 10**6 + game.eval_episodes)))
        returns.append(peer.evaluate(starts, game.eval_episodes))
    return {"steps": steps, "returns": returns}


def train(peer: Peer, settings: Settings, played: int, episodes: int) -> None:
    """More episodes, and updates after each as soon as there is a whole batch. Ours has this loop inside."""
    if hasattr(peer, "agent"):
        peer.collect(episodes)
        return
    for number in range(played + 1, played + episodes + 1):
        peer.collect(1)
        if number >= settings.batch_size:
            for _ in range(settings.updates_per_episode):
                peer.step(peer.draw())


def play(game: str, options: dict[str, Any], cache: Path) -> Env:
    """A new environment; cache: of the accuracies of plans."""
    if game == "simple_spread":
        from mpe2 import simple_spread_v3

        return simple_spread_v3.parallel_env(N=3, local_ratio=0.0, max_cycles=GAMES[game].steps)
    if game == "digits":
        from prune_env import make_env

        return make_env("small_cnn", "digits", progress=False, cache=cache, **options)
    if game == "two_step":
        return TwoStep()
    raise ValueError(f"game {game!r} is none of {', '.join(GAMES)}")


def summary(rows: list[Job]) -> dict[str, dict[str, dict[str, list[float]]]]:
    """curves[game][implementation]: steps, and mean and half-width of the 95 % interval over seeds of the returns;
    `last` and `last_interval` are of each run's mean over the last third of its evaluations."""
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in dict.fromkeys((row["job"]["game"], row["job"]["peer"]) for row in rows):
        mine = [row for row in rows if (row["job"]["game"], row["job"]["peer"]) == name]
        means, halves = zip(*map(mean_interval, zip(*(row["returns"] for row in mine), strict=True)), strict=True)
        third = -(-len(means) // 3)
        last = mean_interval([sum(row["returns"][-third:]) / third for row in mine])
        curves.setdefault(name[0], {})[name[1]] = {
            "steps": mine[0]["steps"],
            "mean": list(means),
            "half": list(halves),
            "last": [last[0]],
            "last_interval": [last[1]],
        }
    return curves


def table(curves: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    """Markdown: mean return over the last third of the evaluations, with 95 % intervals over seeds."""
    names = list(dict.fromkeys(name for game in curves.values() for name in game))
    lines = [f"| game | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for game, ways in curves.items():
        cells = [
            f"{ways[name]['last'][0]:.3f} ± {ways[name]['last_interval'][0]:.3f}" if name in ways else ""
            for name in names
        ]
        lines.append(f"| {game} | {' | '.join(cells)} |")
    return "\n".join(lines)


def picture(curves: dict[str, dict[str, dict[str, list[float]]]], file: Path) -> None:
    """One panel a game: mean return over environment steps, and its 95 % interval as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(curves), 3.4), layout="constrained")
    for axes, (game, ways) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        for name, curve in ways.items():
            low = [mean - half for mean, half in zip(curve["mean"], curve["half"], strict=True)]
            high = [mean + half for mean, half in zip(curve["mean"], curve["half"], strict=True)]
            style = "-" if name.startswith("ours") else "--"
            (line,) = axes.plot(curve["steps"], curve["mean"], style, label=name)
            axes.fill_between(curve["steps"], low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(title=game, xlabel="environment steps", ylabel="return of greedy episodes")
    axes.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.qmix.strength", description=__doc__))
