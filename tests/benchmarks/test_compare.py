"""A comparison resumes, shards and keeps its rows; the report summarises the rows."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from episodes import FAST

from benchmarks.compare import report, rows, statistics
from benchmarks.compare import run as compare
from benchmarks.compare.methods import qmix
from benchmarks.compare.model import comparisons
from prune_env import EnvConfig
from prune_env.game.arguments import ProblemArgs
from prune_env.training.distillation import DistillationConfig, Teacher
from qmix_agent import QMIXConfig

BRIEF = DistillationConfig(epochs=0.2, min_steps=4, batch_size=64)


def config(out: Path, **settings: object) -> compare.Config:
    """Return a comparison on the tabulated problem, where a search takes no time."""
    usual = {
        "methods": ("uniform", "random", "evolution"),
        "max_plans": 12,
        "seeds": 2,
        "finalise": False,
        "short_epochs": 0.2,
    }
    return compare.Config(ProblemArgs(tabulated=True), out=out, distillation=BRIEF, **(usual | settings))


def without_times(row: rows.Row) -> rows.Row:
    return {name: value for name, value in row.items() if not name.endswith("_seconds")}


class TestCompare:
    def test_rows_say_what_was_found_and_runs_are_not_repeated(self, tmp_path: Path) -> None:
        compare.main(config(tmp_path, seeds=1))
        first = (tmp_path / "rows-0-of-1.jsonl").read_text()
        compare.main(config(tmp_path))
        assert (tmp_path / "rows-0-of-1.jsonl").read_text().startswith(first)
        found = rows.read([tmp_path])
        assert [(row["method"], row["seed"]) for row in found] == [
            (method, seed) for seed in (0, 1) for method in ("uniform", "random", "evolution")
        ], "a seed is completed before the next"
        for row in found:
            assert row["evaluations"] == len(row["curve"]) == (1 if row["method"] == "uniform" else 12)
            assert max(row["curve"]) == row["search_accuracy"] <= row["optimum"]

    def test_rows_of_learners_say_how_these_were_set(self, tmp_path: Path) -> None:
        compare.main(config(tmp_path, methods=("vdn", "random"), seeds=1))
        vdn, random = rows.read([tmp_path])
        expected = QMIXConfig(mixer="vdn", epsilon_episodes=6, eval_every=0, **qmix.SETTINGS)
        assert vdn["method_settings"].items() <= dataclasses.asdict(expected).items()
        assert vdn["method_settings"]["learning_rate"] == expected.learning_rate
        assert random["method_settings"] == {}

    @pytest.mark.parametrize(
        ("change", "named"),
        [({"hidden_size": 32, "gone": 1}, "hidden_size.*32.*64.*gone.*1"), (None, "vdn")],
    )
    def test_rows_of_a_learner_with_other_settings_are_refused(
        self, tmp_path: Path, change: dict[str, Any] | None, named: str
    ) -> None:
        settings = config(tmp_path, methods=("vdn", "random"), seeds=1)
        compare.main(settings)
        vdn, random = rows.read([tmp_path])
        if change is None:
            del vdn["method_settings"]
        else:
            vdn["method_settings"] |= change
        settings.file.write_text("".join(json.dumps(row) + "\n" for row in (vdn, random)))
        for changed in (settings, dataclasses.replace(settings, finalise=True)):
            with pytest.raises(ValueError, match=named):
                compare.main(changed)
        compare.main(dataclasses.replace(settings, methods=("random",)))

    def test_rows_of_other_weights_are_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A changed file keeps its name, and without a file every machine trains its own weights."""
        settings = config(tmp_path, methods=("random",), seeds=1)
        compare.main(settings)
        assert re.search(r"50 % .*seed 0.*random.* 9\d\.\d\d % .*12 .*\n", capsys.readouterr().out)
        (row,) = rows.read([tmp_path])
        settings.file.write_text(json.dumps(row | {"weights_fingerprint": "other"}) + "\n")
        for changed in (
            {"finalise": True},
            {"seeds": 2},
            {"methods": ("uniform",)},
            {"env": EnvConfig(target_macs=0.3)},
            {"methods": ("random", "uniform"), "shard": "1/2"},
        ):
            with pytest.raises(
                ValueError,
                match=rf"other.*{row['weights_fingerprint']}",
            ):
                compare.main(dataclasses.replace(settings, **changed))  # type: ignore[arg-type]
        compare.main(settings)  # nothing is left to do
        settings.file.write_text(json.dumps(row) + "\n")
        compare.main(dataclasses.replace(settings, seeds=2))
        assert len(rows.read([tmp_path])) == 2

    def test_interrupted_and_sharded_runs_end_as_one(self, tmp_path: Path) -> None:
        compare.main(config(tmp_path / "one"))
        for shard in ("1/2", "0/2"):
            compare.main(config(tmp_path / "two", shard=shard))
        assert len(list((tmp_path / "two").iterdir())) == 2
        half = tmp_path / "two" / "rows-0-of-2.jsonl"
        lines = half.read_text().splitlines(keepends=True)
        half.write_text("".join(lines[:-1]) + lines[-1][:50])  # killed while it wrote
        compare.main(config(tmp_path / "two", shard="0/2"))
        one, two = (
            {rows.identity(row): without_times(row) for row in rows.read([tmp_path / name])} for name in ("one", "two")
        )
        assert one == two
        assert len(one) == 6

    def test_what_is_not_tabulated_is_refused_before_the_first_run(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"target_macs=0\.4"):
            compare.main(config(tmp_path, env=EnvConfig(target_macs=(0.5, 0.4))))
        assert not list(tmp_path.iterdir())

    def test_other_settings_are_other_runs(self, tmp_path: Path) -> None:
        for settings in ({}, {"max_plans": 13}, {"env": EnvConfig(target_macs=0.3)}):
            compare.main(config(tmp_path, methods=("uniform",), seeds=1, **settings))
        assert len(rows.read([tmp_path])) == 3

    def test_finalisation_tests_the_winner_of_the_finalists(self, tmp_path: Path) -> None:
        compare.main(config(tmp_path, methods=("random",), seeds=1, finalise=True, finalists=2))
        (row,) = rows.read([tmp_path])
        distilled = [finalist["distilled_accuracy"] for finalist in row["finalists"]]
        assert len(distilled) == 2
        assert distilled == sorted(distilled, reverse=True)
        assert row["plan"] == row["finalists"][0]["plan"]
        assert row["rescored_accuracy"] == row["finalists"][0]["rescored_accuracy"]
        assert row["search_accuracy"] == max(finalist["search_accuracy"] for finalist in row["finalists"])
        tested = [row[f"{kind}test_accuracy"] for kind in ("", "short_", "original_")]
        assert all(abs(360 * accuracy - round(360 * accuracy)) < 1e-6 for accuracy in tested), "shares of 360 images"

    @pytest.mark.slow
    def test_runs_of_one_seed_share_a_teacher(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        passes, compute = [], Teacher.compute
        monkeypatch.setattr(Teacher, "compute", lambda teacher, images: passes.append(1) or compute(teacher, images))
        settings: dict[str, object] = {"seeds": 2, "finalise": True, "finalists": 1}
        counts = []
        for number, methods in enumerate([("uniform",), ("uniform",), ("uniform", "random")]):
            before = len(passes)
            compare.main(config(tmp_path / str(number), methods=methods, **settings))
            counts.append(len(passes) - before)
        # The first comparison fills the cache of one teacher, so that the other two start alike.
        assert counts[1] == counts[2] > 0, "the second method of a seed needs no forward pass of the teacher"

    def test_what_was_searched_before_is_only_finalised(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = {"methods": ("random",), "seeds": 1, "finalists": 2}
        compare.main(config(tmp_path / "at once", finalise=True, **settings))
        compare.main(config(tmp_path / "in two", finalise=False, **settings))
        monkeypatch.setitem(compare.METHODS, "random", lambda *_: pytest.fail("searched again"))
        compare.main(config(tmp_path / "in two", finalise=True, **settings))
        (at_once,) = rows.read([tmp_path / "at once"])
        searched, finalised = rows.read([tmp_path / "in two"])
        assert searched["finalisation"] is None
        assert without_times(finalised) == without_times(at_once)

    def test_a_search_keeps_enough_plans_for_every_finalisation(self, tmp_path: Path) -> None:
        compare.main(config(tmp_path, methods=("random",), seeds=1))
        (row,) = rows.read([tmp_path])
        accuracies = [candidate["search_accuracy"] for candidate in row["candidates"]]
        assert len(accuracies) == compare.CANDIDATES
        assert accuracies == sorted(accuracies, reverse=True)
        with pytest.raises(ValueError, match="finalists"):
            config(tmp_path, finalists=compare.CANDIDATES + 1)

    @pytest.mark.slow
    def test_several_processes_find_the_same(self, tmp_path: Path) -> None:
        for jobs in (1, 2):
            compare.main(config(tmp_path / str(jobs), jobs=jobs, seeds=1))
        one, two = ({rows.identity(row): row["curve"] for row in rows.read([tmp_path / name])} for name in "12")
        assert one == two

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"methods": ("guess",)}, "'guess'"),
            ({"shard": "2/2"}, "'2/2'"),
            ({"max_plans": 0}, "max_plans"),
            ({"env": EnvConfig(round_finetune_batches=2)}, "round-finetune-batches"),
            ({"env": EnvConfig(target_macs=None)}, "target-macs"),
        ],
    )
    def test_bad_settings(self, tmp_path: Path, settings: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            config(tmp_path, **settings)


class TestRows:
    @pytest.mark.parametrize("tabulated", [False, True])
    def test_a_missing_setting_counts_as_its_default(self, tmp_path: Path, tabulated: bool) -> None:
        settings = compare.Config(ProblemArgs(tabulated=tabulated), distillation=BRIEF, out=tmp_path)
        row = settings.identity(0, 0.5, "qmix")
        older = {**row, "problem": dict(row["problem"]), "finalisation": dict(row["finalisation"])}
        older["problem"].pop("finetune_batches", None)
        del older["finalisation"]["cutout"]
        assert rows.identity(older) == rows.identity(row)
        assert len(comparisons([older, {**row, "seed": 1}])) == 1
        other = {**row, "problem": {**row["problem"], "finetune_batches": 3}}
        assert rows.identity(other) != rows.identity(row)
        assert len(comparisons([row, other])) == 2

    def test_rows_of_other_networks_do_not_compare(self, tmp_path: Path) -> None:
        row = compare.Config(ProblemArgs(network="vgg16"), distillation=BRIEF, out=tmp_path).identity(0, 0.5, "qmix")
        trained = {**row, "problem": {**row["problem"], "finetune_batches": 3}}
        theirs = {**row, "problem": {**row["problem"], "weights": "theirs.pt"}}
        titles = [comparison.title for comparison in comparisons([row, trained, theirs])]
        assert all("vgg16" in title and "digits" in title and "300" in title for title in titles)
        assert [" 3 batches" in title for title in titles] == [False, True, False]
        assert ["theirs.pt" in title for title in titles] == [False, False, True]
        again = {**row, "seed": 1, "weights_fingerprint": "of another training"}
        assert len(comparisons([row, again])) == 2

    def test_numbers_may_be_written_as_they_come(self, tmp_path: Path) -> None:
        whole = compare.Config(env=EnvConfig(rates=(0, 0.5)), finalists=2, distillation=BRIEF, out=tmp_path)
        floating = dataclasses.replace(whole, env=EnvConfig(rates=(0.0, 0.5), target_macs=1.0))
        row, same = whole.identity(0, 1, "qmix"), json.loads(json.dumps(floating.identity(0, 1.0, "qmix")))
        assert rows.identity(row) == rows.identity(same)
        assert len(comparisons([row, {**same, "seed": 1}])) == 1
        assert same["problem"]["prove"] is True
        assert rows.identity(row) != rows.identity({**same, "problem": {**same["problem"], "prove": 1}})

    def test_methods_with_fewer_seeds_come_later(self) -> None:
        found = [*made({"qmix": [0.9, 0.8], "random": [0.7, 0.7]}), *made({"vdn": [0.95]})]
        (comparison,) = comparisons(found)
        assert [line.method for line in comparison.lines(0.5)] == ["qmix", "random", "vdn"]

    def test_bad_files(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="none"):
            rows.read([tmp_path / "none"])
        (tmp_path / "bad.jsonl").write_text('{"seed": 1}\n')
        with pytest.raises(ValueError, match=r"bad\.jsonl, line 1 .*problem"):
            rows.read([tmp_path])


def made(accuracies: dict[str, list[float]], target: float = 0.5) -> list[rows.Row]:
    """Rows of a comparison that never was."""
    return [
        {
            "problem": {"network": "none", "data": "invented", "weights": None},
            "target_macs": target,
            "max_plans": 3,
            "finalisation": {"finalists": 1},
            "method": method,
            "seed": seed,
            "plan": [4, 8],
            "full_plan": [8, 8],
            "macs_ratio": target,
            "search_accuracy": accuracy - 0.1,
            "original_search_accuracy": 0.99,
            "evaluations": 3,
            "proposals": 3,
            "optimum": None,
            "curve": [0.1, accuracy - 0.2, accuracy - 0.1],
            "search_seconds": 2.0,
            "search_machine": {"device": "none", "threads": 1, "versions": {"python": "3"}},
            "rescored_accuracy": accuracy - 0.1,
            "short_test_accuracy": accuracy - 0.05,
            "test_accuracy": accuracy,
            "original_test_accuracy": 0.98,
            "short_seconds": 1.0,
            "full_seconds": 3.0,
            "finalists": [
                {
                    "plan": [4, 8],
                    "search_accuracy": accuracy - 0.1,
                    "rescored_accuracy": accuracy - 0.1,
                    "distilled_accuracy": accuracy - 0.02,
                }
            ],
        }
        for method, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


class TestReport:
    ROWS = made({"qmix": [0.91, 0.92, 0.94], "random": [0.90, 0.90, 0.91], "uniform": [0.88, 0.88, 0.88]})

    def test_a_folder_without_rows_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
            report.main(report.Config((tmp_path,)))
        assert not list(tmp_path.iterdir())

    def test_numbers(self) -> None:
        (comparison,) = comparisons(self.ROWS)
        ours, random, uniform = comparison.lines(0.5)
        assert [line.method for line in (ours, random, uniform)] == ["qmix", "random", "uniform"]
        assert ours.result.value == pytest.approx(0.92 + 0.01 / 3)
        assert (ours.rank, random.rank, uniform.rank) == (1, 2, 3)
        against = ours.against["random"]
        assert against is not None
        assert against.value == pytest.approx(0.02)
        assert (against.low, against.high) == (pytest.approx(0.01), pytest.approx(0.03))
        assert against.p == pytest.approx(0.0742, abs=1e-4)  # t = sqrt(3) * 0.02 / 0.01 at 2 degrees of freedom
        assert random.against["random"] is None
        assert ours.finalise_seconds == 4

    def test_files(self, tmp_path: Path) -> None:
        page = report.write(self.ROWS + made({"qmix": [0.8], "random": [0.7]}, target=0.3), tmp_path)
        text = page.read_text()
        assert text.count("data:image/png;base64,") == 5
        assert 'src="http' not in text
        assert "92.33" in text
        assert "+2.00 [+1.00, +3.00], 0.074" in text
        assert {file.name for file in tmp_path.iterdir()} == {"report.html", "report.csv"} | {
            f"1-none-{name}.png" for name in ("methods", "front", "curves", "layers", "correlation")
        }
        table = list(csv.DictReader((tmp_path / "report.csv").open()))
        assert len(table) == 3 + 2 + 3
        assert float(table[0]["random difference"]) == pytest.approx(0.02)

    def test_without_finalisation_and_without_references(self, tmp_path: Path) -> None:
        plain = [row | {"finalisation": None} for row in made({"qmix": [0.9]})]
        (comparison,) = comparisons(plain)
        (line,) = comparison.lines(0.5)
        assert line.result.value == pytest.approx(0.8)
        assert math.isnan(line.result.low)
        assert report.write(plain, tmp_path).read_text().count("base64") == 3  # one budget has no front

    def test_accuracies_of_other_weights_are_no_rivals(self, tmp_path: Path) -> None:
        found = made({"amc_ls": [0.99], "qmix": [0.9], "random": [0.8]})
        searched = [row | {"finalisation": None} for row in found]
        (comparison,) = comparisons(searched)
        lines = comparison.lines(0.5)
        assert [line.method for line in lines] == ["qmix", "random", "amc_ls"]
        assert [line.rank for line in lines[:2]] == [1, 2]
        assert math.isnan(lines[2].rank)
        assert lines[2].against == {"random": None, "uniform": None}
        assert "amc_ls" not in str(comparison.plots()["curves"].legends[0].get_texts())
        assert report.OWN in report.write(searched[:1], tmp_path).read_text()

        (comparison,) = comparisons(found)  # test accuracies compare, the way there does not
        assert [line.rank for line in comparison.lines(0.5)] == [1, 2, 3]
        other = made({"qmix": [0.7]}, target=0.3)
        (panel,) = comparisons([found[0], *other])[0].plots()["curves"].axes
        assert panel.get_title("left") == "30 % of the MACs"
        assert "curves" not in comparisons(found[:1])[0].plots()

    def test_what_can_be_reached_and_what_does_not_compare_is_told(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for optimum, methods in ((0.9876, ("random",)), (None, ("random", "amc_ls"))):
            found = made({name: [0.9, 0.8] for name in methods})
            for row in found:
                row |= {"optimum": optimum, "finalisation": None}
                rows.append(tmp_path / f"{optimum}.jsonl", row)
            report.main(report.Config((tmp_path / f"{optimum}.jsonl",), tmp_path / "report"))
            page, printed = (tmp_path / "report" / "report.html").read_text(), capsys.readouterr().out
            assert ("98.76 %" in page) == (optimum is not None)
            assert ("98.76 %" in printed) == (optimum is not None)
            assert (report.OWN in printed) == ("amc_ls" in methods)

    def test_seconds_of_cached_searches_do_not_count(self, tmp_path: Path, trained: torch.nn.Module) -> None:
        torch.save(trained.state_dict(), tmp_path / "weights.pt")
        for cache in (None, tmp_path / "cache.sqlite"):
            problem = ProblemArgs(weights=tmp_path / "weights.pt", cache=cache)
            settings = compare.Config(
                problem, EnvConfig(**FAST), max_plans=1, methods=("uniform",), finalise=False, out=tmp_path
            )
            row = compare.run(settings, 0, 0.5, "uniform")
            assert (row["search_seconds"] is None) == (cache is not None)
        found = made({"qmix": [0.9, 0.9]})
        found[0]["search_seconds"] = None
        assert comparisons(found)[0].lines(0.5)[0].search_seconds == 2
        found[1]["search_seconds"] = None
        assert "–" in report.text_table(comparisons(found)[0], 0.5)  # noqa: RUF001

    def test_no_rows(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="rows"):
            report.write([], tmp_path)


class TestStatistics:
    def test_the_interval_covers_the_mean_as_often_as_it_says(self) -> None:
        rng = np.random.default_rng(0)
        draws = rng.normal(size=(100, 30))
        covered = [low <= 0 <= high for low, high in map(statistics.interval, draws)]
        assert 0.88 < np.mean(covered) < 1

    def test_intervals_of_curves_are_those_of_their_points(self) -> None:
        values = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 8.0]])
        low, high = statistics.interval(values)
        for column in range(2):
            assert statistics.interval(values[:, column]) == (low[column], high[column])

    def test_equal_results_have_no_p(self) -> None:
        found = statistics.difference({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5})
        assert found is not None
        assert math.isnan(found.p)
        assert statistics.difference({0: 0.5}, {1: 0.5}) is None

    def test_ranks_share_and_use_common_seeds(self) -> None:
        ranks = statistics.mean_ranks({"a": {0: 0.9, 1: 0.9, 2: 0.0}, "b": {0: 0.9, 1: 0.8}, "c": {0: 0.1, 1: 0.95}})
        assert ranks == {"a": 1.75, "b": 2.25, "c": 2.0}


def test_the_rows_of_the_repository_can_be_read() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    assert len(rows.read([folder])) > 200
