"""Plots: they show the data, nothing overlaps or is cut off, and matplotlib's global state does not change."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from prune_env.common.figure_style import ORANGE
from prune_env.reporting.plots import LayerRow, plot_layers, plot_learning, plot_tradeoff

Point = tuple[float, float]

EPISODES: list[dict[str, Any]] = [
    {"episode": i, "return": math.sin(i), "epsilon": 1 - i / 40, "best_accuracy": 0.5 + i / 100} for i in range(40)
] + [{"episode": i, "eval/return": 0.5} for i in (9, 19)]
LAYERS = [LayerRow(f"features.{i}", f"conv_{i}", 64, 64 - i, 10**6, 10**6 - i * 10**4) for i in range(13)]
POINTS: list[Point] = [(0.5 - i / 10_000, 0.3 + i / 200) for i in range(60)]
MARKED = {"original": (1.0, 0.9), "winner": POINTS[-1], "uniform": POINTS[0]}
PLOTS: dict[str, Callable[[Path], None]] = {
    "learning": lambda path: plot_learning(path, EPISODES, references={"uniform": 0.6}),
    "layers": lambda path: plot_layers(path, LAYERS),
    "tradeoff": lambda path: plot_tradeoff(path, POINTS, MARKED, budget=0.5),
    "tradeoff with a plan far below": lambda path: plot_tradeoff(
        path, [(0.5, 0), *POINTS[50:]], MARKED | {"uniform": POINTS[50]}, budget=0.5
    ),
}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that would be saved; they are not drawn."""
    saved: list[Figure] = []
    monkeypatch.setattr("prune_env.reporting.plots.save_figure", lambda figure, _path: saved.append(figure))
    return saved


@pytest.mark.parametrize(("before", "after"), [(0, 0), (8, 9), (8, -1)])
def test_layers_cannot_grow(before: int, after: int) -> None:
    with pytest.raises(ValueError, match=rf"'a'.*{after} .*{before}"):
        LayerRow("a", "conv_0", before, after, 1, 1)


