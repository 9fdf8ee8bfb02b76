"""README's Python blocks run as they stand, one after the other."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from torch import nn

from prune_env import save_pruned
from prune_env.data import DataSplits
from prune_env.pruning import build, find_groups, importance

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_python_blocks_run(
    trained: nn.Module, digits: DataSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A run to load, and a trained network, as after the first command.
    groups = find_groups(trained, digits.example_input)
    ranking = importance.ranking(importance.scores("l1", trained, groups))
    plan = tuple(group.filters // 2 for group in groups)
    network = build(trained, groups, ranking, plan)
    save_pruned(
        "runs/small_cnn-digits-1", network, plan, groups=groups, ranking=ranking, data=digits, network="small_cnn"
    )
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("episodes=300", "episodes=3"), names)
    assert names["small"] is not None
    assert {"small.onnx", "small.pt2"} <= {file.name for file in (tmp_path / "runs").iterdir()}
    shutil.rmtree("runs")
    assert list(tmp_path.iterdir()) == [], "written into the clone, and not ignored by git"
