"""The report as GitHub-flavoured Markdown: every table in full."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from monoeval.report import wording
from monoeval.report.model import Summary, Table
from monoeval.report.wording import capital


def markdown(summary: Summary, figures: Sequence[str] = ()) -> str:
    """The whole report; `figures` are paths beside it, each named `differences` or after its table's slug."""
    shown = {path.rsplit("/", 1)[-1].removesuffix(".svg"): path for path in figures}
    parts = [f"# {_escape(summary.name)}", f"{_escape(wording.about(summary))}."]
    if summary.note:
        parts.append("\n".join(f"> {_escape(line)}" for line in summary.note.strip().splitlines()))
    if summary.claims:
        parts.append("## Verdicts")
        for arm, said, found in wording.by_arm(summary):
            parts.append(f"**{_escape(arm)}**" + (f" ({_escape('; '.join(said))})" if said else ""))
            verdicts = [f"- {_escape(t.title)}: {_verdict(c.kind, wording.headline(c, said))}" for t, c in found]
            parts.append("\n".join(verdicts))
    if "differences" in shown:
        parts.append(f"![Gain over the baseline in each scenario]({shown['differences']})")
    for table in summary.tables:
        parts += _scenario(table, shown.get(table.slug))
    if summary.adapters:
        headings, lines = wording.adapter_table(summary)
        parts += ["## Adapters and codes", _escape(wording.about_measures(summary)), _grid(headings, lines)]
    parts += ["## Notes", "\n".join(f"- {_escape(note)}" for note in (*summary.notes, *summary.details))]
    parts += ["## Protocols", "\n".join(f"- `{p}`" for table in summary.tables for p in table.protocols)]
    environment = [f"- {_escape(name)}: {_escape(value)}" for name, value in wording.flat(summary.environment)]
    parts += ["## Environment", "\n".join(environment)]
    parts += ["## Recipe", _fence(summary.recipe)]
    return "\n\n".join(parts) + "\n"


def _scenario(table: Table, figure: str | None) -> Iterable[str]:
    footnotes = wording.Footnotes()
    yield f"## {_escape(table.title)}"
    yield f"{_escape(wording.lead(table))}."
    if figure:
        yield f"![{capital(table.quantity)} of every arm: {_escape(table.title)}]({figure})"
    headings = [wording.heading(column) for column in table.columns]
    cells = [[arm, *(wording.accuracy(c, footnotes) for c in row)] for arm, row in table.cells.items()]
    yield f"{capital(table.quantity)} in per cent, with the distance to the farther end of its 95 % interval:"
    yield _grid(["arm", *headings], cells)
    headings_of, lines_of = wording.summary_table(table)
    if lines_of:
        yield f"{_escape(wording.ABOUT_SUMMARY)}"
        yield _grid(headings_of, lines_of)
    if table.comparisons:
        yield f"Paired differences in points, with 95 % intervals ({_escape(table.primary_label)}):"
        lines = []
        for comparison in table.comparisons:
            for against, found, _ in wording.differences(comparison):
                lines.append([comparison.arm, against, *wording.difference_cells(found, footnotes)])
        yield _grid(["arm", "against", *wording.DIFFERENCE_HEADINGS], lines)
        if len(table.columns) > 1:
            yield "The same for each column:"
            by_column = [
                [comparison.arm, against, *(wording.difference(cell, footnotes) for cell in found.cells)]
                for comparison in table.comparisons
                for against, found, _ in wording.differences(comparison)
            ]
            yield _grid(["arm", "against", *headings], by_column)
    remarks = [f"{mark} {_escape(text)}" for mark, text in footnotes]
    if remarks:
        yield "<br>\n".join(remarks)
    verdicts = [
        f"- {_verdict(f'{c.arm}: {c.kind}', wording.headline(c))}" for c in table.comparisons if c.is_claim
    ]
    if verdicts:
        yield "\n".join(verdicts)


def _grid(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in headings[1:])]
    rows = [[_escape(h) for h in headings], rule, *([_escape(cell) for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _verdict(kind: str, rest: str) -> str:
    """Its kind in bold and what follows, which begins with a space or a full stop."""
    space = " " if rest.startswith(" ") else ""
    return f"**{_escape(kind)}**{space}{_escape(rest)}"


def _escape(text: Any) -> str:
    """Text that Markdown shows as it is: no markup, no HTML, one line."""
    plain = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", plain).replace("&", "&amp;").replace("<", "&lt;")


def _fence(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"
