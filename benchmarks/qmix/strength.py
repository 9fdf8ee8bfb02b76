"""Measure how well QMIX learns: `qmix_agent` ("ours") against TorchRL and PyMARL at equal environment steps.

    python -m benchmarks.qmix.strength --jobs 2                                   # ours and TorchRL
    python -m benchmarks.qmix.strength --jobs 2 --pymarl PATH --games digits

Games:
- simple_spread, of mpe2 (`pip install mpe2`): three agents cover three landmarks, all receive the team reward
  (local_ratio=0), and episodes are truncated after 25 steps;
- digits: FilterPruneEnv on small_cnn, whose return depends on the accuracy of the pruned network. All runs share one
  cache;
- two_step: the example of Rashid et al. (2018, section 5), in which the safe action leads to 7 and the other to 8.

All implementations play the same number of episodes with the same exploration, replay, updates per episode and network
widths, and every evaluation plays greedy episodes from the same starts. The files in `peers/` list what differs.
One row per run is appended to runs.jsonl in `out`; runs that already have a row are skipped. Also writes curves.png.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Any

import torch
import tyro

from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.figure_style import add_legend, new_figure, save_figure, style_axes
from prune_env.common.settings import Count, Settings
from prune_env.game.budget import Target

from ..compare.jobs import Job, complete
from ..compare.statistics import mean_interval
from .games import Seeded, TwoStep
from .peers import Env, Peer, available_peers, make_peer
from .peers import Settings as PeerSettings


@dataclass(frozen=True)
class Schedule:
    """How long a game is played and how it is evaluated."""

    steps: int
    """Steps per episode."""
    episodes: int
    """Training episodes."""
    epsilon_episodes: int
    """Episodes over which epsilon falls."""
    updates_per_episode: int
    """Updates after each episode."""
    eval_every: int
    """Episodes between evaluations."""
    eval_episodes: int
    """Greedy episodes per evaluation."""


GAMES = {
    "simple_spread": Schedule(
        steps=25, episodes=300, epsilon_episodes=100, updates_per_episode=2, eval_every=50, eval_episodes=20
    ),
    "digits": Schedule(
        steps=3, episodes=200, epsilon_episodes=100, updates_per_episode=4, eval_every=20, eval_episodes=1
    ),
    "two_step": Schedule(
        steps=2, episodes=300, epsilon_episodes=150, updates_per_episode=4, eval_every=20, eval_episodes=1
    ),
}


@dataclass(frozen=True)
class Config(Settings):
    """Command line of the strength benchmark."""

    games: tuple[str, ...] = tuple(GAMES)
    """Games to play."""
    seeds: Count = 5
    """Runs with different seeds."""
    target_macs: Target = 0.5
    """Fraction of the original MACs that may stay, in digits."""
    pymarl: Path | None = None
    """Folder of a clone of oxwhirl/pymarl."""
    jobs: Count = 1
    """Number of processes, each with one thread."""
    cache: Path = Path("runs/qmix_strength.sqlite")
    """SQLite file that keeps the accuracies of plans for all runs."""
    out: Path = Path("runs/qmix_strength")
    """Folder of the results."""


@dataclass(frozen=True)
class Curve:
    """Learning curve of one implementation over several seeds."""

    steps: list[int]
    """Environment steps before each evaluation."""
    means: list[float]
    """Mean return over seeds at each evaluation."""
    half_widths: list[float]
    """Half-width of the 95 % interval of each mean."""
    final_mean: float
    """Mean over seeds of each run's mean return over the last third of its evaluations."""
    final_half_width: float
    """Half-width of the 95 % interval of `final_mean`."""


Curves = dict[str, dict[str, Curve]]
"""curves[game][implementation]"""


def main(config: Config) -> None:
    """Complete all runs, print the table and write the plot."""
    if unknown := set(config.games) - set(GAMES):
        raise ValueError(f"games must be among {', '.join(GAMES)}; got {min(unknown)!r}")
    require_packages(["matplotlib"], "the plot", "train")
    if "simple_spread" in config.games:
        require_packages(["mpe2"], "simple_spread", "benchmarks")
    check_writable("out", config.out, folder=True)
    check_writable("cache", config.cache)
    torch.set_num_threads(1)
    peers = available_peers(config.pymarl)
    jobs = [
        {
            "game": game,
            "schedule": dataclasses.asdict(GAMES[game]),
            "options": {"target_macs": config.target_macs} if game == "digits" else {},
            "peer": peer,
            "seed": seed,
        }
        for seed in range(config.seeds)
        for game in config.games
        for peer in peers
    ]
    run_job = partial(run, pymarl=config.pymarl, cache=config.cache)
    rows = complete(jobs, run_job, config.out / "runs.jsonl", config.jobs)
    curves = summarise(rows)
    print(table(curves))
    plot(curves, config.out / "curves.png")


