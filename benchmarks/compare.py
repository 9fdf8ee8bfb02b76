"""Search methods on one problem at equal numbers of evaluated plans: best reward accuracy, mean and range over seeds.

python -m benchmarks.compare --network resnet20 --data PATH --weights FILE --budget 200 --seeds 3

One row a run goes to `out`; runs whose row is there are not repeated. Distillation and the test set are left to
examples/train_qmix.py: this command compares the search alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

from prune_env import make_env

from .methods import METHODS


@dataclass(frozen=True)
class Config:
    network: str = "small_cnn"
    data: str = "digits"
    weights: Path | None = None
    target_macs: float = 0.5
    budget: int = 200
    """distinct plans that each run may evaluate"""
    seeds: int = 3
    methods: tuple[str, ...] = tuple(METHODS)
    out: Path = Path("runs/compare.jsonl")


def main(config: Config) -> None:
    problem = {name: str(getattr(config, name)) for name in ("network", "data", "weights", "target_macs", "budget")}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    lines = config.out.read_text().splitlines() if config.out.is_file() else []
    rows = [row for row in map(json.loads, lines) if row["problem"] == problem]
    done = {(row["method"], row["seed"]) for row in rows}
    todo = [(method, seed) for seed in range(config.seeds) for method in config.methods if (method, seed) not in done]
    for method, seed in tqdm(todo, unit="run"):
        # A fresh environment: no run profits from the plans of another.
        env = make_env(config.network, config.data, config.weights, target_macs=config.target_macs)
        result = METHODS[method](env, config.budget, seed)
        best = max(result.entries, key=lambda entry: entry.accuracy)
        row = {
            "problem": problem,
            "method": method,
            "seed": seed,
            "evaluations": len(result.entries),
            "best_accuracy": best.accuracy,
            "plan": best.plan,
            "seconds": round(result.seconds, 1),
            "curve": result.curve,
        }
        rows.append(row)
        with config.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(f"{'method':<10} {'runs':>4} {'mean':>8} {'lowest':>8} {'highest':>8} {'seconds':>8}   best accuracy, %")
    for method in config.methods:
        mine = [row for row in rows if row["method"] == method and row["seed"] < config.seeds]
        best = [100 * row["best_accuracy"] for row in mine]
        seconds = sum(row["seconds"] for row in mine) / len(mine)
        mean = sum(best) / len(best)
        print(f"{method:<10} {len(best):>4} {mean:>8.2f} {min(best):>8.2f} {max(best):>8.2f} {seconds:>8.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
