"""Damaged files of a run: resuming, loading and exporting give the undisturbed result, or an error that names the file.

Every file of a finished and of an interrupted run is damaged in several ways. `PRUNE_ENV_DAMAGES=2000` tries as many
damages, and prints how they ended; by default a few dozen are tried.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from episodes import FAST
from torch import nn

from prune_env import EnvConfig, FilterPruneEnv, PruningProblem, load_pruned, save_pruned
from prune_env.data import DataSplits
from prune_env.deploy.export import to_torch_export
from prune_env.finalise import Finaliser
from prune_env.reporting.run_folder import open_folder
from prune_env.training.distillation import DistillationConfig
from qmix_agent import QMIX, QMIXConfig
from qmix_agent.checkpoint import CheckpointError

EPISODES = 6
AGENT = QMIXConfig(
    hidden_size=8, mixing_embed=4, hypernet_hidden=8, batch_size=4, learning_starts=2, checkpoint_every=2, eval_every=0
)
TRAINING = DistillationConfig(epochs=1, batch_size=64, min_steps=2)
COUNT = int(os.environ.get("PRUNE_ENV_DAMAGES", "40"))
REFUSED = (ValueError, OSError, CheckpointError)
"""Exceptions with which damaged files may be refused."""


class Runs:
    """Makes and resumes small runs of one problem."""

    def __init__(self, network: nn.Module, data: DataSplits) -> None:
        self.data, self.config = data, EnvConfig(**FAST)
        self.problem = PruningProblem.create(network, data, self.config)
        self.evaluator = FilterPruneEnv(self.problem, self.config).evaluator

    def run(self, out: Path, seed: int = 0, *, resume: bool = False, finish: bool = True) -> str:
        """Run or resume `out`/run and return a digest of its result."""
        folder = open_folder(out, "run", "run", {"seed": seed}, resume)
        checkpoints = folder / "checkpoint"
        env = FilterPruneEnv(self.problem, self.config, evaluator=self.evaluator)
        if resume and QMIX.checkpoint_exists(checkpoints):
            agent = QMIX.load(checkpoints, env)
        else:
            agent = QMIX(env, AGENT, seed)
        agent.learn(EPISODES if finish else EPISODES - 2, folder, checkpoints, progress=False)
        if not finish:
            return ""
        finaliser = Finaliser(env, TRAINING, checkpoints=checkpoints, progress=False)
        winner = finaliser.rank([entry.plan for entry in env.archive.best(2)])[0]
        network = finaliser.distil(winner.plan)
        save_pruned(folder, network, winner.plan, self.problem, base="small_cnn")
        return self.digest(folder, network)

    def digest(self, folder: Path, network: nn.Module) -> str:
        """Return a digest of the network, of the one that loads from the folder, and of the metrics but for times."""
        digest = hashlib.blake2b()
        for one in (network, load_pruned(folder)):
            for name, tensor in one.state_dict().items():
                digest.update(name.encode() + tensor.numpy().tobytes())
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            digest.update(line.split('"seconds"')[0].encode())
        return digest.hexdigest()


@pytest.fixture(scope="module")
def runs(trained: nn.Module, digits: DataSplits) -> Runs:
    return Runs(trained, digits)


def flipped(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def noise(content: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(len(content))


def empty(content: bytes, rng: random.Random) -> bytes:
    return b""


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bit flip": flipped,
    "truncation": truncated,
    "random bytes": noise,
    "zero length": empty,
}


def files_of(folder: Path) -> list[Path]:
    """Return the files that are read back, relative to the folder."""
    found = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()]
    return [file for file in found if file.name != ".lock" and not file.name.startswith("events.")]


@pytest.mark.slow
def test_damage_is_mended_or_named(runs: Runs, tmp_path: Path) -> None:
    finished, interrupted, other = (tmp_path / name for name in ("finished", "interrupted", "other"))
    expected = runs.run(finished)
    runs.run(interrupted, finish=False)
    runs.run(other, seed=1)
    cases = [
        (start, file, damage)
        for start in (finished, interrupted)
        for file in files_of(start / "run")
        for damage in (*DAMAGES, "file of another run")
    ]
    rng = random.Random(0)
    rng.shuffle(cases)
    outcomes: Counter[str] = Counter()
    for number in range(COUNT):
        start, file, damage = cases[number % len(cases)]
        copy = tmp_path / "copy"
        shutil.copytree(start, copy)
        target = copy / "run" / file
        if damage in DAMAGES:
            target.write_bytes(DAMAGES[damage](target.read_bytes(), rng))
        elif (same := other / "run" / file).is_file():
            shutil.copy(same, target)
        outcome = _outcome(runs, copy, file, expected)
        outcomes[outcome] += 1
        assert not outcome.startswith("wrong"), f"{damage} of {file} in the {start.name} run: {outcome}"
        shutil.rmtree(copy)
    print(f"\n{COUNT} damages of {len(cases)} kinds: {dict(outcomes)}")
    assert outcomes["the same result"] > COUNT // 4


@pytest.mark.slow
def test_a_damaged_result_is_not_loaded_or_exported(runs: Runs, tmp_path: Path) -> None:
    runs.run(tmp_path)
    folder, rng = tmp_path / "run", random.Random(0)
    images = runs.data.normalise(runs.data.test.images[:4])
    with torch.inference_mode():
        expected = load_pruned(folder)(images)
    for name in ("pruned.json", "pruned.safetensors"):
        whole = (folder / name).read_bytes()
        for damage in DAMAGES.values():
            for _ in range(max(2, COUNT // 40)):
                (folder / name).write_bytes(damage(whole, rng))
                network, message = _loaded(folder)
                if network is None:
                    assert name.split(".")[0] in message
                else:
                    with torch.inference_mode():
                        assert torch.equal(network(images), expected)
        (folder / name).write_bytes(whole)
    to_torch_export(load_pruned(folder), folder / "pruned.pt2", images)


def _loaded(folder: Path) -> tuple[nn.Module | None, str]:
    try:
        return load_pruned(folder), ""
    except REFUSED as error:
        return None, str(error)


def _outcome(runs: Runs, copy: Path, file: Path, expected: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file that is passed over is named in a warning
        try:
            digest = runs.run(copy, resume=True)
        except REFUSED as error:
            named = file.name in str(error) or (file.parent.name and file.parent.name in str(error))
            return f"named: {type(error).__name__}" if named else f"wrong: {error!r} does not name the file"
        except Exception as error:
            return f"wrong: {error!r}"
    return "the same result" if digest == expected else "wrong: another result"
