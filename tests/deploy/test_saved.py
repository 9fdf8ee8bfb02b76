"""Saving and loading a pruned network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from prune_env import load_pruned, save_pruned
from prune_env.data import DataSplits
from prune_env.deploy.saved import file_bytes
from prune_env.networks import create
from prune_env.pruning import Member, PruningGroup, build, find_groups, importance

ROOT = Path(__file__).parents[2]
PLAN = (16, 20, 30, 40, 100)


@pytest.fixture
def saved(trained: nn.Module, digits: DataSplits, tmp_path: Path) -> tuple[Path, nn.Module]:
    groups = find_groups(trained, digits.example_input)
    ranking = importance.ranking(importance.scores("l1", trained, groups))
    network = build(trained, groups, ranking, PLAN).eval()
    save_pruned(
        tmp_path / "run", network, PLAN, groups=groups, ranking=ranking, data=digits, network="small_cnn",
        metrics={"pruned_accuracy": 0.9},
    )  # fmt: skip
    return tmp_path / "run", network


def test_a_new_process_gives_equal_outputs(saved: tuple[Path, nn.Module], digits: DataSplits, tmp_path: Path) -> None:
    """Case 4: nothing is needed but the folder."""
    directory, network = saved
    images = digits.normalise(digits.test.images[:20])
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import sys, torch, prune_env\n"
        "network = prune_env.load_pruned(sys.argv[1])\n"
        "assert not network.training\n"
        "with torch.inference_mode():\n"
        "    torch.save(network(torch.load(sys.argv[2])), sys.argv[3])\n"
    )
    files = [str(tmp_path / name) for name in ("images.pt", "outputs.pt")]
    subprocess.run([sys.executable, "-c", code, str(directory), *files], check=True)
    with torch.inference_mode():
        assert torch.equal(torch.load(tmp_path / "outputs.pt"), network(images))


def test_the_small_network_is_small(saved: tuple[Path, nn.Module], trained: nn.Module) -> None:
    """Case 3: parameters, shapes and the file on disk shrink; no mask is left."""
    directory, network = saved
    assert file_bytes(network) == (directory / "pruned.safetensors").stat().st_size
    assert file_bytes(network) < 0.7 * file_bytes(trained)
    tensors = load_file(directory / "pruned.safetensors")
    assert tensors["features.0.weight"].shape == (16, 1, 3, 3)
    assert tensors["features.3.weight"].shape == (20, 16, 3, 3)
    assert not [name for name in tensors if "mask" in name]


def test_the_record_says_what_it_is(saved: tuple[Path, nn.Module], digits: DataSplits) -> None:
    record = json.loads((saved[0] / "pruned.json").read_text())
    assert list(record["plan"].values()) == list(PLAN)
    assert record["network"]["name"] == "small_cnn"
    assert record["normalisation"]["mean"] == list(digits.mean)
    assert record["metrics"] == {"pruned_accuracy": 0.9}
    first = record["kept_channels"][0]
    assert (first["module"], first["side"], first["of"], len(first["kept"])) == ("features.0", "out", 32, PLAN[0])


class Own(nn.Module):
    def __init__(self, filters: int = 12) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, filters, 3), nn.Linear(filters, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


class Other(Own):
    """Equal in every tensor, not in what it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(x)


def own13() -> nn.Module:
    return Own(13)


def broken() -> nn.Module:
    raise ArithmeticError("no luck")


HERE = f"{__name__}:Own"


def pruned(model: nn.Module, digits: DataSplits, plan: tuple[int, ...]) -> tuple[nn.Module, dict[str, Any]]:
    groups = find_groups(model, digits.example_input)
    ranking = importance.ranking(importance.scores("l1", model, groups))
    return build(model, groups, ranking, plan).eval(), {"groups": groups, "ranking": ranking, "data": digits}


@pytest.fixture
def own(digits: DataSplits, tmp_path: Path) -> Callable[..., tuple[Path, nn.Module]]:
    """Saves a pruned Own; keywords go to save_pruned."""

    def save(model: nn.Module | None = None, **settings: Any) -> tuple[Path, nn.Module]:
        network, problem = pruned(Own() if model is None else model, digits, (5,))
        save_pruned(tmp_path / "own", network, (5,), **problem, **settings)
        return tmp_path / "own", network

    return save


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((directory / "pruned.json").read_text())
    change(record)
    (directory / "pruned.json").write_text(json.dumps(record))


