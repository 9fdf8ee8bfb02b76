"""What a game saves beyond its episodes: the archive, the targets left in the deck, and what both depend on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..common.fingerprints import function_fingerprint
from .archive import Archive
from .config import NOT_SET, differences
from .reward import RewardFunction
from .targets import Deck


def origin(fingerprint: str, reward: RewardFunction, settings: Mapping[str, str]) -> dict[str, Any]:
    """Return what an archive depends on. The reward function decides the returns, though not the accuracies."""
    return {"problem": fingerprint, "reward": function_fingerprint(reward), "settings": dict(settings)}


def save(source: Mapping[str, Any], archive: Archive, deck: Deck) -> dict[str, Any]:
    """Return the state of a game with this origin as plain lists and numbers."""
    return {**source, "archive": archive.state_dict(), "targets_left": list(deck.left)}


def check(state: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """Check that a saved state belongs to a game with this origin.

    Raises:
        ValueError: The state belongs to another game; the message names the settings that differ.
    """
    if missing := {"problem", "settings", "archive", "targets_left"} - state.keys():
        raise ValueError(f"this is not the saved state of a game: it lacks {', '.join(sorted(missing))}")
    changes = [f"{name} from {old} to {new}" for name, old, new in differences(state["settings"], source["settings"])]
    if state.get("reward") != source["reward"]:
        changes.append(f"the reward function from {state.get('reward', NOT_SET)} to {source['reward']}")
    if state["problem"] != source["problem"] or changes:
        raise ValueError(
            "the saved state belongs to another game (changed since: "
            f"{', '.join(changes) or 'weights, images, ranking or a function'}); start a new run, or restore what "
            "changed"
        )


def load(state: Mapping[str, Any], archive: Archive, deck: Deck) -> None:
    """Fill archive and deck from a saved state that `check` has accepted."""
    archive.load_state_dict(state["archive"])
    deck.left = list(state["targets_left"])
