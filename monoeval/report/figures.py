"""Figures as SVG whose bytes depend on the numbers alone. Arms differ by marker as well as by colour."""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from monoeval.report.model import MEAN, Cell, Curve, Summary, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1e24"
"""Colour of text, axes and the first arm; `html` replaces it by the page's own text colour."""
PAPER = "#fffffe"
"""Background of the files, which a dark page would swallow without one; `html` takes it out."""
_GRID = "#8a919e"
# Okabe and Ito's palette for colour-blind readers, without its yellow, which vanishes on white.
_COLOURS = (INK, "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "oD^sPXv*<>"
_BANDS = 5
"""More bands than this hide one another."""
_WIDTH = 7.2  # inches: 700 px on a page, where 10 pt text is 13 px high


def figures(summary: Summary) -> dict[str, str]:
    """Name → SVG text: `differences`, and one figure for each table that has a score."""
    made = {}
    for name, table in [("differences", None), *((table.slug, table) for table in summary.tables)]:
        with _style(name):
            figure = _scenario(summary, table) if table else _differences(summary)
            if figure is not None:
                made[name] = _svg(figure, name)
    return made


@contextmanager
def _style(salt: str) -> Iterator[None]:
    """Our settings for the time of one figure, whatever the user's matplotlibrc says."""
    import matplotlib

    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    fonts.setLevel(logging.ERROR)  # SVG text needs no local font
    try:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(
                {
                    "svg.hashsalt": salt, "svg.fonttype": "none", "text.parse_math": False,
                    "font.family": "sans-serif", "font.size": 10, "axes.titlesize": 10.5, "legend.fontsize": 10,
                    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "axes.titlecolor": INK,
                    "xtick.color": INK, "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False,
                    "axes.grid": True, "grid.color": _GRID, "grid.alpha": 0.3, "grid.linewidth": 0.6,
                    "axes.axisbelow": True, "legend.frameon": False, "figure.facecolor": PAPER,
                    "axes.facecolor": "none", "savefig.facecolor": PAPER,
                }
            )  # fmt: skip
            yield
    finally:
        fonts.setLevel(level)


def _figure(arms: Sequence[str], height: float, **grid: Any) -> "tuple[Figure, Any]":
    """A figure of `height` inches below its legend, without pyplot, which would look for a display."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height + 0.22 * -(-len(arms) // _legend_columns(arms))), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(squeeze=False, **grid)


def _svg(figure: "Figure", title: str) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    return stream.getvalue()


def _look(summary: Summary) -> dict[str, dict[str, Any]]:
    """Arm → how it is drawn: colour and marker by its place; dashed and hollow where it is only a control."""
    controls = {c.arm for table in summary.tables for c in table.comparisons if not c.is_claim}
    return {
        arm: {
            "color": _COLOURS[i % len(_COLOURS)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": "--" if arm in controls else "-",
            "markerfacecolor": "none" if arm in controls else _COLOURS[i % len(_COLOURS)],
            "markersize": 6.5,
            "linewidth": 1.6,
        }
        for i, arm in enumerate(summary.arms)
    }


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside upper left", ncols=_legend_columns(list(unique)))


def _legend_columns(arms: Sequence[str]) -> int:
    longest = max(map(len, arms), default=1)
    return max(1, min(len(arms), 84 // (longest + 7)))


def _scenario(summary: Summary, table: Table) -> "Figure | None":
    if not any(cell.interval for cells in table.cells.values() for cell in cells):
        return None
    lines: dict[str, list[Curve]] = {}
    for curve in table.curves:
        lines.setdefault(curve.series, []).append(curve)
    if table.scenario == "corruption":
        return _corruption(summary, table, lines.get(MEAN) or next(iter(lines.values())))
    if table.scenario in {"ood", "subpopulation"} or all(len(c.levels) == 1 for c in table.curves):
        figure, axes = _figure(list(table.cells), _height(len(table.columns), len(table.cells)))
        _dots(summary, table, list(range(len(table.columns))), axes[0, 0])
        _legend(figure, axes[0, 0])
        return figure
    columns = min(2, len(lines))
    rows = -(-len(lines) // columns)
    figure, axes = _figure(list(table.cells), 0.4 + 2.9 * rows, ncols=columns, nrows=rows, sharey=True)
    for place, (series, curves) in zip(axes.flat, lines.items(), strict=False):
        _curves(summary, table, curves, place)
        if len(lines) > 1:
            place.set_title(series, loc="left")
    for place in axes.flat[len(lines) :]:
        place.set_visible(False)
    for row in axes:
        row[0].set_ylabel(f"{table.quantity}, %")
    _legend(figure, axes[0, 0])
    return figure


def _curves(summary: Summary, table: Table, curves: Sequence[Curve], axes: "Axes") -> None:
    """Accuracy against level, with bands for the 95 % intervals of a few arms (the table has those of all)."""
    look = _look(summary)
    bare = {c.arm for c in table.comparisons if not c.is_claim}
    if len(curves) - len(bare) > _BANDS:
        bare = {curve.arm for curve in curves}
    for curve in curves:
        found = [(x, c.interval) for x, c in zip(curve.levels, curve.cells, strict=True) if c.interval is not None]
        x = [level for level, _ in found]
        style = look[curve.arm]
        axes.plot(x, [100 * i.mean for _, i in found], label=curve.arm, **style)
        if curve.arm in bare:
            continue
        low, high = [100 * i.low for _, i in found], [100 * i.high for _, i in found]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.1, linewidth=0)
    levels = sorted({x for curve in curves for x in curve.levels})
    if table.scenario == "few-shot":
        axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.set_xticks(levels, [f"{x:g}" for x in levels])
    axes.set_xlabel(_LEVELS.get(table.scenario, "level"))


_LEVELS = {
    "label-noise": "share of wrong training labels",
    "few-shot": "training images a class (log scale)",
    "input-noise": "noise level",
    "corruption": "severity",
}


def _height(lines: int, arms: int) -> float:
    """Inches for `lines` groups of `arms` dots, with room for the axis below."""
    return 0.6 + lines * (0.2 + _step(lines) * arms)


def _step(lines: int) -> float:
    """Inches between the dots of a group; closer where there are many groups."""
    return 0.15 if lines <= 6 else 0.1


def _shift(number: int, arms: int, lines: int) -> float:
    """Where the dot of arm `number` lies in its group, in units of the distance between groups."""
    return (number - (arms - 1) / 2) * _step(lines) / (0.2 + _step(lines) * arms)


def _dots(summary: Summary, table: Table, columns: Sequence[int], axes: "Axes") -> None:
    """One line a column, one dot with its interval an arm."""
    look = _look(summary)
    cells: Mapping[str, Sequence[Cell]] = table.cells
    for number, (arm, row) in enumerate(cells.items()):
        shift = _shift(number, len(cells), len(columns))
        _interval_dots(axes, arm, look[arm], [row[i] for i in columns], shift)
    axes.set_yticks(range(len(columns)), [table.columns[i].label for i in columns])
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"{table.quantity}, %")


def _interval_dots(
    axes: "Axes", label: str, style: Mapping[str, Any], cells: Sequence[Cell], shift: float
) -> None:
    found = [(y + shift, c.interval) for y, c in enumerate(cells) if c.interval is not None]
    mean = [100 * i.mean for _, i in found]
    reach = [[100 * (i.mean - i.low) for _, i in found], [100 * (i.high - i.mean) for _, i in found]]
    shown = {key: value for key, value in style.items() if key != "linestyle"}
    reach = [[x if x < float("inf") else 0.0 for x in side] for side in reach]
    axes.errorbar(mean, [y for y, _ in found], xerr=reach, label=label, linestyle="none", **shown)


def _corruption(summary: Summary, table: Table, curves: Sequence[Curve]) -> "Figure":
    """The mean curve over severities, and below it each corruption averaged over severities."""
    columns = [i for i, c in enumerate(table.columns) if i != table.primary and any(p.level for p in c.points)]
    columns = columns or [table.primary]
    below = _height(len(columns), len(table.cells))
    figure, axes = _figure(list(table.cells), 3.0 + below, nrows=2, height_ratios=[3.0, below])
    _curves(summary, table, curves, axes[0, 0])
    axes[0, 0].set_title("Mean over corruptions", loc="left")
    axes[0, 0].set_ylabel("accuracy, %")
    _dots(summary, table, columns, axes[1, 0])
    axes[1, 0].set_title("Each corruption, mean over severities", loc="left")
    _legend(figure, axes[0, 0])
    return figure


def _differences(summary: Summary) -> "Figure | None":
    """Gain of every arm over its baseline, for the primary summary of each scenario."""
    tables = [t for t in summary.tables if any(c.baseline.primary.interval for c in t.comparisons)]
    if not tables:
        return None
    arms = [a for a in summary.arms if any(c.arm == a for t in tables for c in t.comparisons)]
    figure, axes = _figure(arms, _height(len(tables), len(arms)))
    look, place = _look(summary), axes[0, 0]
    place.axvline(0, color=INK, linewidth=1)
    for number, arm in enumerate(arms):
        gains = [next((c.baseline.primary for c in t.comparisons if c.arm == arm), Cell(None)) for t in tables]
        shift = _shift(number, len(arms), len(tables))
        _interval_dots(place, arm, look[arm], gains, shift)
    place.set_yticks(range(len(tables)), [t.title for t in tables])
    place.set_ylim(len(tables) - 0.5, -0.5)
    place.grid(False, axis="y")
    place.set_xlabel("gain over the baseline, points (95 % interval)")
    _legend(figure, place)
    return figure