@pytest.mark.slow
def test_an_own_class_in_a_new_process_by_its_import_path(digits: DataSplits, tmp_path: Path) -> None:
    (tmp_path / "somebodys.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        convolution = nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU()\n"
        "        super().__init__(*convolution, nn.Flatten(), nn.Linear(432, 10))\n"
        "def make():\n"
        "    return Net()\n"
    )
    images = digits.normalise(digits.test.images[:20])
    save_file({"images": images.contiguous()}, tmp_path / "images.safetensors")
    code = (
        "import sys, torch, prune_env\n"
        "from safetensors.torch import load_file, save_file, save_file\n"
        "from prune_env.pruning import Member, PruningGroup, build, find_groups, importance\n"
        "images = load_file('images.safetensors')['images']\n"
        "if sys.argv[1] == 'save':\n"
        "    import somebodys\n"
        "    data = prune_env.data.load('digits')\n"
        "    model = somebodys.make()\n"
        "    groups = find_groups(model, images)\n"
        "    ranking = importance.ranking(importance.scores('l1', model, groups))\n"
        "    network = build(model, groups, ranking, (7,)).eval()\n"
        "    prune_env.save_pruned('run', network, (7,), groups=groups, ranking=ranking, data=data,\n"
        "                          base='somebodys:make')\n"
        "else:\n"
        "    network = prune_env.load_pruned('run')\n"
        "with torch.inference_mode():\n"
        "    save_file({'outputs': network(images)}, sys.argv[1])\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    for step in ("save", "load"):
        subprocess.run([sys.executable, "-c", code, step], check=True, cwd=tmp_path, env=environment)
    outputs = [load_file(tmp_path / step)["outputs"] for step in ("save", "load")]
    assert outputs[0].std() > 0
    assert torch.equal(*outputs)


def test_records_do_not_depend_on_order_or_names_of_groups(
    saved: tuple[Path, nn.Module], trained: nn.Module, digits: DataSplits, tmp_path: Path
) -> None:
    network, problem = pruned(trained, digits, PLAN)
    backwards = [
        replace(group, name=f"x{number}", members=group.members[::-1])
        for number, group in enumerate(problem["groups"][::-1])
    ]
    ranking = {
        renamed.name: problem["ranking"][group.name]
        for renamed, group in zip(backwards, problem["groups"][::-1], strict=True)
    }
    save_pruned(
        tmp_path / "other", network, PLAN[::-1], groups=backwards, ranking=ranking, data=digits, network="small_cnn",
        metrics={"pruned_accuracy": 0.9},
    )  # fmt: skip
    for name in ("pruned.json", "pruned.safetensors"):
        assert (tmp_path / "other" / name).read_bytes() == (saved[0] / name).read_bytes()


def test_groups_that_cover_a_part_of_a_layer(digits: DataSplits, tmp_path: Path) -> None:
    """Three units of two channels each, scattered over a layer of 12; six channels are in no group."""
    model = Own().eval()
    index = torch.tensor([[0, 6], [2, 8], [4, 11]])
    members = (Member("conv", "out", index), Member("head", "in", index))
    problem = {
        "groups": [PruningGroup("conv_0", ("conv",), 3, members)],
        "ranking": {"conv_0": torch.tensor([1, 2, 0])},
        "data": digits,
    }
    network = build(model, problem["groups"], problem["ranking"], (1,)).eval()  # type: ignore[arg-type]
    save_pruned(tmp_path, network, (1,), **problem, base=HERE)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "pruned.json").read_text())["plan"] == {"conv": 8}
    loaded = load_pruned(tmp_path)
    with torch.inference_mode():
        assert torch.equal(loaded(digits.example_input), network(digits.example_input))
    wrong, _ = pruned(model, digits, (9,))
    with pytest.raises(ValueError, match="not what the plan makes"):
        save_pruned(tmp_path, wrong, (1,), **problem, base=HERE)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_stay(own: Callable[..., tuple[Path, nn.Module]], digits: DataSplits, dtype: torch.dtype) -> None:
    directory, network = own(Own(), base=HERE)
    save = pruned(Own(), digits, (5,))
    network = save[0].to(dtype)
    save_pruned(directory, network, (5,), **save[1], base=HERE)
    loaded = load_pruned(directory)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype}
    images = digits.example_input.to(dtype)
    with torch.inference_mode():
        assert torch.equal(loaded(images), network(images))


