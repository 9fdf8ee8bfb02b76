"""Fingerprints of functions."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from prune_env.common.fingerprints import function_fingerprint, qualified_name


def scaled(value: float, factor: float) -> float:
    return factor * value


@dataclass(frozen=True)
class Scaled:
    """A callable object that identifies its settings."""

    factor: float

    @property
    def fingerprint(self) -> str:
        return f"factor {self.factor}"

    def __call__(self, value: float) -> float:
        return self.factor * value


@dataclass(frozen=True)
class Plain:
    """A callable dataclass without a fingerprint of its own."""

    factor: float

    def __call__(self, value: float) -> float:
        return self.factor * value


class Unmarked:
    def __call__(self, value: float) -> float:
        return value


def test_code_constants_closures_and_bound_arguments_make_other_fingerprints() -> None:
    def times(factor: float) -> object:
        return lambda value: factor * value

    functions = [
        lambda value: 1.0,
        lambda value: 2.0,
        times(1.0),
        times(2.0),
        functools.partial(scaled, factor=1.0),
        functools.partial(scaled, factor=2.0),
    ]
    assert len({function_fingerprint(function) for function in functions}) == len(functions)  # type: ignore[arg-type]
    assert function_fingerprint(scaled) == function_fingerprint(scaled)


def test_an_object_can_give_its_own_fingerprint() -> None:
    assert function_fingerprint(Scaled(1.0)) == function_fingerprint(Scaled(1.0))
    assert function_fingerprint(Scaled(1.0)) != function_fingerprint(Scaled(2.0))
    assert function_fingerprint(Unmarked()) != function_fingerprint(Scaled(1.0))


def test_the_fields_of_a_callable_dataclass_count() -> None:
    assert function_fingerprint(Plain(1.0)) == function_fingerprint(Plain(1.0))
    assert function_fingerprint(Plain(1.0)) != function_fingerprint(Plain(2.0))


def test_qualified_names_are_those_of_functions_and_classes() -> None:
    assert qualified_name(scaled).endswith("test_fingerprints.scaled")
    assert qualified_name(functools.partial(scaled)) == qualified_name(scaled)
    assert qualified_name(Unmarked()).endswith("test_fingerprints.Unmarked")
