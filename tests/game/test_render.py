"""The current state as text and as an image: numbers and bars agree with the rows."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prune_env.common.figure_style import BLUE
from prune_env.game.render import BAR_LENGTH, RenderRow, RenderTotals, ansi, rgb_array

ROWS = (
    RenderRow("conv_0", ("features.0",), 64, 32, 0.123, 0.3),
    RenderRow("conv_1", ("features.3", "features.6"), 512, 512, 0.877, 0.0),
)
TOTALS = RenderTotals(accuracy=0.7312, macs_ratio=0.4987, params_ratio=0.331, round=2, rounds=3)


def test_text_of_known_rows() -> None:
    assert ansi(ROWS, TOTALS) == (
        f"conv_0  features.0     |{'█' * 10}{' ' * 10}|  32 of  64  MACs  12.3 %  last  30.0 %\n"
        f"conv_1  features.3 +1  |{'█' * 20}| 512 of 512  MACs  87.7 %  last   0.0 %\n"
        "round 2 of 3   accuracy 73.12 %   MACs 49.9 % and parameters 33.1 % of the original"
    )


counts = st.integers(1, 2048).flatmap(lambda before: st.tuples(st.just(before), st.integers(1, before)))
rows = st.builds(
    lambda index, layers, count, share, rate: RenderRow(f"conv_{index}", tuple(layers), *count, share, rate),
    st.integers(0, 200),
    st.lists(st.text("abc._01", min_size=1, max_size=60), min_size=1, max_size=12),
    counts,
    st.floats(0, 1),
    st.floats(0, 1),
)


@example([RenderRow("conv_0", ("a",), 2048, 2047, 1.0, 0.0)])  # rounding would fill the bar
@settings(deadline=None)
@given(st.lists(rows, min_size=1, max_size=8))
def test_lines_are_aligned_and_bars_have_the_right_length(rows: list[RenderRow]) -> None:
    *lines, _ = ansi(rows, TOTALS).split("\n")
    assert len(lines) == len(rows)
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 110
    assert len({line.index("|") for line in lines}) == 1
    for line, row in zip(lines, rows, strict=True):
        bar = line.split("|")[1]
        assert len(bar) == BAR_LENGTH
        assert (bar == "█" * BAR_LENGTH) == (row.filters_after == row.filters_before)
        assert abs(bar.count("█") - BAR_LENGTH * row.filters_after / row.filters_before) <= 1
        assert re.search(rf"\| +{row.filters_after} of +{row.filters_before} ", line)


def test_long_paths_keep_their_end() -> None:
    row = RenderRow("conv_7", ("backbone.stages.layer3.blocks.11.conv1", "x"), 8, 4, 0.1, 0.1)
    assert "  …yer3.blocks.11.conv1 +1  |" in ansi([row], TOTALS)


def test_the_image_is_uint8_and_its_size_depends_on_the_number_of_rows_alone() -> None:
    other = replace(TOTALS, accuracy=1.0, macs_ratio=1.0, params_ratio=1.0, round=0)
    images = [rgb_array(ROWS, TOTALS), rgb_array(ROWS, other)]
    for image in images:
        assert image.dtype == np.uint8
        assert image.shape == (120, 800, 3)
    assert (images[0] != images[1]).any(), "the totals are not shown"
    assert np.array_equal(images[0], rgb_array(ROWS, TOTALS))
    assert rgb_array(ROWS * 10, TOTALS).shape == (23 * 24, 800, 3)
    assert images[0].flags.owndata
    assert images[0].flags.writeable


def test_bars_of_the_image_are_as_long_as_the_share_of_kept_filters() -> None:
    blue = tuple(int(BLUE[i : i + 2], 16) for i in (1, 3, 5))
    lengths = (rgb_array(ROWS, TOTALS) == blue).all(2).sum(1)  # pixels of that colour in each line: [H]
    # Two bars, one of which is half as long as the other.
    assert lengths.max() == pytest.approx(224, abs=2)
    assert np.median(lengths[(lengths > 0) & (lengths < 200)]) == pytest.approx(112, abs=2)


@pytest.mark.parametrize("draw", [ansi, rgb_array])
def test_there_must_be_rows(draw: object) -> None:
    with pytest.raises(ValueError, match="rows"):
        draw([], TOTALS)  # type: ignore[operator]


def test_only_the_image_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert ansi(ROWS, TOTALS)
    with pytest.raises(ImportError, match=r"matplotlib.*pip install"):
        rgb_array(ROWS, TOTALS)
