"""Filter pruning of convolutional networks as a cooperative multi-agent game."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .common.outputs import all_outputs, one_output
    from .data import DataSplits
    from .deploy.saved import load_pruned, save_pruned, update_pruned
    from .evaluation.trained_plans import TrainedPlans
    from .game.config import EnvConfig
    from .game.env import FilterPruneEnv
    from .game.make import make_env
    from .game.problems import list_problems, make_problem
    from .game.suite import FilterPruneSuite
    from .game.tabulated import make_tabulated_env
    from .pruning.problem import PruningProblem

__version__ = "0.1.0"

_HOMES = {
    "DataSplits": "data",
    "EnvConfig": "game.config",
    "FilterPruneEnv": "game.env",
    "FilterPruneSuite": "game.suite",
    "PruningProblem": "pruning.problem",
    "TrainedPlans": "evaluation.trained_plans",
    "all_outputs": "common.outputs",
    "list_problems": "game.problems",
    "load_pruned": "deploy.saved",
    "make_env": "game.make",
    "make_problem": "game.problems",
    "make_tabulated_env": "game.tabulated",
    "one_output": "common.outputs",
    "save_pruned": "deploy.saved",
    "update_pruned": "deploy.saved",
}

__all__ = [
    "DataSplits",
    "EnvConfig",
    "FilterPruneEnv",
    "FilterPruneSuite",
    "PruningProblem",
    "TrainedPlans",
    "__version__",
    "all_outputs",
    "list_problems",
    "load_pruned",
    "make_env",
    "make_problem",
    "make_tabulated_env",
    "one_output",
    "save_pruned",
    "update_pruned",
]


_MODULES = ("data", "export", "filter_prune_v0", "finalise", "single_agent")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES, *_MODULES])


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import prune_env` stays light."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