@pytest.mark.parametrize("name", PLOTS)
def test_figures_are_written_completely(name: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "figure.png"
    PLOTS[name](path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = image.imread(path)[..., :3]  # [H, W, 3], 0 to 1
    assert min(pixels.shape[:2]) > 600
    assert (pixels[0, 0] == 1).all()
    assert (pixels != 1).any(2).mean() > 0.03
    assert len(np.unique(pixels @ np.array([1, 256, 65536]))) > 50, "too few colours"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_suffix_decides_the_format(tmp_path: Path) -> None:
    plot_layers(tmp_path / "layers.svg", LAYERS)
    assert "<svg" in (tmp_path / "layers.svg").read_text()
    plot_layers(tmp_path / "layers", LAYERS[:1])
    assert (tmp_path / "layers").read_bytes()[1:4] == b"PNG"
    assert len(list(tmp_path.iterdir())) == 2


def test_learning_shows_each_series(figures: list[Figure]) -> None:
    again = [{**EPISODES[5], "return": 7.0}]  # a resumed run repeats an episode
    plot_learning("x.png", EPISODES + again, references={"uniform": 0.6}, window=4)
    returns, best, epsilon = figures[0].axes
    dots, mean, greedy = returns.lines
    y = [7.0 if i == 5 else math.sin(i) for i in range(40)]
    assert list(dots.get_ydata()) == y
    assert list(mean.get_xdata()) == list(range(3, 40))
    assert list(mean.get_ydata()) == pytest.approx([np.mean(y[i - 3 : i + 1]) for i in range(3, 40)])
    assert list(greedy.get_xdata()) == [9, 19]
    assert list(best.lines[0].get_ydata()) == pytest.approx([50 + i for i in range(40)])
    assert best.lines[1].get_ydata()[0] == pytest.approx(60)
    assert list(epsilon.lines[0].get_ydata()) == [1 - i / 40 for i in range(40)]
    assert [panel.get_ylabel() for panel in figures[0].axes] == [
        "Return",
        "Best accuracy on\nreward images, %",
        "Exploration ε",
    ]


def test_learning_has_no_panels_without_data(figures: list[Figure]) -> None:
    plot_learning("x.png", [{"episode": 0, "return": 1.0}])
    assert len(figures[0].axes) == 1


def test_layers_stand_in_order_with_both_bars(figures: list[Figure]) -> None:
    plot_layers("x.png", LAYERS)
    filters, macs = figures[0].axes
    widths = [bar.get_width() for bar in filters.patches]
    assert widths == [64] * 13 + [64 - i for i in range(13)]
    assert [bar.get_width() for bar in macs.patches][13:] == pytest.approx([1 - i / 100 for i in range(13)])
    assert filters.get_yticklabels()[0].get_text() == "features.0 · conv_0"
    assert filters.get_ylim()[0] > filters.get_ylim()[1]  # the first layer is on top
    assert "94.0 % stay" in macs.get_xlabel()
    assert filters.texts[3].get_text() == "61 of 64"


@pytest.mark.parametrize("count", [1, 13, 57])
def test_layer_names_do_not_overlap(count: int, figures: list[Figure]) -> None:
    plot_layers("x.png", [LayerRow(f"layer.{i}.conv", f"conv_{i}", 64, 32, 10, 5) for i in range(count)])
    figures[0].canvas.draw()
    boxes = [label.get_window_extent() for label in figures[0].axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))


def test_plans_at_a_budget_fill_the_plot(figures: list[Figure]) -> None:
    plot_tradeoff("x.png", POINTS, MARKED, budget=0.5)
    axes = figures[0].axes[0]
    low, high = axes.get_xlim()
    assert low < 49.41 < 50 < high
    assert high - low < 1
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["original: 90.0 % (at 100 % of MACs)", "winner: 59.5 %", "uniform: 30.0 %", "budget: 50 %"]
    assert list(axes.collections[0].get_array()) == list(range(1, 61)), "colours show the order"


@pytest.mark.parametrize(
    ("others", "names"),
    [
        ({"winner": (0.5, 0.7), "uniform": (0.5, 0.7)}, ["original", "winner = uniform"]),
        ({"winner": (0.9, 0.9), "uniform": (0.5, 0.7)}, ["original = winner", "uniform"]),
        ({"winner": (0.9, 0.9), "uniform": (0.9, 0.9)}, ["original = winner = uniform"]),
        ({"uniform": (0.5, 0.7)}, ["original", "uniform"]),
        ({}, ["original"]),
    ],
)
def test_networks_at_one_point_share_a_mark_with_all_names(
    others: dict[str, Point], names: list[str], figures: list[Figure]
) -> None:
    plot_tradeoff("x.png", [(0.5, 0.7), (0.8, 0.8)], {"original": (0.9, 0.9), **others})
    axes = figures[0].axes[0]
    assert [text.get_text().split(":")[0] for text in axes.get_legend().get_texts()] == names
    assert len(axes.collections) == 1 + len(names)


@pytest.mark.parametrize("uniform", [(0.45, 0.7), (0.45, 0.701), (0.4501, 0.7)])
def test_the_winner_is_visible_although_another_network_is_near(uniform: Point, tmp_path: Path) -> None:
    def orange_pixels(**others: Point) -> int:
        plot_tradeoff(tmp_path / "x.png", [(0.4, 0.5), (0.5, 0.9)], {"original": (1.0, 0.95), **others})
        pixels = image.imread(tmp_path / "x.png")[..., :3]
        return int((np.abs(pixels - np.array(to_rgb(ORANGE))).max(-1) < 0.02).sum())

    assert orange_pixels() == 0
    alone, together = orange_pixels(winner=(0.45, 0.7)), orange_pixels(winner=(0.45, 0.7), uniform=uniform)
    assert alone > 300
    assert together == pytest.approx(alone, rel=0.1)


def test_without_a_budget_the_original_is_a_point(figures: list[Figure]) -> None:
    plot_tradeoff("x.png", [(0.3, 0.5), (0.9, 0.85)], {"original": (1.0, 0.9)})
    axes = figures[0].axes[0]
    assert axes.get_xlim()[1] > 100
    assert axes.collections[1].get_offsets().tolist() == [[100, 90]]


def test_the_range_of_a_single_plan_is_not_empty(figures: list[Figure]) -> None:
    plot_tradeoff("x.png", [(0.4, 0.5)], {"original": (1.0, 0.9)})
    low, high = figures[0].axes[0].get_xlim()
    assert (low + high) / 2 == pytest.approx(40)
    assert high - low >= 0.5


@pytest.mark.parametrize("name", PLOTS)
def test_nothing_is_cut_off_at_the_edges(name: str, figures: list[Figure]) -> None:
    PLOTS[name](Path("x.png"))
    figure = figures[0]
    figure.canvas.draw()
    box = figure.get_tightbbox()  # inches
    width, height = figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


@pytest.mark.parametrize("plot", ["learning", "tradeoff"])
@pytest.mark.parametrize(("low", "omitted"), [(3, True), (8, False)])
def test_a_few_points_far_below_do_not_squeeze_the_rest(
    plot: str, low: int, omitted: bool, figures: list[Figure]
) -> None:
    accuracies = [0.1] * low + [0.8 + i / 1000 for i in range(100 - low)]
    if plot == "tradeoff":
        plot_tradeoff("x.png", [(0.5, accuracy) for accuracy in accuracies], {"original": (1.0, 0.92)}, budget=0.5)
        text, lowest = "10.0 %", 10.0
    else:
        plot_learning("x.png", [{"episode": i, "return": accuracies[i]} for i in range(100)], window=100)
        text, lowest = "0.1", 0.1
    axes = figures[0].axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert bool(axes.get_ylim()[0] > lowest) == omitted
    assert (f"{low} further down, to {text}" in labels) == omitted
    if omitted:
        marks = next(line for line in axes.lines if line.get_marker() == "v")
        assert len(marks.get_xdata()) == low
        assert min(marks.get_ydata()) > axes.get_ylim()[0]


def test_marked_networks_stay_in_the_plot(figures: list[Figure]) -> None:
    points = [(0.5, 0.1)] + [(0.5, 0.8 + i / 1000) for i in range(99)]
    plot_tradeoff("x.png", points, {"original": (1.0, 0.92), "uniform": (0.5, 0.1)}, budget=0.5)
    rows = [{"episode": i, "return": accuracy} for i, (_, accuracy) in enumerate(points)]
    plot_learning("x.png", [*rows, {"episode": 50, "eval/return": 0.1}])
    for figure, value in zip(figures, (10, 0.1), strict=True):
        assert figure.axes[0].get_ylim()[0] < value


def test_without_a_budget_no_plan_is_omitted(figures: list[Figure]) -> None:
    """A low accuracy may be the price of few MACs."""
    points = [(0.1, 0.3)] + [(0.3 + i / 100, 0.88 + i / 2000) for i in range(60)]
    plot_tradeoff("x.png", points, {"original": (1.0, 0.92)})
    assert figures[0].axes[0].get_ylim()[0] < 30


@pytest.mark.filterwarnings("error")
def test_the_mark_of_an_omitted_plan_lies_below_all_others_even_if_they_are_equal(figures: list[Figure]) -> None:
    plot_tradeoff("x.png", [(0.5, 0.4)] + [(0.5, 0.95)] * 39, {"original": (1.0, 0.95)}, budget=0.5)
    axes = figures[0].axes[0]
    (marks,) = (line for line in axes.lines if line.get_marker() == "v")
    assert axes.get_ylim()[0] < marks.get_ydata()[0] < 95 - 0.1 < 95 < axes.get_ylim()[1]


def test_there_must_be_data() -> None:
    with pytest.raises(ValueError, match="return"):
        plot_learning("x.png", [{"episode": 3, "eval/return": 1.0}])
    with pytest.raises(ValueError, match="layers"):
        plot_layers("x.png", [])
    with pytest.raises(ValueError, match="points"):
        plot_tradeoff("x.png", [], {"original": (1.0, 0.9)})


@pytest.mark.parametrize("name", PLOTS)
def test_a_missing_matplotlib_is_reported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.ticker"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"matplotlib.*pip install"):
        PLOTS[name](tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


SCRIPT = """
import sys
import prune_env.reporting.plots, prune_env.game.render
assert "matplotlib" not in sys.modules, "matplotlib was imported too early"
import matplotlib
state = lambda: {key: dict.__getitem__(matplotlib.rcParams, key) for key in matplotlib.rcParams}
before = state()
sys.path[:0] = ["tests/reporting", "tests/game", "tests"]
from test_plots import PLOTS
from test_render import ROWS, TOTALS
for draw in PLOTS.values():
    draw(prune_env.reporting.plots.Path(sys.argv[1]) / "x.png")
prune_env.game.render.rgb_array(ROWS, TOTALS)
assert state() == before, "the global settings changed"
assert "matplotlib.pyplot" not in sys.modules, "pyplot was imported"
"""


def test_neither_global_settings_nor_pyplot_are_used(tmp_path: Path) -> None:
    """In another process, because other tests may have imported pyplot."""
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
