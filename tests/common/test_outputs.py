"""Networks with several outputs: choosing one, and giving all of them back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

from prune_env.common.fingerprints import weights_fingerprint
from prune_env.common.outputs import OutputError, all_outputs, one_output
from prune_env.pruning.copies import shared_copy

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class TwoHeads(nn.Module):
    """Returns two outputs, packed in some way."""

    def __init__(self, pack: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.pack = pack
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.main, self.other = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 2, 1)

    def forward(self, images: torch.Tensor) -> Any:
        features = self.body(images)
        return self.pack(self.main(features), self.other(features))


def as_dict(one: torch.Tensor, two: torch.Tensor) -> Any:
    return {"out": one, "aux": two}


def as_tuple(one: torch.Tensor, two: torch.Tensor) -> Any:
    return one, two


def as_nested(one: torch.Tensor, two: torch.Tensor) -> Any:
    return [{"maps": [one]}, two]


def alone(one: torch.Tensor, two: torch.Tensor) -> Any:
    return one


def first_map(found: Any) -> torch.Tensor:
    return cast(torch.Tensor, found[0]["maps"][0])


CASES = [(as_dict, "out"), (as_tuple, 0), (as_nested, first_map), (alone, 0), (alone, "out")]


@pytest.mark.parametrize(("pack", "output"), CASES)
class TestChoice:
    def test_it_is_the_only_output(self, pack: Any, output: Any) -> None:
        network = TwoHeads(pack)
        expected = alone(network.main(network.body(IMAGES)), IMAGES)
        assert torch.equal(one_output(network, output)(IMAGES), expected)

    def test_layers_and_names_are_those_of_the_network(self, pack: Any, output: Any) -> None:
        network = TwoHeads(pack)
        chosen = one_output(network, output)
        assert isinstance(chosen, TwoHeads)
        assert type(chosen).__name__ == "TwoHeads"
        assert [*chosen.named_modules()][1:] == [*network.named_modules()][1:]
        assert all(one is two for one, two in zip(chosen.parameters(), network.parameters(), strict=True))
        assert not chosen.eval().training
        assert network.training

    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, shared_copy, lambda network: pickle.loads(pickle.dumps(network))]
    )
    def test_copies_have_it_too(self, pack: Any, output: Any, copied: Any) -> None:
        chosen = one_output(TwoHeads(pack), output)
        again = copied(chosen)
        assert again is not chosen
        assert torch.equal(again(IMAGES), chosen(IMAGES))
        assert type(again) is type(chosen)
        assert type(all_outputs(again)) is TwoHeads

    def test_all_outputs_are_those_of_the_network(self, pack: Any, output: Any) -> None:
        network = TwoHeads(pack)
        again = all_outputs(one_output(network, output))
        assert type(again) is TwoHeads
        assert vars(again).keys() == vars(network).keys()
        expected, found = (torch.utils._pytree.tree_leaves(one(IMAGES)) for one in (network, again))
        assert all(map(torch.equal, expected, found))
        assert all_outputs(network) is network

    def test_symbolic_tracing_and_export_see_it(self, pack: Any, output: Any) -> None:
        chosen = one_output(TwoHeads(pack), output).eval()
        expected = chosen(IMAGES)
        assert torch.equal(torch.fx.symbolic_trace(chosen)(IMAGES), expected)
        program = torch.export.export(chosen, (IMAGES,), strict=False)
        assert torch.allclose(program.module()(IMAGES), expected)


def test_another_choice_replaces_the_first() -> None:
    network = TwoHeads(as_dict)
    again = one_output(one_output(network, "out"), "aux")
    assert again(IMAGES).shape[1] == 2
    assert type(all_outputs(again)) is TwoHeads


@pytest.mark.parametrize(
    ("pack", "output", "named"),
    [
        (as_dict, "logits", "'logits'.*'out', 'aux'"),
        (as_dict, 0, "0.*'out', 'aux'"),
        (as_tuple, 2, "2.*tuple of 2"),
        (as_tuple, "out", "'out'.*tuple of 2"),
        (as_nested, 0, "0.*dict with 'maps'"),
    ],
)
def test_an_output_that_does_not_exist_is_named(pack: Any, output: Any, named: str) -> None:
    with pytest.raises(OutputError, match=named):
        one_output(TwoHeads(pack), output)(IMAGES)


@pytest.mark.parametrize("wrong", [None, 1.5, True, ["out"]])
def test_bad_choices(wrong: Any) -> None:
    with pytest.raises(TypeError, match="output"):
        one_output(TwoHeads(as_dict), wrong)
    with pytest.raises(TypeError, match="network"):
        one_output(as_dict, "out")  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_is_chosen_before_the_network_is_compiled() -> None:
    with pytest.raises(TypeError, match="compiled"):
        one_output(torch.compile(TwoHeads(as_dict)), "out")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="scripted"):
        one_output(torch.jit.trace(nn.Conv2d(1, 1, 3), IMAGES), 0)


def test_networks_that_differ_in_their_output_differ_in_their_fingerprint() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    prints = {weights_fingerprint(one) for one in (model, one_output(model, "out"), one_output(model, "other"))}
    assert len(prints) == 3


def test_a_network_with_a_forward_pass_of_its_own_is_refused() -> None:
    model = nn.Linear(4, 2)
    model.forward = lambda x: {"out": x}  # type: ignore[method-assign,assignment]
    for network in (model, torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 2)))):
        with pytest.raises(TypeError, match="wrap the network"):
            one_output(network, "out")
