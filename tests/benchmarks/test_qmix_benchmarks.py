"""The benchmarks of QMIX: speed, strength and ablation, and the jobs and statistics that they use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from benchmarks.compare import jobs, statistics
from benchmarks.compare.methods import METHODS, qmix
from benchmarks.make.enumerate_plans import accuracies, reachable
from benchmarks.qmix import ablation as qmix_ablation
from benchmarks.qmix import speed as qmix_speed
from benchmarks.qmix import strength as qmix_strength
from benchmarks.qmix.games import Idle, Seeded, TwoStep
from benchmarks.qmix.peers import Settings, available_peers, make_peer
from prune_env import FilterPruneEnv
from qmix_agent import QMIXConfig

LONG_RUN = """
import os, sys, time
from pathlib import Path
from benchmarks.compare.jobs import results

def run(folder):
    for _ in range(3000):  # some minutes, so that a failing test leaves no processes behind for long
        (Path(folder) / f"{os.getpid()}.beat").touch()
        time.sleep(0.1)

if __name__ == "__main__":
    list(results([sys.argv[1]] * 2, run, workers=2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_a_killed_benchmark_leaves_no_workers_behind(tmp_path: Path, end: str) -> None:
    (tmp_path / "main.py").write_text(LONG_RUN)
    environment = os.environ | {"PYTHONPATH": str(Path(jobs.__file__).parents[2])}

    def workers() -> int:
        """Return how many workers were active in the last seconds."""
        return sum(time.time() - file.stat().st_mtime < 3 for file in tmp_path.glob("*.beat"))

    def wait_for_workers(count: int) -> None:
        deadline = time.monotonic() + 120
        while workers() != count:
            assert time.monotonic() < deadline, f"{workers()} workers instead of {count}"
            time.sleep(0.1)

    parent = subprocess.Popen([sys.executable, str(tmp_path / "main.py"), str(tmp_path)], env=environment)
    try:
        wait_for_workers(2)
    finally:
        getattr(parent, end)()
        parent.wait()
    wait_for_workers(0)


@pytest.mark.filterwarnings("ignore:PettingZoo in TorchRL")
def test_speed_compares_networks_of_the_same_kind() -> None:
    small = {"agents": 3, "observations": 4, "actions": 3, "steps": 2}
    rates = qmix_speed.measure(qmix_speed.Config(repeats=2, updates=1, episodes=1, **small))
    assert list(rates) == ["ours, GRU", "ours, MLP", "TorchRL, MLP"]
    assert all(len(values) == 2 and min(values) > 0 for ways in rates.values() for values in ways.values())
    rates["ours, MLP"]["update"], rates["TorchRL, MLP"]["update"] = [10.0, 30.0], [5.0, 5.0]
    rows = qmix_speed.summarise(rates)
    assert rows["TorchRL, MLP"]["ours / update"] == 4.0
    assert "5 (ours 4.0 x)" in qmix_speed.table(rows)


@pytest.mark.filterwarnings("ignore:PettingZoo in TorchRL")
@pytest.mark.parametrize("name", ["ours, MLP", "TorchRL, MLP"])
def test_peers_draw_equal_amounts_of_experience(name: str) -> None:
    settings = Settings(steps=2, batch_size=4, updates_per_episode=1)
    options = {"learning_starts": settings.buffer_size} if name.startswith("ours") else {}
    peer = make_peer(name, Idle(3, 4, 3, steps=2), settings, 0, None, **options)
    assert peer.collect(5) == 0
    batch = peer.draw()
    rewards = batch.rewards if name.startswith("ours") else batch["next", "reward"]
    assert rewards.numel() == settings.batch_size * settings.steps
    peer.step(batch)
    assert peer.evaluate(Idle(3, 4, 3, steps=2), 2) == 0


def test_without_a_clone_pymarl_is_left_out_and_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "PyMARL, GRU" not in available_peers(None)
    assert "PyMARL, GRU" in capsys.readouterr().out
    with pytest.raises(ValueError, match="q_learner"):
        available_peers(tmp_path)


def test_interrupted_jobs_resume_where_they_stopped(tmp_path: Path) -> None:
    todo, ran = [{"seed": seed} for seed in range(3)], []

    def run(job: jobs.Job) -> dict[str, int]:
        if job["seed"] == 2 and not done.exists():
            raise KeyboardInterrupt
        ran.append(job["seed"])
        return {"square": job["seed"] ** 2}

    done = tmp_path / "done"
    with pytest.raises(KeyboardInterrupt):
        jobs.complete(todo, run, tmp_path / "runs.jsonl")
    done.touch()
    rows = jobs.complete(todo, run, tmp_path / "runs.jsonl")
    assert ran == [0, 1, 2]
    assert rows == [{"job": {"seed": seed}, "square": seed**2} for seed in range(3)]
    assert jobs.complete(todo[::-1], run, tmp_path / "runs.jsonl") == rows[::-1]
    assert ran == [0, 1, 2]
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"job": {"se')  # the process was killed while writing
    assert jobs.complete([*todo, {"seed": 3}], run, tmp_path / "runs.jsonl")[3] == {"job": {"seed": 3}, "square": 9}
    assert jobs.complete(todo, run, tmp_path / "runs.jsonl") == rows


def test_intervals_are_those_of_student_and_welch() -> None:
    from scipy import stats

    a, b = [1.0, 2.0, 4.0, 4.5, 7.0], [2.0, 2.5, 2.0, 3.0]
    mean, half = statistics.mean_interval(a)
    assert (mean - half, mean + half) == pytest.approx(stats.ttest_1samp(a, 0).confidence_interval())
    mean, half = statistics.difference_interval(a, b)
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert (mean - half, mean + half) == pytest.approx((expected.low, expected.high))
    assert statistics.difference_interval([2.0, 2.0], [1.0, 1.0]) == (1.0, 0.0)


def test_every_plan_that_can_be_played_is_enumerated(make_env: Callable[..., FilterPruneEnv]) -> None:
    coarse = {"rates": (0.0, 0.5), "rounds": 2, "target_macs": 0.3}
    plans = reachable(make_env(**coarse))
    assert len(plans) == len(set(plans)) > 100
    played = METHODS["random"](make_env(**coarse), 60, 0)
    assert {entry.plan for entry in played.entries} <= set(plans)
    env = make_env(**coarse)
    assert accuracies(env, [played.entries[0].plan]) == {played.entries[0].plan: played.entries[0].accuracy}
    assert all(0.29 <= env.cost_ratios(plan)[0] <= 0.3 for plan in plans)
    with pytest.raises(ValueError, match="round"):
        reachable(make_env(), most=1000)


def test_ablation_changes_one_field_at_a_time(make_env: Callable[..., FilterPruneEnv]) -> None:
    settings = qmix_ablation.alternatives(["mixer", "updates_per_episode"])
    assert list(settings)[:2] == ["default", "random search"]
    assert {"mixer": "vdn"} in settings.values()
    assert {"mixer": QMIXConfig().mixer} not in settings.values()
    assert all(QMIXConfig(**fields) for fields in qmix_ablation.alternatives().values())
    env = make_env(rates=(0.0, 0.5), rounds=1)
    fields = {"learning_starts": 4, "batch_size": 4, "hidden_size": 8}
    result = qmix.learn(env, 6, 0, **fields)
    assert len(result.curve) == 6 or result.proposals == 18
    assert result.curve == sorted(result.curve)
    assert result.curve[-1] == max(entry.accuracy for entry in env.archive)


def test_regret_is_relative_to_the_best_plan_in_percentage_points() -> None:
    def row(setting: str, curve: list[float]) -> jobs.Job:
        job = {"setting": setting, "max_plans": 4, "seed": 0}
        return {"job": job, "curve": curve, "episodes": 8, "seconds": 1.0}

    rows = [row("default", [0.5, 0.6, 0.6, 0.7]), row("default", [0.5, 0.8]), row("double_q = False", [0.5] * 4)]
    assert [qmix_ablation.regret(r, 0.9, 1.0) for r in rows] == pytest.approx([20, 10, 40])
    assert qmix_ablation.regret(rows[0], 0.9, 0.5) == pytest.approx(30)
    lines = qmix_ablation.table([*rows, rows[2]], 0.9).splitlines()
    assert lines[2].startswith("| default | 20.00 ± 127.06 | 15.00 ± 63.53 |  | 8 |")
    assert "| 40.00 ± 0.00 | +25.00 ± 63.53 |" in lines[3]


def test_two_step_has_the_payoffs_of_the_paper() -> None:
    payoffs = {}
    for actions in product((0, 1), repeat=4):
        game = TwoStep()
        game.reset()
        game.step(dict(zip(game.possible_agents, actions[:2], strict=True)))
        _, rewards, ends, _, _ = game.step(dict(zip(game.possible_agents, actions[2:], strict=True)))
        payoffs[actions] = rewards["agent_0"]
        assert all(ends.values())
        assert not game.agents
    assert {payoffs[0, other, a, b] for other in (0, 1) for a in (0, 1) for b in (0, 1)} == {7.0}
    assert [payoffs[(1, 0, *last)] for last in ((0, 0), (0, 1), (1, 0), (1, 1))] == [0.0, 1.0, 1.0, 8.0]


def test_seeded_ignores_the_seed_argument() -> None:
    class RecordsSeeds(TwoStep):
        def reset(self, seed: int | None = None, options: object = None) -> tuple[dict, dict]:
            seeds.append(seed)
            return super().reset()

    seeds: list[int | None] = []
    env = Seeded(RecordsSeeds(), [5, 6])
    env.reset(seed=1)
    env.reset()
    assert seeds == [5, 6]


@pytest.mark.filterwarnings("ignore:PettingZoo in TorchRL")
@pytest.mark.parametrize("peer", ["ours, MLP", "TorchRL, MLP"])
def test_strength_runs_are_reproducible_and_plotted(peer: str, tmp_path: Path) -> None:
    schedule = qmix_strength.Schedule(
        steps=2, episodes=36, epsilon_episodes=10, updates_per_episode=1, eval_every=18, eval_episodes=2
    )
    job = {"game": "two_step", "schedule": vars(schedule), "options": {}, "peer": peer, "seed": 0}
    first, second = (qmix_strength.run(job, None, tmp_path / "unused") for _ in range(2))
    assert first == second
    assert first["steps"] == [36, 72]
    assert set(first["returns"]) <= {0.0, 1.0, 7.0, 8.0}
    rows = [{"job": job, **first}, {"job": {**job, "seed": 1}, "steps": [36, 72], "returns": [7.0, 8.0]}]
    curves = qmix_strength.summarise(rows)
    assert curves["two_step"][peer].means[1] == (first["returns"][1] + 8) / 2
    assert f"| game | {peer} |" in qmix_strength.table(curves)
    qmix_strength.plot(curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
