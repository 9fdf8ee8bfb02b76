"""Tables say the right numbers, aligned; pictures are pictures, and leave matplotlib's settings alone."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from prune_env.common import figure_style as drawing
from prune_env.reporting import plots as pictures
from prune_env.reporting import summary as report
from prune_env.reporting.plots import LayerRow, plot_layers, plot_learning, plot_tradeoff
from prune_env.reporting.summary import NetworkRow, table

ORIGINAL = NetworkRow("original", 0.936, 313_201_664, 14_991_946, 60_000_000, 4.0, 150.0)
HALF = NetworkRow("QMIX", 0.9291, 156_600_832, 7_000_000, 30_000_000, 3.0, 75.0, short_accuracy=0.731)

EPISODES: list[dict[str, Any]] = [
    {"episode": i, "return": math.sin(i), "epsilon": 1 - i / 40, "best_accuracy": 0.5 + i / 100} for i in range(40)
] + [{"episode": i, "eval/return": 0.5} for i in (9, 19)]
LAYERS = [LayerRow(f"features.{i}", f"conv_{i}", 64, 64 - i, 10**6, 10**6 - i * 10**4) for i in range(13)]
POINTS = [(0.5 - i / 10_000, 0.3 + i / 200) for i in range(60)]
DRAWINGS: dict[str, Callable[[Path], None]] = {
    "learning": lambda path: plot_learning(path, EPISODES, references={"uniform": 0.6}),
    "layers": lambda path: plot_layers(path, LAYERS),
    "tradeoff": lambda path: plot_tradeoff(path, POINTS, (1.0, 0.9), POINTS[-1], POINTS[0], budget=0.5),
    "hopeless": lambda path: plot_tradeoff(
        path, [(0.5, 0), *POINTS[50:]], (1.0, 0.9), POINTS[-1], POINTS[50], budget=0.5
    ),
}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved, without drawing them."""
    figures: list[Figure] = []
    monkeypatch.setattr(pictures, "save", lambda figure, _path: figures.append(figure))
    return figures


def test_table_of_known_rows() -> None:
    lines = table([ORIGINAL, HALF]).split("\n")
    assert lines[0].split() == ["Before", *["Latency,", "ms"] * 2]
    assert re.split(" {2,}", lines[1]) == [
        *("Network", "Accuracy", "distil.", "MACs, M", "Params, M", "File, MiB", "batch 1", "batch 100")
    ]
    assert re.split(" {2,}", lines[3]) == ["original", "93.60 %", "-", "313.2", "14.99", "57.22", "4.00", "150.0"]
    assert re.split(" {2,}", lines[4]) == [
        *(
            "QMIX",
            "92.91 %",
            "73.10 %",
            "156.6 (50.0 %)",
            "7.00 (46.7 %)",
            "28.61 (50.0 %)",
            "3.00 (75 %)",
            "75.0 (50 %)",
        )
    ]
    assert "MACs: multiply-accumulates of convolution and linear layers, one input; FLOPs = 2 x MACs." in lines
    # A number stands below the number it compares with.
    for first, second in (("313.2", "156.6"), ("14.99", " 7.00"), ("57.22", "28.61"), ("150.0", " 75.0")):
        assert lines[3].index(first) == lines[4].index(second)


def test_units_follow_the_original() -> None:
    small = replace(ORIGINAL, macs=40_551_040, params=272_474, file_bytes=1_000_000)
    header, _, first, second = table([small, replace(small, params=2_725, file_bytes=10_000)]).split("\n")[1:5]
    assert ("MACs, M" in header, "Params, k" in header, "File, KiB" in header) == (True, True, True)
    assert first.split()[3:6] == ["40.55", "272.5", "976.6"]
    assert "2.7  (1.0 %)" in second or "2.7 (1.0 %)" in second
    assert re.search(r" MACs +Params +File, KiB ", table([replace(small, macs=999, params=1)]))
    assert "Before" not in table([small])  # no row has an accuracy before distillation


