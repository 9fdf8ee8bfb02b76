"""Rows find the named problem that they belong to, and the docs have the tables of all rows in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import named, rows
from prune_env import EnvConfig, list_problems
from prune_env.game.arguments import ProblemArgs
from prune_env.game.problems import PROBLEMS

ROOT = Path(__file__).parents[2]
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "resnet20-12fca82f.th"
    file.touch()
    return file


def made(args: ProblemArgs, target: float = 0.5, seed: int = 0, accuracy: float = 0.5, **settings: Any) -> rows.Row:
    """Return a row as `benchmarks.compare` writes it."""
    problem = rows.problem_of(args, EnvConfig(rates=RATES, round_to=None if args.tabulated else 1, **settings))
    result = {"search_accuracy": accuracy, "search_seconds": 2.0, "evaluations": 9}
    return {"problem": problem, "target_macs": target, "method": "random", "max_plans": 9, "seed": seed, **result}


def test_rows_find_their_problem(weights: Path) -> None:
    resnet, digits = ProblemArgs(network="resnet20", weights=weights), ProblemArgs(tabulated=True)
    assert named.problem_name(made(resnet)) == "resnet20-cifar10-0.5-v1"
    assert named.problem_name(made(resnet, 0.3, precision="bf16")) == "resnet20-cifar10-0.3-v1"
    assert named.problem_name(made(digits, 0.2)) == "small_cnn-digits-0.2-v1"
    fingerprint = {"weights_fingerprint": PROBLEMS["resnet20-cifar10-0.5-v1"].weights}
    assert named.problem_name(made(resnet) | fingerprint) == "resnet20-cifar10-0.5-v1"


@pytest.mark.parametrize(
    "settings",
    [{"target": 0.4}, {"rounds": 5}, {"precision": "fp32"}, {"finetune_batches": 10}, {"reward_images": 500}],
)
def test_rows_with_other_settings_have_no_problem(settings: dict[str, Any], weights: Path) -> None:
    assert named.problem_name(made(ProblemArgs(network="resnet20", weights=weights), **settings)) is None


def test_rows_with_other_weights_have_no_problem(weights: Path) -> None:
    args = ProblemArgs(network="resnet20", weights=weights)
    assert named.problem_name(made(args) | {"weights_fingerprint": "0"}) is None
    assert named.problem_name(made(ProblemArgs(network="resnet56", weights=weights))) is None
    assert named.problem_name(made(ProblemArgs(network="small_cnn"))) is None


def test_the_table_counts_every_search_once() -> None:
    args = ProblemArgs(tabulated=True)
    found = [made(args, seed=seed, accuracy=accuracy) for seed, accuracy in enumerate([0.0, 0.5, 0.75, 1.0])]
    assert "| random | 9 | 4 | 62.5 [" in named.table([*found, found[0] | {"finalisation": None}])
    assert "| random | 9 | 1 | 50.0 | 2 |" in named.table(found[1:2]), "a single seed has no interval"


def test_the_page_has_every_problem_and_the_tables_of_the_repository() -> None:
    page = (ROOT / "docs" / "benchmarks" / "problems.md").read_text()
    found = rows.read([ROOT / "benchmarks" / "results"])
    for name in list_problems():
        assert f"`{name}`" in page
        if mine := [row for row in found if named.problem_name(row) == name]:
            assert named.table(mine) in page, f"{name}: paste the output of benchmarks.compare.named"
