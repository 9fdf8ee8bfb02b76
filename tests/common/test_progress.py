"""Progress bars draw often on a terminal, and seldom in a log file."""

from __future__ import annotations

import io
import sys

import pytest

from prune_env.common.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "least", "most"), [(io.StringIO(), 60, 60), (Terminal(), 0, 1)])
def test_a_log_file_gets_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, least: int, most: int
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(total=3, desc="work") as bar:
        assert least <= bar.mininterval <= most
        assert bar.maxinterval >= bar.mininterval
        for _ in range(3):
            bar.update()
    assert stream.getvalue().count("work") == 2, "at the start and at the end"


def test_other_settings_are_those_of_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(total=3, mininterval=0, miniters=1) as bar:
        for _ in range(3):
            bar.update()
    assert "2/3" in stream.getvalue()
