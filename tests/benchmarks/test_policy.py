"""Learning and judging a policy: what is kept apart, whole small runs, and the table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from benchmarks.compare import rows
from benchmarks.policy import copied, games, judge, train
from benchmarks.policy.architectures import FAMILIES, Architecture
from benchmarks.policy.games import JUDGING, LEARNING, GameSpec
from prune_env import EnvConfig, FilterPruneEnv, list_problems, make_problem
from prune_env.data import DataSplits
from prune_env.data.load import from_tensors
from prune_env.networks import create
from prune_env.pruning import inspect
from prune_env.pruning.groups import PruningGroup
from prune_env.training.fit import FitConfig
from qmix_agent import TeamPolicy

TINY = GameSpec(Architecture("plain", (8, 12), (2, 2)), "digits")


def test_nothing_is_judged_that_was_learned() -> None:
    learned = {spec.architecture for spec in LEARNING}
    assert learned.isdisjoint(spec.architecture for spec in JUDGING)
    assert "grouped" not in {architecture.family for architecture in learned}
    assert max(sum(architecture.blocks) for architecture in learned) <= 8
    assert len({spec.name for spec in [*LEARNING, *JUDGING]}) == len(LEARNING) + len(JUDGING)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_pruned(family: str, digits: DataSplits, untouched_rngs: None) -> None:
    network = Architecture(family, (8, 16), (2, 1)).build(10, 1)
    found = inspect(network, digits.example_input)
    assert len(found.groups) >= 2
    assert torch.equal(network(digits.example_input), network(digits.example_input))


def test_equal_seeds_give_equal_networks() -> None:
    one, two, other = (TINY.architecture.build(10, 1, seed).head.weight for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("name", list_problems("small_cnn-digits-0*"))
def test_the_published_policy_plans_for_named_problems(name: str) -> None:
    """If observations or rates change, it must be learned again."""
    env = make_problem(name)
    plan = TeamPolicy.load(train.PUBLISHED).plan(env)
    assert env.budget.meets(plan)
    assert plan != env.budget.uniform()


class TestCopiedRates:
    def test_a_network_like_the_donor_gets_its_plan(self, digits: DataSplits) -> None:
        """ResNet-20 itself, on other images: every group is its own nearest."""
        rows_ = digits.train.balanced_rows(600)[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
        images = torch.nn.functional.interpolate(digits.train.images[rows_], 32)
        labels = digits.train.labels[rows_]
        data = from_tensors(images[100:], labels[100:], images[:100], labels[:100])
        env = FilterPruneEnv.from_model(create("resnet20", 10, 1), data, EnvConfig(target_macs=0.5, round_to=1))
        best = max(
            (row for row in rows.read([copied.PLANS]) if row["target_macs"] == 0.5),
            key=lambda row: row["search_accuracy"],
        )
        plan = copied.plan(env, 0.5)
        assert env.budget.meets(plan)
        assert max(abs(one - other) for one, other in zip(plan, best["plan"], strict=True)) <= 1

    def test_tied_groups_copy_tied_groups_at_the_nearest_depth(self) -> None:
        def group(*layers: str) -> PruningGroup:
            return PruningGroup("conv_0", layers, 8, ())

        donors = [group("a", "b"), group("c"), group("d"), group("e", "f")]
        ours = [group("a"), group("b", "c"), group("d"), group("e"), group("f", "g"), group("h")]
        assert copied.nearest_groups(ours, donors) == [1, 0, 1, 2, 3, 2]
        assert copied.nearest_groups(ours, donors[1:3]) == [0, 0, 0, 1, 1, 1]  # none is tied


class TestRuns:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder for runs on one tiny network that is hardly trained."""
        monkeypatch.setattr(games, "RECIPES", {"digits": FitConfig(epochs=4, batch_size=64), "cifar16": FitConfig()})
        monkeypatch.setattr(games, "REWARD_IMAGES", 50)
        monkeypatch.setattr(train, "LEARNING", [TINY])
        monkeypatch.setattr(judge, "JUDGING", [TINY])
        return tmp_path

    @pytest.mark.slow
    def test_a_policy_is_learned_and_judged_once(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = train.Config(folder / "policy", folder / "networks", episodes=12)
        train.main(config)
        policy = folder / "policy" / "policy.safetensors"
        TeamPolicy.load(policy)
        for change in ({"mixer": "vdn"}, {"seed": 1}):
            with pytest.raises(ValueError, match=next(iter(change))):
                train.main(dataclasses.replace(config, **change))

        methods = ("policy", "policy_imagined", "uniform", "insides")
        judged = judge.Config(
            policy,
            networks=folder / "networks",
            data_sets=("digits",),
            targets=(0.5,),
            seeds=2,
            methods=methods,
            out=folder / "judged",
        )
        judge.main(judged)
        file = folder / "judged" / "rows.jsonl"
        text = file.read_text()
        found = [(row["method"], row["seed"]) for row in map(json.loads, text.splitlines())]
        assert found == [("policy", 0), ("policy_imagined", 0), ("policy_imagined", 1), ("uniform", 0), ("insides", 0)]
        judge.main(judged)
        assert file.read_text() == text
        printed = capsys.readouterr().out
        assert all(f"| {method} | 1 |" in printed for method in methods)

        train.main(dataclasses.replace(config, out=folder / "other", seed=1))
        judge.main(dataclasses.replace(judged, policy=folder / "other" / "policy.safetensors"))
        again = [json.loads(line)["method"] for line in file.read_text().splitlines()[len(found) :]]
        assert again == ["policy", "policy_imagined", "policy_imagined"]  # the rules do not depend on the policy


def test_the_table_has_means_over_seeds_and_budgets() -> None:
    row = {"network": "net", "method": "cma"}
    found = [
        row | {"target_macs": target, "seed": seed, "best": {"30": best, "100": best + 0.1}}
        for target, seed, best in ((0.3, 0, 0.2), (0.3, 1, 0.4), (0.5, 0, 0.5), (0.5, 1, 0.5))
    ]
    lines = judge.table(found).splitlines()
    assert lines[2:] == ["| cma | 30 | 30.0 | 50.0 | 40.0 |", "| cma | 100 | 40.0 | 60.0 | 50.0 |"]