def test_onnx_figures_stand_in_a_block_of_their_own() -> None:
    onnx = {"onnx_bytes": 61_000_000, "onnx_latency_1_ms": 2.0, "onnx_latency_100_ms": 80.0}
    unmeasured = replace(HALF, name="uniform, round-to 1", accuracy=None, **{name: x / 2 for name, x in onnx.items()})
    text = table([replace(ORIGINAL, **onnx), unmeasured])
    first, second, notes = text.split("\n\n")
    assert re.split(" {2,}", first.split("\n")[1]) == [*("Network", "Accuracy", "distil.", "MACs, M", "Params, M")]
    assert re.split(" {2,}", first.split("\n")[4])[:3] == ["uniform, round-to 1", "-", "73.10 %"]
    heads, names, _, original, other = (re.split(" {2,}", line.strip()) for line in second.split("\n"))
    assert heads == ["File, MiB", "File, MiB", "torch, ms", "torch, ms", "ONNX, ms", "ONNX, ms"]
    assert names == ["Network", "weights", "ONNX", *["batch 1", "batch 100"] * 2]
    assert original == ["original", "57.22", "58.17", "4.00", "150.0", "2.00", "80.00"]
    assert other[2:] == ["29.09 (50.0 %)", "3.00 (75 %)", "75.0 (50 %)", "1.00 (50 %)", "40.00 (50 %)"]
    assert "ONNX by onnxruntime" in notes
    assert "--round-to" not in notes
    slower = replace(unmeasured, onnx_latency_100_ms=100.0)
    assert table([replace(ORIGINAL, **onnx), slower]).endswith("--round-to 8 keeps multiples of 8.")
    # Not measured for every network, not shown.
    assert "ONNX" not in table([replace(ORIGINAL, **onnx), HALF])
    assert table([ORIGINAL, replace(HALF, **onnx)]) == table([ORIGINAL, HALF])


figures = st.builds(
    NetworkRow,
    name=st.text("abc -_", min_size=1, max_size=60),
    accuracy=st.none() | st.floats(0, 1),
    macs=st.integers(1, 10**11),
    params=st.integers(1, 10**9),
    file_bytes=st.integers(1, 10**9),
    latency_1_ms=st.floats(0.01, 1e3),
    latency_100_ms=st.floats(0.01, 1e4),
    short_accuracy=st.none() | st.floats(0, 1),
    onnx_bytes=st.none() | st.integers(1, 10**9),
    onnx_latency_1_ms=st.floats(0.01, 1e3),
    onnx_latency_100_ms=st.floats(0.01, 1e4),
)


@settings(deadline=None)
@given(figures, st.lists(st.tuples(st.text("abc ", min_size=1, max_size=50), st.floats(0.05, 1)), max_size=4))
def test_table_fits_and_loses_no_name(original: NetworkRow, others: list[tuple[str, float]]) -> None:
    rows = [original] + [
        replace(
            original, name=name, macs=max(1, int(original.macs * ratio)), latency_1_ms=original.latency_1_ms * ratio
        )
        for name, ratio in others
    ]
    text = table(rows)
    assert max(map(len, text.split("\n"))) <= report.WIDTH
    *blocks, _ = text.split("\n\n")
    assert len(blocks) == 1 + (original.onnx_bytes is not None)
    for block in blocks:
        body = block.split("\n")
        rule = len(body[2])
        assert body[2] == "-" * rule
        assert sum(len(line) == rule for line in body[3:]) == max(1, len(others))  # ratios end at the right edge
        assert all(word[:8] in block for row in rows for word in row.name.split())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accuracy", 93.6),
        ("short_accuracy", -0.1),
        ("macs", 0),
        ("file_bytes", -1),
        ("latency_1_ms", math.nan),
        ("onnx_bytes", 0),
        ("onnx_latency_100_ms", math.inf),
    ],
)
def test_wrong_figures_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} of 'original'"):
        replace(ORIGINAL, **{field: value})


@pytest.mark.parametrize(("before", "after"), [(0, 0), (8, 9), (8, -1)])
def test_layers_cannot_grow(before: int, after: int) -> None:
    with pytest.raises(ValueError, match="layer 'a' cannot keep"):
        LayerRow("a", "conv_0", before, after, 1, 1)


