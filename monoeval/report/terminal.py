"""The report as rich renderables, for a terminal of 100 columns."""

from rich import box
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from monoeval.report import wording
from monoeval.report.model import Comparison, Summary, Table

_NAMES = 34  # characters for the arms' names
_MEASURE = 14  # characters for a summary measure, and the widest word of its heading
_STYLES = {
    "beyond the controls": "green",
    "worse": "red",
    "explained by controls": "yellow",
    "manipulation failed": "yellow",
    "no verdict": "dim",
}


def render(summary: Summary, width: int = 100, everything: str = "in report.md") -> list[RenderableType]:
    """One table a scenario, its paired differences and verdicts, then the adapters and the notes.

    A terminal narrower than 100 columns shows fewer of them: names and differences stay whole. `everything` says
    where the rest is.
    """
    parts: list[RenderableType] = [Text(f"{summary.name}: {wording.about(summary)}", style="bold")]
    if summary.note:
        parts.append(Text(summary.note.strip()))
    for table in summary.tables:
        parts += [Text(), *_scenario(table, width, everything)]
    parts += _overview(summary, width - _NAMES, everything)
    if summary.adapters:
        headings, lines = wording.adapter_table(summary)
        grid = _grid(headings[0])
        for heading in headings[1:5]:
            grid.add_column(heading, justify="right")
        for line in lines:
            grid.add_row(*(Text(cell) for cell in line[:5]))
        parts += [Text(), Text("Adapters and codes", style="bold"), grid]
    return [*parts, Text(), *(_hanging("·", note) for note in summary.notes)]


def _overview(summary: Summary, room: int, everything: str) -> list[RenderableType]:
    """As many of the chosen summary measures as fit, their headings over several lines."""
    headings, lines = wording.overview(summary)
    shown = 1 + max(1, room // (_MEASURE + 2))
    if not lines:
        return []
    grid = _grid(headings[0])
    for heading in headings[1:shown]:
        grid.add_column(Text(heading), justify="right", max_width=_MEASURE, vertical="bottom")
    for line in lines:
        grid.add_row(*(Text(cell) for cell in line[:shown]))
    return [Text(), Text(f"Summary measures, % (all of them are {everything})", style="bold"), grid]


def _grid(first: str) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    grid.add_column(first, overflow="fold", max_width=32, min_width=8)
    return grid


def _hanging(mark: str, text: str | Text, style: str = "dim") -> Grid:
    """A paragraph whose later lines are indented under the first."""
    line = Grid.grid(padding=(0, 1))
    line.add_column(no_wrap=True)
    line.add_column(overflow="fold")
    line.add_row(Text(mark, style=style), text if isinstance(text, Text) else Text(text, style=style))
    return line


def _scenario(table: Table, width: int, everything: str) -> list[RenderableType]:
    footnotes = wording.Footnotes()
    columns = _telling(table, width - _NAMES)
    grid = _grid("arm")
    for i in columns:
        column = table.columns[i]
        grid.add_column(Text(wording.heading(column), style="bold" if i == table.primary else ""), justify="right")
    for arm, cells in table.cells.items():
        grid.add_row(Text(arm), *(Text(wording.accuracy(cells[i], footnotes)) for i in columns))
    parts: list[RenderableType] = [Text(f"{table.title}: {table.quantity}, %", style="bold"), grid]
    hidden = len(table.columns) - len(columns)
    if hidden:
        rest = "1 more is" if hidden == 1 else f"{hidden} more are"
        parts.append(Text(f"The hardest columns are shown; {rest} {everything}.", style="dim"))
    if table.comparisons:
        parts.append(Text(f"Paired differences in points: {table.primary_label}", style="bold"))
        parts.append(_differences(table, footnotes, width))
    parts += [_hanging(mark, text) for mark, text in footnotes]
    parts += [Padding(_verdict(c), (0, 0)) for c in table.comparisons if c.is_claim]
    return parts


def _telling(table: Table, room: int) -> list[int]:
    """Which columns fit: the first, the primary one, and the hardest of the rest."""
    everything = list(range(len(table.columns)))

    def width(columns: list[int]) -> int:
        return sum(max(11, len(wording.heading(table.columns[i]))) + 2 for i in columns)

    if width(everything) <= room:
        return everything

    def difficulty(i: int) -> float:
        found = [cells[i].interval.mean for cells in table.cells.values() if cells[i].interval is not None]  # type: ignore[union-attr]
        return sum(found) / len(found) if found else 1.0

    rest = [i for i in everything[1:] if i != table.primary and not table.columns[i].set_aside]
    chosen = list({0: None, table.primary: None})
    for i in sorted(rest, key=difficulty):
        if width([*chosen, i]) > room:
            break
        chosen.append(i)
    return sorted(chosen)


def _differences(table: Table, footnotes: wording.Footnotes, width: int) -> Grid:
    grid = _grid("arm")
    grid.add_column("against", overflow="fold", max_width=32, min_width=8)
    shown = 4 if width >= 90 else 2 if width >= 70 else 1
    for heading in ("difference [95 %]", "p", "adjusted", "could see")[:shown]:
        grid.add_column(heading, justify="right", no_wrap=True)
    for comparison in table.comparisons:
        for number, (against, found, adjusted) in enumerate(wording.differences(comparison)):
            interval = found.primary.interval
            figures = (
                Text(wording.difference(found.primary, footnotes)),
                wording.p_value(interval.p_value if interval else None),
                wording.p_value(adjusted),
                wording.smallest(interval),
            )
            arm = Text("" if number else comparison.arm)
            grid.add_row(arm, Text(against), *figures[:shown], style="" if comparison.is_claim else "dim")
    return grid


def _verdict(comparison: Comparison) -> Grid:
    text = Text()
    text.append(f"{comparison.arm}: ", style="bold")
    text.append(comparison.kind, style=f"bold {_STYLES.get(comparison.kind, '')}".strip())
    text.append(wording.headline(comparison))
    return _hanging("▸", text, style="bold")
