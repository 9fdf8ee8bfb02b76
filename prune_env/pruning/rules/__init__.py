"""What each operation does to labels: a rule for every kind of operation.

A rule is a function of the trace and one call; it sets the labels of the call's output. Where cutting filters would
change the result of an operation in another way than masking them, the rule freezes the filters, and the output has no
labels. An operation without a rule freezes all filters that it reads. Label tensors have length 1 along dimensions in
which they do not change, see `labels.py`.
"""

from ..trace import Trace
from . import layers, tensors  # noqa: F401  registers the rules of torch's operations
from .registry import Call, Rule, rule, rule_of

__all__ = ["Call", "Rule", "Trace", "rule", "rule_of"]
