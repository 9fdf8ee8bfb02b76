"""Train a network of your own on images of your own, and prune it as `prune-env prune` does.

    python examples/prune_your_model.py                        # digits, written as a folder: minutes on 2 cores
    python examples/prune_your_model.py --data PATH --size 64  # PATH/{train,test}/<class>/*, images of any size

`make` and its training are yours to replace. A network that is trained already needs no program, only `prune-env prune
examples/prune_your_model.py:make --weights w.pt --data PATH --size 64`.

All files go to runs/own/; those of the pruned network are in runs/own/run/. After Ctrl-C, --resume continues.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.transforms.functional import to_pil_image

from prune_env import EnvConfig
from prune_env.commands.run import INTERRUPTED, RunConfig, prune
from prune_env.common.command import check_writable, one_line_errors
from prune_env.common.settings import Count, Settings, Whole
from prune_env.common.tensor_files import save_tensors
from prune_env.data.sources import digits
from prune_env.game.arguments import ProblemArgs
from prune_env.training.distillation import DistillationConfig
from prune_env.training.fit import FitConfig, RunOptions, fit

CLASSES = 10


def make() -> nn.Module:
    return resnet18(num_classes=CLASSES)


@dataclass(frozen=True)
class Config(Settings):
    data: Path | None = None  # an image folder PATH/{train,test}/<class>/*; None for digits
    size: Count | None = None  # images are resized to this number of pixels per side
    target_macs: float = 0.5  # fraction of the MACs that may stay
    episodes: Whole = 60  # episodes of the search; each ends with one plan
    out: Path = Path("runs/own")  # folder for all files
    resume: bool = False  # continue after an interruption
    training: FitConfig = field(default_factory=lambda: FitConfig(epochs=8, batch_size=64, lr=0.05, ema_decay=0.98))
    distillation: DistillationConfig = field(default_factory=lambda: DistillationConfig(batch_size=64, min_steps=100))


def write_digits(path: Path) -> None:
    """Write the digits as a folder of colour images of 32 pixels, as if they were photos."""
    raw, unfinished = digits(), path.with_suffix(".unfinished")
    for part, split in (("train", raw.train), ("test", raw.test)):
        for number, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            file = unfinished / part / str(label) / f"{number:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            to_pil_image(F.interpolate(image[None].expand(-1, 3, -1, -1), 32)[0]).save(file)
    unfinished.rename(path)


def main(config: Config) -> None:
    check_writable("out", config.out, folder=True)
    images, weights = config.data or config.out / "images", config.out / "trained.safetensors"
    if config.data is None and not images.is_dir():
        write_digits(images)
    flip = None if config.data else False  # digits are not mirror images of each other
    source = ProblemArgs(data=str(images), size=config.size, flip=flip)
    if not (config.resume and weights.is_file()):
        splits, run = source.load_data(), RunOptions(checkpoint=config.out / "training.checkpoint", title="training")
        if len(splits.classes) != CLASSES:
            raise ValueError(
                f"{images} has {len(splits.classes)} classes; set CLASSES, which is {CLASSES}, to that number"
            )
        trained = fit(make(), splits, config.training, run=run)
        save_tensors(weights, {name: tensor.contiguous() for name, tensor in trained.state_dict().items()})
        (config.out / "training.checkpoint").unlink()
    prune(
        RunConfig(
            problem=replace(source, network=f"{__file__}:make", weights=weights),
            out=config.out,
            name="run",
            resume=config.resume and (config.out / "run").is_dir(),
            episodes=config.episodes,
            env=EnvConfig(target_macs=config.target_macs, reward_images=300),
            distillation=config.distillation,
        )
    )


if __name__ == "__main__":
    with one_line_errors(INTERRUPTED):
        main(tyro.cli(Config, description=__doc__))
