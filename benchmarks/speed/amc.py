"""Compare plans per hour with AMC's released environment (He et al., ECCV 2018) on ResNet-20, in one process.

    git clone https://github.com/mit-han-lab/amc && git -C amc checkout 65363c8   # then apply the patches below
    python -m benchmarks.speed.amc --amc amc --data PATH --weights resnet20.th

The clone needs patches for a current torch, the CPU and 3x3 convolutions. They do not change what an episode does:

- env/channel_pruning_env.py: remove `.cuda(...)`.
- The same file, `_extract_layer_information`, branch "normal conv": it stores whole feature maps, which cannot be used.
  As in the 1x1 branch, draw `n_points_per_layer` positions of the output per batch; store the outputs there, and the
  inputs under the kernel (padded, at stride times position) as [batch * points, C, k, k].
- The same file, `prune_kernel`, instead of NotImplementedError: call `least_square_sklearn` with those inputs,
  flattened to [batch * points, kept * k * k], and reshape the result to [C_out, kept, k, k].
- lib/utils.py: set `term_width` to a constant text; replace `correct[:k].view(-1)` by `correct[:k].reshape(-1)`.

This program passes the rest without a patch: the network, the arguments (the released defaults, except acc1 and single
filters instead of multiples of 8), the layers that read the same sum and therefore share their channels (`shared_idx`),
and the data as tensors in memory. The released code would decode and normalise each image again in every episode, which
would take additional time.

One plan of AMC: for one layer after another, channels by magnitude and least squares on 30,000 sampled positions of
3,000 images (float32); then accuracy and loss on the validation images, of the network with zeros in the removed
channels, in float32, with the stored BatchNorm statistics. One plan of our environment: three rounds of masks, budget
and observations; the cut network, BatchNorm statistics from 500 images, and accuracy on the same validation images, in
bfloat16 if that is fast. The accuracies differ, so the benchmark compares time only. Both play uniformly random actions
with target 0.5. Our plans meet the target; AMC's random plans stay well below it (`macs_ratio` in the results), which
makes its least squares faster.

Two more ratios separate the causes: the ratio to AMC's validation alone (AMC has no option that omits least squares),
and the ratio to AMC with validation on prepared channels_last batches, which the released code does not have.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
import time
from argparse import Namespace
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from prune_env import EnvConfig, FilterPruneEnv
from prune_env.common.command import check_writable, one_line_errors, require_packages
from prune_env.common.files import replacing
from prune_env.common.settings import Count, Seed, Settings
from prune_env.data import DataSplits
from prune_env.game.arguments import ProblemArgs

from ..compare.methods import random_search

LOWEST = 0.2
"""AMC's `lbound`: the smallest fraction of a layer's channels that stays."""
BATCH = 50
"""AMC's `data_bsize`."""


@dataclass(frozen=True)
class Config(Settings):
    amc: Path
    """A clone of AMC's repository, patched as described above."""
    problem: Annotated[ProblemArgs, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: ProblemArgs(network="resnet20", data="cifar10")
    )
    """The data and the weights of resnet20, on the CPU, in this process."""
    validation_images: tuple[Count, ...] = (1000, 5000)
    """Numbers of images on which both environments measure accuracy."""
    episodes: Count = 5
    """AMC's episodes for each number of validation images."""
    plans_per_turn: Count = 5
    """Our plans after each of AMC's episodes."""
    calibration_batches: Count = 60
    """Batches of 50 images for AMC's least squares; 60 is the released default."""
    seed: Seed = 0
    """Seed of plans and actions."""
    out: Path = Path("runs/amc_speed.json")
    """File of the results."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fixed = {"network": "resnet20", "device": "cpu", "backend": "local", "cache": None}
        for name, value in fixed.items():
            if getattr(self.problem, name) != value:
                raise ValueError(f"{name} must be {value}, as in AMC's environment; got {getattr(self.problem, name)}")


def main(config: Config) -> None:
    require_packages(["threadpoolctl"], "the comparison", "train")
    check_writable("out", config.out)
    from threadpoolctl import threadpool_limits  # a dependency of scikit-learn, which AMC needs

    amc = load_amc(config.amc)
    data = config.problem.load_data()
    threads = torch.get_num_threads()
    with threadpool_limits(threads):  # BLAS uses as many threads as torch
        results = [compare(amc, data, images, config) for images in config.validation_images]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(config.out) as temporary:
        report = {"config": asdict(config), "threads": threads, "results": results}
        temporary.write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(f"{threads} threads; medians over turns\n{table(results)}")


def load_amc(path: Path) -> Any:
    """Return AMC's module `env.channel_pruning_env`.

    Raises:
        ValueError: The module is missing or not patched.
    """
    file = path / "env" / "channel_pruning_env.py"
    if not file.is_file():
        raise ValueError(f"{path} is not a clone of AMC's repository: {file} does not exist")
    if ".cuda(" in file.read_text():
        raise ValueError(f"{file} still calls .cuda(); patch the clone as described in this benchmark's docstring")
    sys.path.insert(0, str(path))
    try:
        from env import channel_pruning_env  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(path))
    return channel_pruning_env


def compare(amc: Any, data: DataSplits, images: int, config: Config) -> dict[str, Any]:
    """Return the seconds of each plan in both environments, and their ratios.

    Args:
        amc: AMC's module, of `load_amc`.
        data: The images, for both.
        images: Number of validation images.
        config: Weights, and numbers of plans and episodes.
    """
    rng = np.random.default_rng(config.seed)
    model = config.problem.load_model(data)
    ours = FilterPruneEnv.from_model(model, data, EnvConfig(target_macs=0.5, reward_images=images))
    theirs = make_theirs(amc, model, data, images, config)
    play_ours(ours, 2, rng)  # warms up both environments
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
        "original_accuracy": {"amc": theirs.org_acc / 100, "ours": ours.evaluator.original_accuracy},
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
    """Play random legal actions and return the seconds of each of `plans` new plans."""
    seconds = []
    for known in range(len(env.archive), len(env.archive) + plans):
        start = time.perf_counter()
        while len(env.archive) == known:  # the time of repeated plans counts, too
            random_search.play(env, rng)
        seconds.append(time.perf_counter() - start)
    return seconds


def play_theirs(env: Any, rng: np.random.Generator, batches: list[Any]) -> dict[str, float]:
    """Play one episode of AMC.

    Returns:
        Its seconds in total and by AMC's own measurements, the seconds of validation on `batches`, and its result.
    """
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
    """Return AMC's environment with our network and images.

    Args:
        amc: AMC's module, of `load_amc`.
        model: The original network; AMC prunes a copy.
        data: The images.
        images: Number of validation images.
        config: Calibration batches and seed.
    """
    generator = torch.Generator().manual_seed(config.seed)
    rows = torch.randperm(len(data.train), generator=generator)[: BATCH * config.calibration_batches]
    crops = data.augmented(data.train.batch(rows), generator).contiguous()
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
    network = copy.deepcopy(model)  # AMC changes it in place
    weights = copy.deepcopy(network.state_dict())
    with contextlib.redirect_stdout(io.StringIO()):
        return Env(network.eval(), weights, "cifar10", 0.5, arguments, n_data_worker=0, batch_size=BATCH)


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a table in Markdown."""
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
    with one_line_errors():
        main(tyro.cli(Config, prog="python -m benchmarks.speed.amc", description=__doc__))
