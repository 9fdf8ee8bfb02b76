"""Saving and loading a pruned network."""

from __future__ import annotations

import copy
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

from prune_env import load_pruned, save_pruned, update_pruned
from prune_env.data import DataSplits, from_tensors
from prune_env.deploy.record import to_json
from prune_env.deploy.weights import file_bytes
from prune_env.networks import create
from prune_env.pruning import Member, PruningGroup
from prune_env.pruning.problem import ProblemConfig, PruningProblem

ROOT = Path(__file__).parents[2]
PLAN = (16, 20, 30, 40, 100)


def make_problem(model: nn.Module, data: DataSplits) -> PruningProblem:
    return PruningProblem.create(model, data, ProblemConfig(prove=False))


@pytest.fixture(scope="module")
def problem(trained: nn.Module, digits: DataSplits) -> PruningProblem:
    return make_problem(trained, digits)


@pytest.fixture
def saved(problem: PruningProblem, tmp_path: Path) -> tuple[Path, nn.Module]:
    network = problem.build(PLAN).eval()
    metrics = {"pruned_accuracy": 0.9}
    save_pruned(tmp_path / "run", network, PLAN, problem, base="small_cnn", metrics=metrics)
    return tmp_path / "run", network


class Own(nn.Module):
    """A network that is not registered."""

    def __init__(self, filters: int = 12) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, filters, 3), nn.Linear(filters, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


class Other(Own):
    """Has the same tensors as Own and computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(x)


def own13() -> nn.Module:
    return Own(13)


def fails() -> nn.Module:
    raise ArithmeticError("no luck")


HERE = f"{__name__}:Own"


@pytest.fixture(scope="module")
def own_problem(digits: DataSplits) -> PruningProblem:
    return make_problem(Own(), digits)


@pytest.fixture
def own(own_problem: PruningProblem, tmp_path: Path) -> Callable[..., tuple[Path, nn.Module]]:
    """Saves a pruned Own; keywords go to save_pruned."""

    def save(**settings: Any) -> tuple[Path, nn.Module]:
        network = own_problem.build((5,)).eval()
        save_pruned(tmp_path / "own", network, (5,), own_problem, **settings)
        return tmp_path / "own", network

    return save


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((directory / "pruned.json").read_text())
    change(record)
    (directory / "pruned.json").write_text(to_json(record))


def test_a_new_process_needs_nothing_but_the_folder(
    saved: tuple[Path, nn.Module], digits: DataSplits, tmp_path: Path
) -> None:
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


def test_the_saved_network_is_smaller(saved: tuple[Path, nn.Module], trained: nn.Module) -> None:
    """Parameters, shapes and the file shrink, and there are no masks."""
    directory, network = saved
    assert file_bytes(network) == (directory / "pruned.safetensors").stat().st_size
    assert file_bytes(network) < 0.7 * file_bytes(trained)
    tensors = load_file(directory / "pruned.safetensors")
    assert tensors["features.0.weight"].shape == (16, 1, 3, 3)
    assert tensors["features.3.weight"].shape == (20, 16, 3, 3)
    assert not [name for name in tensors if "mask" in name]


def test_a_network_that_was_trained_further_is_stored_elsewhere(
    saved: tuple[Path, nn.Module], digits: DataSplits, tmp_path: Path
) -> None:
    folder, original = saved
    network = load_pruned(folder)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    out = tmp_path / "trained"
    update_pruned(folder, network.train(), out, metrics={"mine": 0.5})
    images = digits.normalise(digits.test.images[:5])
    with torch.inference_mode():
        assert torch.equal(load_pruned(out)(images), network.eval()(images))
        assert torch.equal(load_pruned(folder)(images), original(images))
    record = json.loads((out / "pruned.json").read_text())
    assert record["metrics"] == {"mine": 0.5}, "the old ones are those of other weights"
    assert record["plan"]["features.0"] == PLAN[0]


def test_only_the_saved_network_can_be_stored_again(
    saved: tuple[Path, nn.Module], problem: PruningProblem, tmp_path: Path
) -> None:
    folder, network = saved
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for other in (nn.Sequential(network), problem.build((16, 20, 30, 40, 99)), create("vgg16", 10, 3)):
        with pytest.raises(ValueError, match=re.escape(str(folder))):
            update_pruned(folder, other, tmp_path / "new")
    with pytest.raises(ValueError, match="mine"):
        update_pruned(folder, network, tmp_path / "new", metrics={"mine": float("nan")})
    with pytest.raises(TypeError, match="model"):
        update_pruned(folder, network.state_dict(), tmp_path / "new")  # type: ignore[arg-type]
    diverged = copy.deepcopy(network)
    name, weight = next(iter(diverged.named_parameters()))
    weight.data.view(-1)[-1] = float("nan")
    with pytest.raises(ValueError, match=re.escape(name)):
        update_pruned(folder, diverged, tmp_path / "new")
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        update_pruned(folder, network, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_custom_network_in_a_new_process_by_its_import_path(digits: DataSplits, tmp_path: Path) -> None:
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
        "from safetensors.torch import load_file, save_file\n"
        "from prune_env.pruning.problem import PruningProblem\n"
        "images = load_file('images.safetensors')['images']\n"
        "if sys.argv[1] == 'save':\n"
        "    import somebodys\n"
        "    problem = PruningProblem.create(somebodys.make(), prune_env.data.load('digits'))\n"
        "    network = problem.build((7,)).eval()\n"
        "    prune_env.save_pruned('run', network, (7,), problem, base='somebodys:make')\n"
        "else:\n"
        "    network = prune_env.load_pruned('run', trust_base='somebodys:make')\n"
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
    saved: tuple[Path, nn.Module], problem: PruningProblem, tmp_path: Path
) -> None:
    backwards = tuple(
        replace(group, name=f"x{number}", members=group.members[::-1])
        for number, group in enumerate(problem.groups[::-1])
    )
    ranking = {
        renamed.name: problem.ranking[group.name]
        for renamed, group in zip(backwards, problem.groups[::-1], strict=True)
    }
    other = replace(problem, inspection=replace(problem.inspection, groups=backwards), ranking=ranking)
    metrics = {"pruned_accuracy": 0.9}
    save_pruned(tmp_path / "other", saved[1], PLAN[::-1], other, base="small_cnn", metrics=metrics)
    for name in ("pruned.json", "pruned.safetensors"):
        assert (tmp_path / "other" / name).read_bytes() == (saved[0] / name).read_bytes()


def test_groups_that_cover_a_part_of_a_layer(own_problem: PruningProblem, digits: DataSplits, tmp_path: Path) -> None:
    """Three filters of two channels each are scattered over a layer of 12; six channels are in no group."""
    index = torch.tensor([[0, 6], [2, 8], [4, 11]])
    members = (Member("conv", "out", index), Member("head", "in", index))
    groups = (PruningGroup("conv_0", ("conv",), 3, members),)
    problem = replace(
        own_problem,
        inspection=replace(own_problem.inspection, groups=groups),
        ranking={"conv_0": torch.tensor([1, 2, 0])},
    )
    network = problem.build((1,)).eval()
    save_pruned(tmp_path, network, (1,), problem, base=HERE)
    assert json.loads((tmp_path / "pruned.json").read_text())["plan"] == {"conv": 8}
    loaded = load_pruned(tmp_path, trust_base=HERE)
    with torch.inference_mode():
        assert torch.equal(loaded(digits.example_input), network(digits.example_input))
    with pytest.raises(ValueError, match="conv"):
        save_pruned(tmp_path, own_problem.build((9,)), (1,), problem, base=HERE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_precisions_are_kept(
    own_problem: PruningProblem, digits: DataSplits, tmp_path: Path, dtype: torch.dtype
) -> None:
    network = own_problem.build((5,)).eval().to(dtype)
    save_pruned(tmp_path / "run", network, (5,), own_problem, base=HERE)
    loaded = load_pruned(tmp_path / "run", trust_base=HERE)
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype}
    images = digits.example_input.to(dtype)
    with torch.inference_mode():
        assert torch.equal(loaded(images), network(images))


def test_shared_parameters_and_buffers_outside_the_state(digits: DataSplits, tmp_path: Path) -> None:
    """A parameter of two modules is written twice and shared again; buffers outside the state are those saved."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head, self.again = nn.Conv2d(1, 6, 3), nn.Linear(6, 10), nn.Linear(10, 10)
            self.last = nn.Linear(10, 10)
            self.last.weight = self.again.weight
            self.register_buffer("factor", torch.rand(()), persistent=False)
            self.head.register_buffer("cache", None, persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * self.last(self.again(self.head(self.conv(x).relu().mean((2, 3)))))

    problem = make_problem(Tied(), digits)
    network = problem.build((3,)).eval()
    network.get_submodule("head").cache = torch.arange(3)
    save_pruned(tmp_path / "run", network, (3,), problem)
    loaded = load_pruned(tmp_path / "run", Tied())
    assert torch.equal(loaded.get_buffer("head.cache"), torch.arange(3))
    update_pruned(tmp_path / "run", loaded, tmp_path / "again")
    assert torch.equal(load_pruned(tmp_path / "again", Tied()).get_buffer("factor"), network.get_buffer("factor"))
    assert loaded.get_parameter("last.weight") is loaded.get_parameter("again.weight")
    with torch.inference_mode():
        assert torch.equal(loaded(digits.example_input), network(digits.example_input))


def test_a_registered_network_with_other_buffers(tmp_path: Path) -> None:
    """The shortcuts of ResNets hold indices that pruning cuts; they follow from the channels that remain."""
    colours = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    data = from_tensors(colours, torch.arange(40) % 10, colours[:10] + 1, torch.arange(10))
    problem = make_problem(create("resnet20", 10, 3), data)
    plan = tuple(max(1, count // 2) for count in problem.full_plan)
    network = problem.build(plan).eval()
    save_pruned(tmp_path, network, plan, problem, base="resnet20")
    assert not any("source" in name for name in load_file(tmp_path / "pruned.safetensors"))
    with torch.inference_mode():
        assert torch.equal(load_pruned(tmp_path)(data.example_input), network(data.example_input))


@pytest.mark.parametrize("factor", [torch.rand(2), torch.tensor(1)])
def test_buffers_of_another_shape_or_kind_are_refused(digits: DataSplits, tmp_path: Path, factor: torch.Tensor) -> None:
    class Scaled(Own):
        def __init__(self, factor: torch.Tensor) -> None:
            super().__init__()
            self.register_buffer("factor", factor, persistent=False)

    problem = make_problem(Scaled(torch.rand(())), digits)
    save_pruned(tmp_path, problem.build((5,)), (5,), problem)
    with pytest.raises(ValueError, match="buffer factor"):
        load_pruned(tmp_path, Scaled(factor))


def test_a_compiled_network_is_its_own_base(digits: DataSplits, tmp_path: Path) -> None:
    compiled: Any = torch.compile(Own())
    problem = make_problem(compiled, digits)
    network = problem.build((5,)).eval()
    save_pruned(tmp_path, network, (5,), problem, base=compiled)
    loaded = load_pruned(tmp_path, compiled)
    with torch.inference_mode():
        assert torch.equal(loaded(digits.example_input), network(digits.example_input))


@pytest.mark.usefixtures("own_problem", "untouched_rngs")
def test_the_random_state_is_not_changed(own: Callable[..., tuple[Path, nn.Module]]) -> None:
    directory, _ = own(base=HERE)
    load_pruned(directory, trust_base=HERE)


class TestRefusedToSave:
    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"base": "lenet"}, "'lenet'"),
            ({"base": ":Own"}, "':Own'"),
            ({"base": "no_such_package.nets:Own"}, "no_such_package.nets:Own"),
            ({"base": f"{__name__}:Missing"}, "Missing"),
            ({"base": "__main__:Own"}, "__main__:Own"),
            ({"base": f"{__name__}:fails"}, rf"fails.*ArithmeticError: no luck, in {re.escape(__file__)}, line \d+"),
            ({"base": f"{__name__}:make_problem"}, "make_problem"),
            ({"base": "builtins:dict"}, "dict"),
            ({"base": f"{__name__}:own13"}, "conv .*13.*12"),
            ({"base": f"{__name__}:Other"}, "Other.*Own"),
            ({"base": nn.Conv2d(1, 12, 3)}, "'conv'"),
            ({"base": "small_cnn"}, "'conv'"),
            ({"base": "vgg16"}, r"'vgg16' .*\(32, 32\).*\(8, 8\)"),
            ({"metrics": {"loss": float("nan")}}, "'loss' .*nan"),
            ({"metrics": {"loss": torch.ones(1)}}, "'loss' .*Tensor"),
        ],
    )
    def test_wrong_settings_are_named_and_nothing_is_written(
        self, own: Callable[..., tuple[Path, nn.Module]], tmp_path: Path, settings: dict[str, Any], named: str
    ) -> None:
        with pytest.raises(ValueError, match=named):
            own(**settings)
        assert not (tmp_path / "own").exists()

    @pytest.mark.parametrize("filters", [4, 6, 12])
    @pytest.mark.parametrize("base", [HERE, Own()])
    def test_a_network_of_another_plan(
        self, own_problem: PruningProblem, tmp_path: Path, filters: int, base: str | nn.Module
    ) -> None:
        network = own_problem.build((filters,))
        with pytest.raises(ValueError, match="conv"):
            save_pruned(tmp_path / "run", network, (5,), own_problem, base=base)
        assert not (tmp_path / "run").exists()

    def test_a_network_that_is_too_small_without_a_base(self, own_problem: PruningProblem, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"conv has 4 .* 5"):
            save_pruned(tmp_path / "run", own_problem.build((4,)), (5,), own_problem)
        with pytest.raises(ValueError, match="'conv'"):
            save_pruned(tmp_path / "run", nn.Linear(2, 2), (5,), own_problem)

    def test_state_that_is_not_a_tensor(self, digits: DataSplits, tmp_path: Path) -> None:
        class Noted(Own):
            def get_extra_state(self) -> str:
                return "a note"

            def set_extra_state(self, state: Any) -> None:
                pass

        problem = make_problem(Noted(), digits)
        with pytest.raises(ValueError, match=r"_extra_state .*str"):
            save_pruned(tmp_path / "run", problem.build((5,)), (5,), problem)

    def test_wrong_types(self, own_problem: PruningProblem, tmp_path: Path) -> None:
        network = own_problem.build((5,))
        with pytest.raises(TypeError, match="got Own"):
            save_pruned(tmp_path / "run", network, (5,), own_problem.model)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="got int"):
            save_pruned(tmp_path / "run", network, (5,), own_problem, base=3)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="got dict"):
            save_pruned(tmp_path / "run", network, {"conv": 5}, own_problem)  # type: ignore[arg-type]


