"""Commands end with one line for their user's mistakes, and with a traceback for faults of the program."""

from __future__ import annotations

import pytest

from prune_env.common.command import one_line_errors


class TooFewWorkersError(RuntimeError):
    """An error whose message is meant for the user."""


@pytest.mark.parametrize("kind", [ValueError, OSError, ImportError, FloatingPointError, TooFewWorkersError])
def test_a_mistake_is_one_line_and_status_2(kind: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise kind("first\nsecond\x1b")
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert "first second" in line
    assert line.removesuffix("\n").isprintable()


def test_an_interruption_is_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, one_line_errors("Use --resume."):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [RuntimeError, NotImplementedError, RecursionError, AssertionError, TypeError])
def test_a_fault_of_the_program_is_raised(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="fault"), one_line_errors():
        raise kind("fault")
