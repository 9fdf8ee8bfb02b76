"""The Python blocks of README and of the documentation run as a user would run them, page by page.

Blocks marked `python` run; blocks marked `py` are excerpts that do not. Long searches are shortened.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import shutil
import sys
import types
from pathlib import Path

import pytest
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem, save_pruned
from prune_env.data import DataSplits
from prune_env.game.observation import global_names

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
PAGES = [ROOT / "README.md", *sorted(page for page in DOCS.rglob("*.md") if BLOCK.search(page.read_text()))]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_blocks_run(
    page: Path, trained: nn.Module, digits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _save_a_run(trained, digits)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # timm looks for the modules of functions
    for number, block in enumerate(BLOCK.findall(page.read_text()), 1):
        exec(compile(_shortened(block), f"{page.name}, block {number}", "exec"), vars(module))
    shutil.rmtree("runs")
    assert list(tmp_path.iterdir()) == [], "written into the clone, and not ignored by git"


def test_links_of_readme_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text()
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).is_file(), target


def test_game_page_lists_every_setting_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", _section("Arguments"), re.MULTILINE)
    listed = {name: default for name, default in rows}
    fields = {field.name: field.default for field in dataclasses.fields(EnvConfig)}
    assert listed.keys() == fields.keys()
    for name, default in fields.items():
        if name != "rates":  # shortened in the table
            assert ast.literal_eval(listed[name]) == default, name


def test_game_page_lists_every_observation_and_info(trained: nn.Module, digits: DataSplits) -> None:
    problem = PruningProblem.create(trained, digits, EnvConfig(prove=False))
    env = FilterPruneEnv(problem, EnvConfig(prove=False))
    listed = _first_column(_section("Observation space"))
    per_rate = ("importance_lost_", "output_change_")
    assert listed == [
        *(name for name in env.observation_names if not name.startswith(per_rate)),
        *(f"{name}<rate>" for name in per_rate),
    ]
    state = _first_column(_section("State"))
    assert state == ["<agent>.<entry>", *global_names("macs")]
    _, infos = env.reset()
    assert _first_column(_section("Infos")) == list(infos[env.agents[0]])


def _save_a_run(trained: nn.Module, digits: DataSplits) -> None:
    """Save a pruned network where the first command of README leaves its own."""
    problem = PruningProblem.create(trained, digits, EnvConfig(prove=False))
    plan = tuple(filters // 2 for filters in problem.full_plan)
    save_pruned("runs/small_cnn-digits-1", problem.build(plan), plan, problem, base="small_cnn")


def _shortened(block: str) -> str:
    return re.sub(r"episodes=\d{3}", "episodes=3", block)


def _section(title: str) -> str:
    text = (DOCS / "game.md").read_text()
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _first_column(text: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
