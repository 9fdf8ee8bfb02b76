"""The front comparison: its statistics on known answers, and a whole run on the tabulated problem."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import rows
from benchmarks.compare.methods.rules import RULES
from benchmarks.front import __main__ as front
from benchmarks.front import report
from benchmarks.front.methods import METHODS
from prune_env import EnvConfig
from prune_env.game.arguments import ProblemArgs

TARGETS = (0.5, 0.2)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> front.Config:
    """A finished comparison on the tabulated problem, which has plans of these two budgets only."""
    config = front.Config(
        ProblemArgs(tabulated=True),
        EnvConfig(target_macs=TARGETS, rates=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),  # those of the published policy
        unseen=(0.5,),
        max_plans=8,
        seeds=1,
        out=tmp_path_factory.mktemp("front"),
    )
    front.main(config)
    return config


def test_a_run_has_a_row_for_every_method_and_is_not_repeated(settings: front.Config) -> None:
    file = settings.out / "rows.jsonl"
    text = file.read_text()
    found = [json.loads(line) for line in text.splitlines()]
    assert [row["method"] for row in found] == [*RULES, *METHODS]
    for row in found:
        assert list(row["accuracies"]) == [str(target) for target in TARGETS]
        assert row["evaluations"] <= row["max_plans"] or row["method"] in RULES
        assert 0 < row["unseen_accuracies"]["0.5"] <= 1
        assert row["accuracies"]["0.5"] > row["accuracies"]["0.2"] > 0.1
    for name in ("front.md", "front.png"):
        (settings.out / name).unlink()
    front.main(settings)
    assert file.read_text() == text
    assert (settings.out / "front.png").read_bytes().startswith(b"\x89PNG")
    assert all(method in (settings.out / "front.md").read_text() for method in (*RULES, *METHODS))


def test_rows_of_other_weights_are_refused(settings: front.Config, tmp_path: Path) -> None:
    row = json.loads((settings.out / "rows.jsonl").read_text().splitlines()[0])
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"weights_fingerprint": "other"}) + "\n")
    with pytest.raises(ValueError, match=f"other.*{row['weights_fingerprint']}"):
        front.main(dataclasses.replace(settings, out=tmp_path))


def test_other_normalisation_classes_and_weights_are_other_problems(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    different: list[dict[str, Any]] = [{}, {"mean": "none"}, {"mean": (0.5,), "std": (0.5,)}]
    different += [{"classes": tmp_path / "file"}, {"weights": tmp_path / "file"}]
    found = [rows.canonical(rows.problem_of(ProblemArgs(**one), EnvConfig())) for one in different]
    assert len(set(found)) == len(different)


def row(method: str, seed: int, accuracy: float) -> dict[str, Any]:
    accuracies = {"accuracies": {"0.3": accuracy, "0.5": accuracy}, "unseen_accuracies": {"0.4": accuracy}}
    return {"method": method, "seed": seed, "max_plans": 8, "evaluations": 8, "seconds": 2.0, **accuracies}


def test_the_table_has_means_intervals_and_differences() -> None:
    found = [row("qmix_planned", seed, 0.75) for seed in range(3)] + [row("other", seed, 0.5) for seed in range(3)]
    text = report.table(found)
    assert "| qmix_planned | 8 | 3 | 75.0 | 75.0 | 75.0 [75.0, 75.0] | 75.0 [75.0, 75.0] | 2 |" in text
    assert text.count("+25.0 [+25.0, +25.0]") == 2, "over seen and over unseen budgets"