def test_tied_and_transient_tensors(digits: DataSplits, tmp_path: Path) -> None:
    """A parameter that two modules share is written twice and shared again; a transient buffer is the base's."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head, self.again = nn.Conv2d(1, 6, 3), nn.Linear(6, 10), nn.Linear(10, 10)
            self.last = nn.Linear(10, 10)
            self.last.weight = self.again.weight
            self.register_buffer("factor", torch.tensor(0.5), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * self.last(self.again(self.head(self.conv(x).relu().mean((2, 3)))))

    network, problem = pruned(Tied(), digits, (3,))
    save_pruned(tmp_path, network, (3,), **problem)
    loaded = load_pruned(tmp_path, Tied())
    assert loaded.get_parameter("last.weight") is loaded.get_parameter("again.weight")
    with torch.inference_mode():
        assert torch.equal(loaded(digits.example_input), network(digits.example_input))


def test_the_callers_random_state_stays(own: Callable[..., tuple[Path, nn.Module]], untouched_rngs: None) -> None:
    with torch.random.fork_rng(devices=[]):
        model = Own()
    directory, _ = own(model, base=HERE)
    load_pruned(directory)


class TestWhatIsNotSaved:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"base": "nothing"}, "must read 'package.module:factory'"),
            ({"base": ":Own"}, "must read 'package.module:factory'"),
            ({"base": "no_such_package.nets:Own"}, "no_such_package.nets:Own' cannot be imported"),
            ({"base": f"{__name__}:Missing"}, "cannot be imported"),
            ({"base": "__main__:Own"}, "another module in every program"),
            (
                {"base": f"{__name__}:broken"},
                rf":broken' failed when it was called \(ArithmeticError: no luck, in {re.escape(__file__)}, line \d+\)",
            ),
            ({"base": f"{__name__}:pruned"}, "cannot be called without arguments"),
            ({"base": "builtins:dict"}, "makes a dict"),
            ({"base": f"{__name__}:own13"}, "conv has 13 channels on its out side in the base, 12 are expected"),
            ({"base": f"{__name__}:Other"}, r"module \(the network itself\) of the base, once cut, is Other"),
            ({"base": nn.Conv2d(1, 12, 3)}, "the base has no module 'conv'"),
            ({"network": "small_cnn"}, "the base has no module 'conv'"),
            ({"network": "lenet"}, "'lenet' is not in the registry"),
            ({"network": "vgg16"}, r"takes \(32, 32\) pixels, the record says \(8, 8\)"),
            ({"network": "small_cnn", "base": HERE}, "give network or base"),
            ({"metrics": {"loss": float("nan")}}, "metric 'loss' is nan of type float"),
            ({"metrics": {"loss": torch.ones(1)}}, "metric 'loss' is .* of type Tensor"),
        ],
    )
    def test_mistakes_are_told_and_nothing_is_written(
        self, own: Callable[..., tuple[Path, nn.Module]], tmp_path: Path, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            own(**settings)
        assert not (tmp_path / "own").exists()

    @pytest.mark.parametrize("filters", [4, 6, 12])
    @pytest.mark.parametrize("base", [HERE, Own()])
    def test_a_model_of_another_plan(
        self, digits: DataSplits, tmp_path: Path, filters: int, base: str | nn.Module
    ) -> None:
        network, problem = pruned(Own(), digits, (filters,))
        with pytest.raises(ValueError, match="the model is not"):
            save_pruned(tmp_path / "run", network, (5,), **problem, base=base)
        assert not (tmp_path / "run").exists()

    def test_a_model_that_is_too_small_without_a_base(self, digits: DataSplits, tmp_path: Path) -> None:
        network, problem = pruned(Own(), digits, (4,))
        with pytest.raises(ValueError, match=r"conv has 4 channels on its out side, the plan leaves at least 5"):
            save_pruned(tmp_path / "run", network, (5,), **problem)
        with pytest.raises(ValueError, match="it has no module 'conv'"):
            save_pruned(tmp_path / "run", nn.Linear(2, 2), (5,), **problem)

    def test_state_that_is_no_tensor(self, digits: DataSplits, tmp_path: Path) -> None:
        class Noted(Own):
            def get_extra_state(self) -> str:
                return "a note"

            def set_extra_state(self, state: Any) -> None:
                pass

        network, problem = pruned(Noted(), digits, (5,))
        with pytest.raises(ValueError, match="_extra_state in the model's state is no tensor but str"):
            save_pruned(tmp_path / "run", network, (5,), **problem)


class TestWhatIsNotLoaded:
    def test_missing(self, tmp_path: Path, saved: tuple[Path, nn.Module]) -> None:
        with pytest.raises(FileNotFoundError, match=r"pruned\.json does not exist"):
            load_pruned(tmp_path / "nothing")
        with pytest.raises(NotADirectoryError, match=r"pruned\.json is a file; give the folder"):
            load_pruned(saved[0] / "pruned.json")
        (saved[0] / "pruned.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"pruned\.safetensors does not exist"):
            load_pruned(saved[0])

    def test_truncated(self, saved: tuple[Path, nn.Module]) -> None:
        file = saved[0] / "pruned.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"pruned\.safetensors is truncated"):
            load_pruned(saved[0])
        weights = b"no safetensors"
        file.write_bytes(weights)
        digest = hashlib.blake2b(weights, digest_size=16).hexdigest()
        edit(saved[0], lambda record: record.update(weights_digest=digest))
        with pytest.raises(ValueError, match=r"pruned\.safetensors is not a safetensors file"):
            load_pruned(saved[0])

    def test_broken_json(self, saved: tuple[Path, nn.Module]) -> None:
        file = saved[0] / "pruned.json"
        file.write_text(file.read_text()[:-50])
        with pytest.raises(ValueError, match=r"pruned\.json is not valid JSON"):
            load_pruned(saved[0])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda r: r.update(format_version=99), "format version 99, this release reads version 2"),
            (lambda r: r.clear(), "format version None"),
            (lambda r: r.pop("kept_channels"), "lacks kept_channels"),
            (lambda r: r["network"].pop("base"), r"lacks network\.base"),
            (lambda r: r.update(plan=[1, 2]), "plan must be mapping, got"),
            (lambda r: r["plan"].update({"features.0": 2.5}), r"plan\.features\.0 must be int, got 2\.5"),
            (lambda r: r["plan"].update({"features.0": True}), "must be int, got True"),
            (lambda r: r["plan"].update({"features.0": 17}), "layer features.0 has 16 filters, the plan says 17"),
            (lambda r: r["plan"].update(nowhere=2), "no attribute `nowhere`"),
            (lambda r: r.update(kept_channels={}), "kept_channels must be list"),
            (lambda r: r["kept_channels"][0].update(kept="all"), r"kept_channels\[0\]\.kept must be list"),
            (lambda r: r["kept_channels"][0]["kept"].append(99), "must be ascending"),
            (lambda r: r["kept_channels"][0]["kept"].pop(), r"is \(15, 1, 3, 3\)"),
            (lambda r: r["kept_channels"][0].update(of=33), "features.0 has 32 channels on its out side in the base"),
            (lambda r: r["kept_channels"].pop(), "of the base, once cut, is"),
            (lambda r: r["normalisation"].update(mean="0.5"), r"normalisation\.mean must be list"),
            (lambda r: r["data"].update(image_shape=[8, 8]), r"data\.image_shape must hold 3 values"),
            (lambda r: r["data"].update(image_shape=[1, 9, 9]), r"takes \(8, 8\) pixels"),
            (lambda r: r["network"].update(num_classes=9), "is \\(9,\\); of the saved network it is \\(10,\\)"),
            (lambda r: r["network"].update(name=3), r"network\.name must be str or null"),
            (lambda r: r["network"].update(name="lenet"), "'lenet' is not in the registry"),
            (lambda r: r["network"].update(name=None, base="no_such_package:f"), "cannot be imported"),
            (lambda r: r["network"].update(name=None, base="os.system"), "must read 'package.module:factory'"),
            (lambda r: r["modules"].update({"": "Own"}), "once cut, is SmallCNN; of the saved network it is Own"),
        ],
    )
    def test_a_record_that_was_edited(
        self, saved: tuple[Path, nn.Module], change: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        edit(saved[0], change)
        with pytest.raises(ValueError, match=message) as error:
            load_pruned(saved[0])
        assert str(saved[0] / "pruned.json") in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("base", "message"),
        [
            (Own(13), "conv has 13 channels on its out side in the base, 12 are expected"),
            (Other(), "the base, once cut, is Other; of the saved network it is Own"),
            (nn.Sequential(nn.Conv2d(1, 12, 3)), "the base has no module 'conv'"),
            (create("small_cnn", 10, 1), "the base has no module 'conv'"),
        ],
    )
    def test_a_wrong_base(self, own: Callable[..., tuple[Path, nn.Module]], base: nn.Module, message: str) -> None:
        directory, _ = own()
        with pytest.raises(ValueError, match=message) as error:
            load_pruned(directory, base)
        assert "pass the network that was pruned as base_model" in str(error.value)

    def test_base_model_wins_and_is_needed_where_nothing_is_named(
        self, own: Callable[..., tuple[Path, nn.Module]], digits: DataSplits
    ) -> None:
        directory, network = own()
        with pytest.raises(ValueError, match="names no network of the registry and no import path; pass the unpruned"):
            load_pruned(directory)
        edit(directory, lambda record: record["network"].update(base="no_such_package:factory"))
        loaded = load_pruned(directory, Own())
        with torch.inference_mode():
            assert torch.equal(loaded(digits.example_input), network(digits.example_input))


def test_a_killed_writer_leaves_the_old_file(
    saved: tuple[Path, nn.Module], digits: DataSplits, monkeypatch: pytest.MonkeyPatch, trained: nn.Module
) -> None:
    directory, network = saved
    before = shutil.copytree(directory, directory.with_name("before"))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    groups = find_groups(trained, digits.example_input)
    ranking = importance.ranking(importance.scores("l1", trained, groups))
    with pytest.raises(KeyboardInterrupt):
        save_pruned(directory, network, PLAN, groups=groups, ranking=ranking, data=digits, network="small_cnn")
    for file in before.iterdir():
        assert file.read_bytes() == (directory / file.name).read_bytes()
    assert len(list(directory.iterdir())) == 2, "a temporary file was left"