def run(job: Job, pymarl: Path | None, cache: Path) -> dict[str, Any]:
    """Train one implementation and return its learning curve: environment steps and mean greedy returns.

    Args:
        job: Game, schedule, implementation and seed.
        pymarl: Folder of a clone of oxwhirl/pymarl.
        cache: File of accuracies, for digits.
    """
    schedule, seed = Schedule(**job["schedule"]), job["seed"]
    training, evaluation = (make_game(job["game"], job["options"], cache) for _ in range(2))
    training = Seeded(training, count(10**4 * (seed + 1)))
    settings = PeerSettings(
        steps=schedule.steps,
        epsilon_episodes=schedule.epsilon_episodes,
        updates_per_episode=schedule.updates_per_episode,
    )
    peer = make_peer(job["peer"], training, settings, seed, pymarl)
    steps, returns = [], []
    for episode in range(0, schedule.episodes, schedule.eval_every):
        train(peer, settings, episode, schedule.eval_every)
        steps.append((episode + schedule.eval_every) * schedule.steps)
        # Every evaluation has the same seeds, which training never uses.
        starts = Seeded(evaluation, cycle(range(10**6, 10**6 + schedule.eval_episodes)))
        returns.append(peer.evaluate(starts, schedule.eval_episodes))
    return {"steps": steps, "returns": returns}


def train(peer: Peer, settings: PeerSettings, played: int, episodes: int) -> None:
    """Play more episodes, and update after each once the replay buffer holds a whole batch.

    `qmix_agent` updates within `collect`.

    Args:
        peer: The implementation.
        settings: Settings that all implementations share.
        played: Episodes played before.
        episodes: Episodes to play.
    """
    if hasattr(peer, "agent"):
        peer.collect(episodes)
        return
    for number in range(played + 1, played + episodes + 1):
        peer.collect(1)
        if number >= settings.batch_size:
            for _ in range(settings.updates_per_episode):
                peer.step(peer.draw())


def make_game(game: str, options: dict[str, Any], cache: Path) -> Env:
    """Make a new environment.

    Args:
        game: One of `GAMES`.
        options: Settings of FilterPruneEnv, for digits.
        cache: File that caches the accuracies of plans, for digits.

    Returns:
        The environment.
    """
    if game == "simple_spread":
        from mpe2 import simple_spread_v3

        return simple_spread_v3.parallel_env(N=3, local_ratio=0.0, max_cycles=GAMES[game].steps)
    if game == "digits":
        from prune_env import make_env

        return make_env("small_cnn", "digits", progress=False, cache=cache, **options)
    if game == "two_step":
        return TwoStep()
    raise ValueError(f"game must be one of {', '.join(GAMES)}; got {game!r}")


def summarise(rows: list[Job]) -> Curves:
    """Average the runs over seeds, for each game and implementation."""
    curves: Curves = {}
    for game, peer in dict.fromkeys((row["job"]["game"], row["job"]["peer"]) for row in rows):
        runs = [row for row in rows if (row["job"]["game"], row["job"]["peer"]) == (game, peer)]
        intervals = [mean_interval(returns) for returns in zip(*(row["returns"] for row in runs), strict=True)]
        third = -(-len(intervals) // 3)
        final_mean, final_half_width = mean_interval([sum(row["returns"][-third:]) / third for row in runs])
        curves.setdefault(game, {})[peer] = Curve(
            steps=runs[0]["steps"],
            means=[mean for mean, _ in intervals],
            half_widths=[half_width for _, half_width in intervals],
            final_mean=final_mean,
            final_half_width=final_half_width,
        )
    return curves


def table(curves: Curves) -> str:
    """Return a Markdown table of mean returns over the last third of the evaluations, with 95 % intervals."""
    peers = list(dict.fromkeys(peer for game in curves.values() for peer in game))
    lines = [f"| game | {' | '.join(peers)} |", "|---" * (len(peers) + 1) + "|"]
    for game, by_peer in curves.items():
        cells = [
            f"{by_peer[peer].final_mean:.3f} ± {by_peer[peer].final_half_width:.3f}" if peer in by_peer else ""
            for peer in peers
        ]
        lines.append(f"| {game} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(curves: Curves, file: Path) -> None:
    """Write a plot with one panel per game: mean return over environment steps, with a band for the 95 % interval."""
    figure = new_figure(4.5 * len(curves), 3.4)
    for axes, (game, by_peer) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        style_axes(axes)
        for peer, curve in by_peer.items():
            low = [mean - half for mean, half in zip(curve.means, curve.half_widths, strict=True)]
            high = [mean + half for mean, half in zip(curve.means, curve.half_widths, strict=True)]
            style = "-" if peer.startswith("ours") else "--"
            (line,) = axes.plot(curve.steps, curve.means, style, label=peer)
            axes.fill_between(curve.steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set(xlabel=f"environment steps, {game}", ylabel="return of greedy episodes")
        add_legend(axes)
    save_figure(figure, file)


if __name__ == "__main__":
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.qmix.strength", description=__doc__))
