"""The search methods keep their budget, count every plan once, and repeat under one seed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.compare.methods import METHODS, ONE_PLAN
from benchmarks.compare.methods.counted import PROPOSALS, Counted
from benchmarks.compare.methods.plans import from_keep_ratios
from benchmarks.speed import evaluator_memory, one_command, search
from prune_env import EnvConfig, FilterPruneEnv, make_tabulated_env
from qmix_agent.learner import Learner

MakeEnv = Callable[..., FilterPruneEnv]
GROUPS = 5


@pytest.fixture(scope="module")
def tabulated() -> FilterPruneEnv:
    return make_tabulated_env()


@pytest.fixture
def new_env(tabulated: FilterPruneEnv) -> MakeEnv:
    """Return a function that makes a new environment of the tabulated problem, where a search takes no time."""
    return lambda: FilterPruneEnv(tabulated.problem, tabulated.config, evaluator=tabulated.evaluator)


def test_the_minutes_of_a_command_are_added_up() -> None:
    row = {"network": "timm:net", "minutes": {"search": 1.5, "export and timing": 2.0}, "macs_share": 0.5}
    heading, _, line = one_command.table([row]).splitlines()
    assert heading == "| network | search, min | export and timing, min | all, min | macs share |"
    assert line == "| timm:net | 1.5 | 2.0 | 3.5 | 50 % |"


@pytest.mark.usefixtures("untouched_rngs")
@pytest.mark.parametrize("method", METHODS)
def test_methods_keep_the_budget_and_repeat(new_env: MakeEnv, method: str) -> None:
    first, second = (METHODS[method](new_env(), 8, 3) for _ in range(2))
    assert first.entries == second.entries
    if method in ("iql", "vdn", "qmix") and len(first.entries) < 8:
        assert first.proposals == 8 * PROPOSALS, "one that repeats itself ends with the proposals"
    else:
        assert len(first.entries) == (1 if method in ONE_PLAN else 8)
    assert len({entry.plan for entry in first.entries}) == len(first.entries)
    assert all(0.49 <= entry.macs_ratio <= 0.5 for entry in first.entries)
    assert first.curve == sorted(first.curve)


@pytest.mark.parametrize("method", METHODS)
def test_every_evaluation_is_counted(new_env: MakeEnv, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env, looks = new_env(), []
    evaluator, accuracy, accuracy_of = env.evaluator, env.evaluator.accuracy, env.evaluator.accuracy_of
    monkeypatch.setattr(evaluator, "accuracy", lambda plan: looks.append(tuple(plan)) or accuracy(plan))
    monkeypatch.setattr(evaluator, "accuracy_of", lambda network: looks.append(network) or accuracy_of(network))
    result = METHODS[method](env, 8, 3)
    assert len(set(looks)) == len(result.evaluations) == len(result.curve) > 0
    assert len(result.evaluations) <= 8
    assert result.proposals <= PROPOSALS * 8
    assert env.evaluator is evaluator


@pytest.mark.slow
def test_seeds_differ(new_env: MakeEnv) -> None:
    for method in set(METHODS) - set(ONE_PLAN):
        plans = [[entry.plan for entry in METHODS[method](new_env(), 8, seed).entries] for seed in (0, 1)]
        assert plans[0] != plans[1], method


class TestCounted:
    def test_repeats_are_free_up_to_a_limit(self, make_env: MakeEnv) -> None:
        env = make_env()
        plan = env.budget.uniform()
        calls = 0
        with Counted(env, 2) as counted:
            while True:
                counted.accuracy(plan)
                calls += 1
        result = counted.result()
        assert (calls, result.proposals, len(result.evaluations)) == (PROPOSALS * 2, PROPOSALS * 2, 1)

    def test_known_plans_count_and_the_next_question_ends_the_search(self, make_env: MakeEnv) -> None:
        env = make_env()
        plans = [from_keep_ratios(env, [0.1 * shift, 0.5, 0.5, 0.5, 0.5]) for shift in (1, 5, 9)]
        known = [env.evaluator.accuracy(plan) for plan in plans]
        answers = []
        with Counted(env, 2) as counted:
            for plan in plans:
                answers.append(counted.accuracy(plan))
        assert answers == known[:2]
        assert [entry.plan for entry in counted.result().entries] == plans[:2]

    def test_plans_above_the_budget_of_macs_are_paid_for_and_cannot_win(self, make_env: MakeEnv) -> None:
        env = make_env()
        with Counted(env, 2) as counted:
            counted.accuracy(env.problem.full_plan)
            counted.accuracy(env.budget.uniform())
        result = counted.result()
        assert result.evaluations[0] is None
        assert result.curve[0] == 0 < result.curve[1]
        assert [entry.plan for entry in result.entries] == [env.budget.uniform()]

    def test_errors_pass_and_the_environment_is_not_changed(self, make_env: MakeEnv) -> None:
        env = make_env()
        evaluator = env.evaluator
        with pytest.raises(KeyError), Counted(env, 2):
            raise KeyError
        assert env.evaluator is evaluator


def test_plans_from_keep_ratios_cost_the_budget(make_env: MakeEnv) -> None:
    for settings in ({}, {"round_to": 4}, {"target_macs": 0.3, "min_filters": 5}):
        env = make_env(**settings)
        for keep in ([0.0] * GROUPS, [1.0] * GROUPS, [0, 1, 0, 1, 0.5], [0.3, 0.9, 0.2, 0.4, 1]):
            plan = from_keep_ratios(env, keep)
            target = env.config.target_macs
            assert target - 0.01 <= env.cost_ratios(plan)[0] <= target
            assert all(
                kept >= env.config.min_filters and kept % multiple == 0
                for kept, multiple in zip(plan, env.budget.multiples, strict=True)
            )


def test_sensitivity_needs_a_look_at_every_group(new_env: MakeEnv) -> None:
    with pytest.raises(ValueError, match="6"):
        METHODS["sensitivity"](new_env(), GROUPS, 0)


def test_the_size_of_the_memory_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    evaluator_memory.main(evaluator_memory.Config(evaluations=20, measurements=2))
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| 10", "| 20"]
    assert all(float(line.split(" | ")[1]) > 100 for line in lines)


@pytest.mark.slow
def test_the_time_of_a_search_is_divided(capsys: pytest.CaptureFixture[str]) -> None:
    before = Learner.update
    game = EnvConfig(target_macs=0.5, reward_images=20, calibration_images=20, prove=False)
    search.main(search.Config(env=game, plans=40))
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    header, *rows = table
    assert [row[0] for row in rows] == list(search.SEARCHES)
    for row in rows:
        total, *parts = map(float, row[1:-1])
        assert sum(parts) == pytest.approx(total, abs=0.3)
        assert float(row[header.index("learning")]) > 0
        assert int(row[-1]) > 0
    assert float(rows[1][header.index("imagining")]) > float(rows[0][header.index("imagining")]) == 0
    assert Learner.update is before
