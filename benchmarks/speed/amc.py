"""Plans per hour against AMC's released environment (He et al., ECCV 2018), ResNet-20, in one process and in turn.

    git clone https://github.com/mit-han-lab/amc && git -C amc checkout 65363c8   # then the patches below
    python -m benchmarks.speed.amc --amc amc --data PATH --weights resnet20.th

What must change in that copy for a current torch, the CPU, and 3x3 convolutions; what an episode does stays:

- env/channel_pruning_env.py: no `.cuda(...)`.
- The same, `_extract_layer_information`, the branch "normal conv": it stores whole feature maps, which nothing can use.
  As in the 1x1 branch, draw `n_points_per_layer` positions of the output a batch; store the outputs there, and the
  inputs under the kernel (padded, at stride times position) as [batch * points, C, k, k].
- The same, `prune_kernel`, in place of NotImplementedError: `least_square_sklearn` of those inputs, flattened to
  [batch * points, kept * k * k], and the result reshaped to [C_out, kept, k, k].
- lib/utils.py: `term_width` is a constant text, no terminal is asked; `correct[:k].reshape(-1)` for `.view(-1)`.

Given from here, without a patch: network, arguments (the released defaults but acc1 and single filters for multiples of
8), which layers read the same sum and so share their channels (`shared_idx`), and data as tensors in memory: the
released code would decode and normalise each image again at every episode, on top of the times below.

One plan of AMC's: for each layer, one after the other, channels by magnitude and least squares on 30,000 sampled
positions of 3,000 images (float32); then accuracy and loss on the validation images, of the network with zeros where
channels are gone, in float32, with the stored BatchNorm statistics. One plan of ours: three rounds of masks, budget and
observations; the cut network, BatchNorm statistics from 500 images, accuracy on the same validation images, in bfloat16
where that is fast. The two answer differently, so this is about time only. Both play uniformly random actions with
target 0.5. Ours end there; AMC's random plans stay well below (`macs_ratio` in the results), which only makes its least
squares smaller.

Two ratios more say how much hangs on what: to its validation alone (AMC has no switch to leave least squares out), and
to all of it with validation on batches that are ready in channels_last, which the released code does not have.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
import time
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.files import replacing
from prune_env.data import DataSplits, load
from prune_env.training.pretrained import pretrained, with_network_normalisation

from ..compare.methods import random_search

LOWEST = 0.2
"""AMC's `lbound`: the fraction of a layer's channels that stays at least."""
BATCH = 50
"""AMC's `data_bsize`."""


@dataclass(frozen=True)
class Config:
    amc: Path
    """a clone of AMC's repository, patched as described above"""
    data: str = "cifar10"
    """digits, cifar10, cifar100, or a folder PATH/{train,test}/<class>/*"""
    weights: Path | None = None
    """a file of its weights; by default they are trained, and cached"""
    validation_images: tuple[int, ...] = (1000, 5000)
    """images that both sides measure accuracy on"""
    episodes: int = 5
    """of AMC's, for each number of validation images"""
    plans_per_turn: int = 5
    """of ours after each of AMC's episodes"""
    calibration_batches: int = 60
    """of 50 images each, for AMC's least squares; 60 is the released default"""
    seed: int = 0
    """of plans and actions"""
    out: Path = Path("runs/amc_speed.json")
    """where results go"""


def main(config: Config) -> None:
    from threadpoolctl import threadpool_limits  # of scikit-learn's, which AMC needs

    amc = load_amc(config.amc)
    data = with_network_normalisation("resnet20", load(config.data))
    threads = torch.get_num_threads()
    with threadpool_limits(threads):  # BLAS as torch
        results = [compare(amc, data, images, config) for images in config.validation_images]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(config.out) as temporary:
        report = {"config": asdict(config), "threads": threads, "results": results}
        temporary.write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(f"{threads} threads; medians over turns\n{table(results)}")


def load_amc(path: Path) -> Any:
    """AMC's module `env.channel_pruning_env`. Raises ValueError where it is missing, or not patched."""
    file = path / "env" / "channel_pruning_env.py"
    if not file.is_file():
        raise ValueError(f"{path} is no clone of AMC's repository: {file} does not exist")
    if ".cuda(" in file.read_text():
        raise ValueError(f"{file} still calls .cuda(); patch the clone as this benchmark's docstring says")
    sys.path.insert(0, str(path))
    try:
        from env import channel_pruning_env  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(path))
    return channel_pruning_env