@pytest.mark.parametrize("name", DRAWINGS)
def test_pictures_are_written_whole(name: str, tmp_path: Path) -> None:
    path = tmp_path / "made" / f"{name}.png"
    DRAWINGS[name](path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = image.imread(path)[..., :3]  # [H, W, 3], 0 to 1
    assert min(pixels.shape[:2]) > 600
    assert (pixels[0, 0] == 1).all()
    assert (pixels != 1).any(2).mean() > 0.03
    assert len(np.unique(pixels @ np.array([1, 256, 65536]))) > 50  # colours
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_formats_by_suffix_and_png_without(tmp_path: Path) -> None:
    plot_layers(tmp_path / "layers.svg", LAYERS)
    assert "<svg" in (tmp_path / "layers.svg").read_text()
    plot_layers(tmp_path / "layers", LAYERS[:1])
    assert (tmp_path / "layers").read_bytes()[1:4] == b"PNG"
    assert len(list(tmp_path.iterdir())) == 2


def test_learning_shows_each_series(drawn: list[Figure]) -> None:
    again = [{**EPISODES[5], "return": 7.0}]  # a resumed run plays an episode anew
    plot_learning("x.png", EPISODES + again, references={"uniform": 0.6}, window=4)
    returns, best, epsilon = drawn[0].axes
    dots, mean, greedy = returns.lines
    y = [7.0 if i == 5 else math.sin(i) for i in range(40)]
    assert list(dots.get_ydata()) == y
    assert list(mean.get_xdata()) == list(range(3, 40))
    assert list(mean.get_ydata()) == pytest.approx([np.mean(y[i - 3 : i + 1]) for i in range(3, 40)])
    assert list(greedy.get_xdata()) == [9, 19]
    assert list(best.lines[0].get_ydata()) == pytest.approx([50 + i for i in range(40)])
    assert best.lines[1].get_ydata()[0] == pytest.approx(60)
    assert list(epsilon.lines[0].get_ydata()) == [1 - i / 40 for i in range(40)]
    assert [panel.get_ylabel() for panel in drawn[0].axes] == [
        "Return",
        "Best accuracy on\nreward images, %",
        "Exploration ε",
    ]


def test_learning_leaves_out_panels_without_data(drawn: list[Figure]) -> None:
    plot_learning("x.png", [{"episode": 0, "return": 1.0}])
    assert len(drawn[0].axes) == 1


def test_layers_stand_in_order_with_both_lengths(drawn: list[Figure]) -> None:
    plot_layers("x.png", LAYERS)
    filters, macs = drawn[0].axes
    widths = [bar.get_width() for bar in filters.patches]
    assert widths == [64] * 13 + [64 - i for i in range(13)]
    assert [bar.get_width() for bar in macs.patches][13:] == pytest.approx([1 - i / 100 for i in range(13)])
    assert filters.get_yticklabels()[0].get_text() == "features.0 · conv_0"
    assert filters.get_ylim()[0] > filters.get_ylim()[1]  # the first layer is on top
    assert "94.0 % stay" in macs.get_xlabel()
    assert filters.texts[3].get_text() == "61 of 64"


@pytest.mark.parametrize("count", [1, 13, 57])
def test_layer_names_do_not_overlap(count: int, drawn: list[Figure]) -> None:
    plot_layers("x.png", [LayerRow(f"layer.{i}.conv", f"conv_{i}", 64, 32, 10, 5) for i in range(count)])
    drawn[0].canvas.draw()
    boxes = [label.get_window_extent() for label in drawn[0].axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))


def test_plans_at_a_budget_fill_the_picture(drawn: list[Figure]) -> None:
    plot_tradeoff("x.png", POINTS, (1.0, 0.9), POINTS[-1], POINTS[0], budget=0.5)
    axes = drawn[0].axes[0]
    low, high = axes.get_xlim()
    assert low < 49.41 < 50 < high
    assert high - low < 1
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["original: 90.0 % (at 100 % of MACs)", "winner: 59.5 %", "uniform: 30.0 %", "budget: 50 %"]
    assert list(axes.collections[0].get_array()) == list(range(1, 61))  # colour is the order


@pytest.mark.parametrize(
    ("original", "winner", "uniform", "names"),
    [
        ((0.9, 0.9), (0.5, 0.7), (0.5, 0.7), ["original", "winner = uniform"]),
        ((0.9, 0.9), (0.9, 0.9), (0.5, 0.7), ["original = winner", "uniform"]),
        ((0.9, 0.9), (0.9, 0.9), (0.9, 0.9), ["original = winner = uniform"]),
        ((0.9, 0.9), None, None, ["original"]),
    ],
)
def test_marks_in_one_place_are_one_mark_with_all_names(
    original: tuple[float, float], winner: Any, uniform: Any, names: list[str], drawn: list[Figure]
) -> None:
    plot_tradeoff("x.png", [(0.5, 0.7), (0.8, 0.8)], original, winner, uniform)
    axes = drawn[0].axes[0]
    assert [text.get_text().split(":")[0] for text in axes.get_legend().get_texts()] == names
    assert len(axes.collections) == 1 + len(names)


@pytest.mark.parametrize("uniform", [(0.45, 0.7), (0.45, 0.701), (0.4501, 0.7)])
def test_the_winner_is_seen_whatever_lies_there(uniform: tuple[float, float], tmp_path: Path) -> None:
    def orange(*more: Any) -> int:
        plot_tradeoff(tmp_path / "x.png", [(0.4, 0.5), (0.5, 0.9)], (1.0, 0.95), *more)
        pixels = image.imread(tmp_path / "x.png")[..., :3]
        return int((np.abs(pixels - np.array(to_rgb(drawing.ORANGE))).max(-1) < 0.02).sum())

    assert orange() == 0
    alone, together = orange((0.45, 0.7)), orange((0.45, 0.7), uniform)
    assert alone > 300
    assert together == pytest.approx(alone, rel=0.1)


def test_free_plans_show_the_original_as_a_point(drawn: list[Figure]) -> None:
    plot_tradeoff("x.png", [(0.3, 0.5), (0.9, 0.85)], (1.0, 0.9))
    axes = drawn[0].axes[0]
    assert axes.get_xlim()[1] > 100
    assert axes.collections[1].get_offsets().tolist() == [[100, 90]]