class TestRefusedToLoad:
    def test_missing_files(self, tmp_path: Path, saved: tuple[Path, nn.Module]) -> None:
        with pytest.raises(FileNotFoundError, match=r"nothing.pruned\.json"):
            load_pruned(tmp_path / "nothing")
        (saved[0] / "pruned.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"pruned\.safetensors"):
            load_pruned(saved[0])

    def test_damaged_weights(self, saved: tuple[Path, nn.Module]) -> None:
        file = saved[0] / "pruned.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"pruned\.safetensors"):
            load_pruned(saved[0])
        weights = b"no safetensors"
        file.write_bytes(weights)
        digest = hashlib.blake2b(weights, digest_size=16).hexdigest()
        edit(saved[0], lambda record: record.update(weights_digest=digest))
        with pytest.raises(ValueError, match=r"pruned\.safetensors"):
            load_pruned(saved[0])

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda r: r.pop("modules"), "modules"),
            (lambda r: r["plan"].update({"features.0": 17}), r"features\.0 has 16 .*17"),
            (lambda r: r["plan"].update(nowhere=2), "nowhere"),
            (lambda r: r["kept_channels"][0]["kept"].append(99), "ascending"),
            (lambda r: r["kept_channels"][0]["kept"].pop(), r"\(15, 1, 3, 3\)"),
            (lambda r: r["kept_channels"][0].update(of=33), r"features\.0 has 32 .*33"),
            (lambda r: r["kept_channels"].pop(), "classifier"),
            (lambda r: r["data"].update(image_shape=[1, 9, 9]), r"\(8, 8\).*\(9, 9\)"),
            (lambda r: r["network"].update(num_classes=9), r"\(9,\).*\(10,\)"),
            (lambda r: r["network"].update(name="lenet"), "'lenet'"),
            (lambda r: r["network"].update(name=None, base="no_such_package:f"), "no_such_package:f"),
            (lambda r: r["network"].update(name=None, base="os.system"), r"'os\.system'"),
            (lambda r: r["modules"].update({"": "Own"}), "SmallCNN.*Own"),
        ],
    )
    def test_an_edited_record(
        self, saved: tuple[Path, nn.Module], change: Callable[[dict[str, Any]], object], named: str
    ) -> None:
        edit(saved[0], change)
        with pytest.raises(ValueError, match=named) as caught:
            load_pruned(saved[0])
        assert str(saved[0] / "pruned.json") in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("base", "named"),
        [
            (Own(13), "conv has 13 .* 12 "),
            (Other(), "Other.*Own"),
            (nn.Sequential(nn.Conv2d(1, 12, 3)), "'conv'"),
            (create("small_cnn", 10, 1), "'conv'"),
        ],
    )
    def test_a_wrong_base(self, own: Callable[..., tuple[Path, nn.Module]], base: nn.Module, named: str) -> None:
        directory, _ = own()
        with pytest.raises(ValueError, match=named) as caught:
            load_pruned(directory, base)
        assert "base_model" in str(caught.value)

    def test_base_model_is_needed_where_the_record_has_no_base_and_takes_precedence(
        self, own: Callable[..., tuple[Path, nn.Module]], digits: DataSplits
    ) -> None:
        directory, network = own()
        with pytest.raises(ValueError, match="base_model"):
            load_pruned(directory)
        edit(directory, lambda record: record["network"].update(base="no_such_package:factory"))
        loaded = load_pruned(directory, Own())
        with torch.inference_mode():
            assert torch.equal(loaded(digits.example_input), network(digits.example_input))


def test_a_killed_writer_leaves_the_old_files(
    saved: tuple[Path, nn.Module], problem: PruningProblem, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, network = saved
    before = shutil.copytree(directory, directory.with_name("before"))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_pruned(directory, network, PLAN, problem, base="small_cnn")
    for file in before.iterdir():
        assert file.read_bytes() == (directory / file.name).read_bytes()
    assert len(list(directory.iterdir())) == 2, "a temporary file was left"