def compare(amc: Any, data: DataSplits, images: int, config: Config) -> dict[str, Any]:
    """Seconds of each plan on both sides, and what follows from them."""
    rng = np.random.default_rng(config.seed)
    model = pretrained("resnet20", data, config.weights)
    ours = FilterPruneEnv.from_model(model, data, EnvConfig(target_macs=0.5, reward_images=images))
    theirs = make_theirs(amc, model, data, images, config)
    play_ours(ours, 2, rng)  # both warm up
    batches = [(inputs.contiguous(memory_format=torch.channels_last), labels) for inputs, labels in theirs.val_loader]
    play_theirs(theirs, rng, batches)
    turns = []
    for _ in tqdm(range(config.episodes), desc=f"{images} images"):
        turns.append((play_theirs(theirs, rng, batches), play_ours(ours, config.plans_per_turn, rng)))
    whole = [amc_plan["seconds"] for amc_plan, _ in turns]
    per_plan = [median(seconds) for _, seconds in turns]
    return {
        "validation_images": images,
        "dtype": str(ours.evaluator.task.dtype),
        "unpruned_accuracy": {"amc": theirs.org_acc / 100, "ours": ours.evaluator.original_accuracy},
        "amc": [amc_plan for amc_plan, _ in turns],
        "ours_seconds": [seconds for _, seconds in turns],
        "plans_per_hour": {"amc": 3600 / median(whole), "ours": 3600 / median(per_plan)},
        "share": {
            part: median(amc_plan[part] / amc_plan["seconds"] for amc_plan, _ in turns)
            for part in ("least_squares", "validation")
        },
        "ratio": median(a / b for a, b in zip(whole, per_plan, strict=True)),
        "ratio_to_validation": median(
            amc_plan["validation"] / b for (amc_plan, _), b in zip(turns, per_plan, strict=True)
        ),
        "ratio_to_channels_last": median(
            (amc_plan["seconds"] - amc_plan["validation"] + amc_plan["validation_channels_last"]) / b
            for (amc_plan, _), b in zip(turns, per_plan, strict=True)
        ),
    }


def play_ours(env: FilterPruneEnv, plans: int, rng: np.random.Generator) -> list[float]:
    """Seconds for each of so many plans that are new to the environment, by random legal actions."""
    seconds = []
    for known in range(len(env.archive), len(env.archive) + plans):
        start = time.perf_counter()
        while len(env.archive) == known:  # a plan that is known costs its time, too
            random_search.play(env, rng)
        seconds.append(time.perf_counter() - start)
    return seconds


def play_theirs(env: Any, rng: np.random.Generator, batches: list[Any]) -> dict[str, float]:
    """One episode of AMC's: seconds in all and by its own count, of validation on other `batches`, and its result."""
    start, done = time.perf_counter(), False
    with contextlib.redirect_stdout(io.StringIO()):
        env.reset()
        while not done:
            *_, done, info = env.step(rng.uniform(LOWEST, 1))
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    env._validate(batches, env.model)
    channels_last = time.perf_counter() - start
    return {
        "seconds": seconds,
        "least_squares": env.extract_time + env.fit_time,
        "validation": env.val_time,
        "validation_channels_last": channels_last,
        "accuracy": info["accuracy"] / 100,
        "macs_ratio": info["compress_ratio"],
    }


def make_theirs(amc: Any, model: torch.nn.Module, data: DataSplits, images: int, config: Config) -> Any:
    """AMC's environment with our network and images."""
    generator = torch.Generator().manual_seed(config.seed)
    rows = torch.randperm(len(data.train), generator=generator)[: BATCH * config.calibration_batches]
    crops = data.augmented(data.train.images[rows], generator).contiguous()
    reward = data.reward.balanced(images)
    train = DataLoader(TensorDataset(crops, data.train.labels[rows]), BATCH)
    validation = DataLoader(TensorDataset(data.normalise(reward.images).contiguous(), reward.labels), BATCH)
    amc.get_split_dataset = lambda *_, **__: (train, validation, len(data.classes))

    class Env(amc.ChannelPruningEnv):  # type: ignore[misc]
        def _build_index(self) -> None:
            super()._build_index()
            readers: dict[int, list[int]] = {}  # every second layer reads the sum of its stage
            for layer in range(1, len(self.org_channels), 2):
                readers.setdefault(self.org_channels[layer], []).append(layer)
            self.shared_idx = list(readers.values())

    arguments = Namespace(
        model="resnet20",
        lbound=LOWEST,
        rbound=1.0,
        reward="acc_reward",
        acc_metric="acc1",
        use_real_val=False,
        n_calibration_batches=config.calibration_batches,
        n_points_per_layer=10,
        channel_round=1,
        data_root=None,
    )
    network = copy.deepcopy(model)  # they write into it
    weights = copy.deepcopy(network.state_dict())
    with contextlib.redirect_stdout(io.StringIO()):
        return Env(network.eval(), weights, "cifar10", 0.5, arguments, n_data_worker=0, batch_size=BATCH)


def table(results: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| validation images | ours, plans/h | AMC, plans/h | ratio | AMC: least squares | validation "
        "| ratio to its validation alone | to all with channels_last |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        hourly, share = row["plans_per_hour"], row["share"]
        lines.append(
            f"| {row['validation_images']} | {hourly['ours']:,.0f} | {hourly['amc']:,.0f} | {row['ratio']:.1f} "
            f"| {100 * share['least_squares']:.0f} % | {100 * share['validation']:.0f} % "
            f"| {row['ratio_to_validation']:.1f} | {row['ratio_to_channels_last']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Config, prog="python -m benchmarks.speed.amc", description=__doc__))
