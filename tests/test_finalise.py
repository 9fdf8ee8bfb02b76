"""From plans to a network, and the folder of a run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.data import Split
from prune_env.finalise import accuracy, choose, distil_fully, recalibrated
from prune_env.game.config import DEFAULT_RATES
from prune_env.reporting import run_folder as runs
from prune_env.training.distillation import DistillationConfig, Teacher

SHORT = DistillationConfig(epochs=2, min_steps=20, batch_size=64)
PLANS = [(20, 20, 40, 40, 80), (32, 10, 64, 20, 128), (20, 20, 40, 40, 80)]


class Forbidden(Split):
    """The test set: its images must not be looked at."""

    def __getattribute__(self, name: str) -> object:
        raise AssertionError(f"{name} of the test set was read")


@pytest.fixture
def env(make_env: Callable[..., FilterPruneEnv]) -> FilterPruneEnv:
    env = make_env()
    fingerprint = env.problem.data.fingerprint
    env.problem.data = dataclasses.replace(env.problem.data, test=Forbidden.__new__(Forbidden))
    object.__setattr__(env.problem.data, "fingerprint", fingerprint)
    return env


def test_the_choice_ranks_distinct_plans_without_the_test_set(env: FilterPruneEnv, tmp_path: Path) -> None:
    finalists = choose(env, PLANS, SHORT, checkpoints=tmp_path, progress=False)
    assert sorted(finalist.plan for finalist in finalists) == sorted(set(PLANS))
    scores = [finalist.distilled_accuracy for finalist in finalists]
    assert scores == sorted(scores, reverse=True)
    assert all(finalist.distilled_accuracy > finalist.recalibrated_accuracy for finalist in finalists)
    assert choose(env, PLANS[::-1], SHORT, checkpoints=tmp_path, progress=False) == finalists, "found again on disk"


def test_the_full_distillation_is_at_least_as_good(env: FilterPruneEnv) -> None:
    short = choose(env, PLANS[:1], SHORT, progress=False)[0]
    full = distil_fully(env, PLANS[0], dataclasses.replace(SHORT, epochs=8), progress=False)
    assert accuracy(full, env.problem.data, env.problem.data.reward) >= short.distilled_accuracy - 0.01


def test_finalists_and_winner_are_taught_once(env: FilterPruneEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    """They see the same batches, which a teacher that they share need not be asked twice."""
    batches, compute = [], Teacher._compute
    monkeypatch.setattr(Teacher, "_compute", lambda teacher, images: batches.append(images) or compute(teacher, images))
    brief = dataclasses.replace(SHORT, epochs=1, min_steps=0)
    teacher, epoch = Teacher(env.problem.model), len(env.problem.data.train) // brief.batch_size
    finalists = choose(env, PLANS, brief, short_epochs=0.5, teacher=teacher, progress=False)
    assert len(batches) == round(epoch / 2)
    distil_fully(env, PLANS[0], brief, teacher=teacher, progress=False)
    assert len(batches) == epoch
    assert choose(env, PLANS, brief, short_epochs=0.5, progress=False) == finalists
    assert len(batches) == epoch + round(epoch / 2), "without being given one, finalists share one"


def test_a_teacher_of_another_network_is_refused(env: FilterPruneEnv) -> None:
    teacher = Teacher(recalibrated(env, PLANS[0]))
    with pytest.raises(ValueError, match="the teacher is another network"):
        choose(env, PLANS, SHORT, teacher=teacher, progress=False)
    with pytest.raises(ValueError, match=r"give Teacher\(env.problem.model, device\)"):
        distil_fully(env, PLANS[0], SHORT, teacher=teacher, progress=False)


def test_a_network_is_no_teacher_to_share(env: FilterPruneEnv) -> None:
    wanted = r"a Teacher, got SmallCNN; give Teacher\(env.problem.model, device\)"
    with pytest.raises(TypeError, match=wanted):
        choose(env, PLANS, SHORT, teacher=env.problem.model, progress=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=wanted):
        distil_fully(env, PLANS[0], SHORT, teacher=env.problem.model, progress=False)  # type: ignore[arg-type]


def test_no_plans(env: FilterPruneEnv) -> None:
    with pytest.raises(ValueError, match="no finished plans"):
        choose(env, [], SHORT)


@pytest.mark.slow
def test_a_row_says_whose_plan_it_has(
    make_env: Callable[..., FilterPruneEnv], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_env()
    monkeypatch.setattr(runs, "_onnx_files", lambda *_: {})
    plans = {
        "original": env.problem.full_plan,
        "uniform L1": PLANS[0],
        "QMIX": PLANS[0],
        "other": PLANS[1],
        "whole": env.problem.full_plan,
    }
    networks = {name: recalibrated(env, plan) for name, plan in plans.items()}
    rows = runs.figures(tmp_path, env, networks, plans, {"QMIX": 0.5}, {}, winner="QMIX")
    assert [row.name for row in rows] == ["original", "uniform L1", "QMIX = uniform L1", "other", "whole = original"]
    assert rows[2].accuracy == 0.5


class TestDirectory:
    def test_numbers_go_up_and_resume_takes_the_latest(self, tmp_path: Path) -> None:
        settings = {"episodes": 3, "path": tmp_path}
        one, two = (runs.directory(tmp_path, None, "vgg16-cifar[10]", settings, False) for _ in range(2))
        assert (one.name, two.name) == ("vgg16-cifar[10]-1", "vgg16-cifar[10]-2")
        assert runs.directory(tmp_path, None, "vgg16-cifar[10]", settings, True) == two

    def test_refusals(self, tmp_path: Path) -> None:
        runs.directory(tmp_path, "mine", "stem", {"episodes": 3}, False)
        with pytest.raises(FileExistsError, match="--resume"):
            runs.directory(tmp_path, "mine", "stem", {"episodes": 3}, False)
        with pytest.raises(ValueError, match=r"other settings \(episodes: 3 in the run, 4 now\)"):
            runs.directory(tmp_path, "mine", "stem", {"episodes": 4}, True)
        with pytest.raises(FileNotFoundError, match="no run to resume"):
            runs.directory(tmp_path, "typo", "stem", {"episodes": 3}, True)
        for name in ("../mine", "a/b", "..", "/mine"):
            with pytest.raises(ValueError, match="is no name of a folder"):
                runs.directory(tmp_path / "runs", name, "stem", {"episodes": 3}, False)
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"env": EnvConfig(target_macs=0.4)}, "env.target_macs: 0.5 in the run, 0.4 now"),
            ({"env": EnvConfig(target_macs=None, reward="amc")}, "env.target_macs: 0.5 in the run, None now; "
             "env.reward: 'budget' in the run, 'amc' now"),
            ({"env": EnvConfig(rates=(0, 0.5))}, f"env.rates: {list(DEFAULT_RATES)} in the run, [0, 0.5] now"),
            ({"seed": 1, "weights": Path("a")}, "weights: None in the run, 'a' now; seed: 0 in the run, 1 now"),
            ({"added": True}, "added: not set in the run, True now"),
            ({"added": None}, "added: not set in the run, None now"),
            ({"seed": ...}, "seed: 0 in the run, not set now"),
        ],
    )  # fmt: skip
    def test_a_resumed_run_names_every_field_that_changed(
        self, change: dict[str, Any], told: str, tmp_path: Path
    ) -> None:
        before = {"env": EnvConfig(), "weights": None, "seed": 0}
        now = {name: value for name, value in (before | change).items() if value is not ...}
        before, now = ({k: vars(v) if k == "env" else v for k, v in one.items()} for one in (before, now))
        runs.directory(tmp_path, "mine", "stem", before, False)
        with pytest.raises(ValueError, match=re.escape(f"begun with other settings ({told}); see")):
            runs.directory(tmp_path, "mine", "stem", now, True)
        assert runs.directory(tmp_path, "mine", "stem", before, True) == tmp_path / "mine"
