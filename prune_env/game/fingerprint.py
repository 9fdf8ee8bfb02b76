"""The fingerprint of a game: it identifies everything that a plan's accuracy depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ..common.fingerprints import function_fingerprint, weights_fingerprint
from ..pruning.problem import PruningProblem
from ..training.trainable import learning_fingerprint
from .config import EnvConfig


def game_fingerprint(problem: PruningProblem, config: EnvConfig, settings: Mapping[str, str]) -> str:
    """Return a hash of weights, images, ranking, settings and custom functions. It reads every weight and image."""
    text = f"{weights_fingerprint(problem.model)} {problem.data.fingerprint} {dict(settings)}"
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for function in (problem.metric, problem.loss):
        if function is not None:
            digest.update(function_fingerprint(function).encode())
    if config.trains:
        digest.update(learning_fingerprint(problem.model, problem.data.example_input).encode())
    for group in problem.groups:
        digest.update(f"{group.layers} {problem.ranking[group.name].tolist()}".encode())
    return digest.hexdigest()