def test_a_single_plan_still_has_a_range(drawn: list[Figure]) -> None:
    plot_tradeoff("x.png", [(0.4, 0.5)], (1.0, 0.9))
    low, high = drawn[0].axes[0].get_xlim()
    assert (low + high) / 2 == pytest.approx(40)
    assert high - low >= 0.5


@pytest.mark.parametrize("name", DRAWINGS)
def test_nothing_is_wider_than_the_picture(name: str, drawn: list[Figure]) -> None:
    DRAWINGS[name](Path("x.png"))
    figure = drawn[0]
    figure.canvas.draw()
    box = figure.get_tightbbox()  # inches
    width, height = figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


@pytest.mark.parametrize("picture", ["learning", "tradeoff"])
@pytest.mark.parametrize(("lost", "left_out"), [(3, True), (8, False)])
def test_a_few_hopeless_points_do_not_squeeze_the_rest(
    picture: str, lost: int, left_out: bool, drawn: list[Figure]
) -> None:
    accuracies = [0.1] * lost + [0.8 + i / 1000 for i in range(100 - lost)]
    if picture == "tradeoff":
        plot_tradeoff("x.png", [(0.5, accuracy) for accuracy in accuracies], (1.0, 0.92), budget=0.5)
        told, lowest = "10.0 %", 10.0
    else:
        plot_learning("x.png", [{"episode": i, "return": accuracies[i]} for i in range(100)], window=100)
        told, lowest = "0.1", 0.1
    axes = drawn[0].axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert bool(axes.get_ylim()[0] > lowest) == left_out
    assert (f"{lost} further down, to {told}" in labels) == left_out
    if left_out:
        marks = next(line for line in axes.lines if line.get_marker() == "v")
        assert len(marks.get_xdata()) == lost
        assert min(marks.get_ydata()) > axes.get_ylim()[0]


def test_what_is_marked_stays_in_the_picture(drawn: list[Figure]) -> None:
    points = [(0.5, 0.1)] + [(0.5, 0.8 + i / 1000) for i in range(99)]
    plot_tradeoff("x.png", points, (1.0, 0.92), uniform=(0.5, 0.1), budget=0.5)
    rows = [{"episode": i, "return": accuracy} for i, (_, accuracy) in enumerate(points)]
    plot_learning("x.png", [*rows, {"episode": 50, "eval/return": 0.1}])
    for figure, value in zip(drawn, (10, 0.1), strict=True):
        assert figure.axes[0].get_ylim()[0] < value


def test_the_cheap_end_of_a_front_is_not_left_out(drawn: list[Figure]) -> None:
    plot_tradeoff("x.png", [(0.1, 0.3)] + [(0.3 + i / 100, 0.88 + i / 2000) for i in range(60)], (1.0, 0.92))
    assert drawn[0].axes[0].get_ylim()[0] < 30


@pytest.mark.filterwarnings("error")
def test_equal_points_are_not_where_the_lost_one_is_marked(drawn: list[Figure]) -> None:
    plot_tradeoff("x.png", [(0.5, 0.4)] + [(0.5, 0.95)] * 39, (1.0, 0.95), budget=0.5)
    axes = drawn[0].axes[0]
    (marks,) = (line for line in axes.lines if line.get_marker() == "v")
    assert axes.get_ylim()[0] < marks.get_ydata()[0] < 95 - 0.1 < 95 < axes.get_ylim()[1]


def test_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="at least one network"):
        table([])
    with pytest.raises(ValueError, match="no row has"):
        plot_learning("x.png", [{"episode": 3, "eval/return": 1.0}])
    with pytest.raises(ValueError, match="layers is empty"):
        plot_layers("x.png", [])
    with pytest.raises(ValueError, match="points is empty"):
        plot_tradeoff("x.png", [], (1.0, 0.9))


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_missing_matplotlib_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.ticker"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install -e \"\.\[train\]\""):
        DRAWINGS[name](tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


SETTINGS = """
import sys
import prune_env.reporting.plots, prune_env.game.render
assert "matplotlib" not in sys.modules, "imported at import time"
import matplotlib
state = lambda: {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams}
before = state()
from tests.reporting.test_report import DRAWINGS
from tests.game.test_render import ROWS, TOTALS
for draw in DRAWINGS.values():
    draw(prune_env.reporting.plots.Path(sys.argv[1]) / "x.png")
prune_env.game.render.rgb_array(ROWS, *TOTALS)
assert state() == before, "settings changed"
assert "matplotlib.pyplot" not in sys.modules, "pyplot imported"
"""


def test_settings_backend_and_pyplot_are_left_alone(tmp_path: Path) -> None:
    """In a process of its own, as other tests may have imported pyplot."""
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", SETTINGS, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
