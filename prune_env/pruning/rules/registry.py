"""The registry of rules: what each operation does to labels.

Example:
    A rule for an operation of your own that does not mix channels:

    >>> from prune_env.pruning.rules import Call, Trace, rule
    >>> @rule(torch.ops.my_library.blur)
    ... def blur(trace: Trace, call: Call) -> None:
    ...     trace[call.result] = trace[call.input]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from ...common.fingerprints import qualified_name
from ..trace import Trace


class Call(NamedTuple):
    """One call of an operation."""

    func: Any
    """The operation, an overload of torch.ops."""
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    output: Any
    """What it returned."""

    @property
    def input(self) -> Any:
        """The first argument."""
        return self.args[0]

    @property
    def result(self) -> torch.Tensor:
        """The output, or its first tensor."""
        result: torch.Tensor = self.output[0] if isinstance(self.output, tuple) else self.output
        return result

    @property
    def operation(self) -> Any:
        """The operation without the overload, as in torch.ops.aten.cat."""
        return self.func.overloadpacket

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument that may be given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


class Rule(NamedTuple):
    """A rule and when it applies."""

    apply: Callable[[Trace, Call], None]
    all_operands: bool
    """Whether it handles the labels of all operands. Otherwise those of the first one only; the others are frozen."""
    without_labels: bool
    """Whether it applies even if no operand has labels."""


RULES: dict[Any, Rule] = {}
"""Operation, or tag of operations -> its rule."""


def rule(
    *operations: Any, all_operands: bool = False, without_labels: bool = False
) -> Callable[[Callable[[Trace, Call], None]], Callable[[Trace, Call], None]]:
    """Return a decorator that makes a function the rule of some operations.

    Args:
        *operations: Operations without an overload, such as torch.ops.aten.cat, or a tag (torch.Tag) for all operations
            with this tag that have no rule.
        all_operands: Whether the rule handles the labels of all operands. Otherwise it handles those of the first
            operand; labels of other operands are frozen before the call.
        without_labels: Whether the rule applies even if no operand has labels, because it creates new ones.

    Raises:
        ValueError: An operation already has another rule.
    """

    def register(function: Callable[[Trace, Call], None]) -> Callable[[Trace, Call], None]:
        for operation in operations:
            known = RULES.get(operation)
            if known is not None and qualified_name(known.apply) != qualified_name(function):
                raise ValueError(f"operation {operation} already has a rule, {qualified_name(known.apply)}")
            RULES[operation] = Rule(function, all_operands, without_labels)
        return function

    return register


def rule_of(func: Any) -> Rule | None:
    """Return the rule of an operation (an overload), None if it has none."""
    return RULES.get(func.overloadpacket) or next((RULES[tag] for tag in func.tags if tag in RULES), None)
