"""Write a run's report beside its results."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from monoeval.files import atomic
from monoeval.report.figures import figures
from monoeval.report.html import html
from monoeval.report.markdown import markdown
from monoeval.report.model import Summary
from monoeval.report.summary import summarise
from monoeval.suite.ledger import Row


def write(folder: Path, summary: Summary | None = None) -> list[Path]:
    """Write report.html, report.md, report.csv, summary.csv and figures/*.svg into the run folder.

    Returns their paths. Figures of an earlier report that no longer exist are removed. Raises UsageError
    where `folder` is no run, MonoevalError where something cannot be read or written.
    """
    summary = summary or summarise(folder)
    drawn = figures(summary)
    texts = {f"figures/{name}.svg": svg for name, svg in drawn.items()}
    texts["report.md"] = markdown(summary, list(texts))
    texts["report.html"] = html(summary, drawn)
    for name, text in texts.items():
        with atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    for name, lines in (("report.csv", _scores(summary.rows)), ("summary.csv", _measures(summary))):
        with (
            atomic(folder / name) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as stream,
        ):
            csv.writer(stream).writerows(lines)
    for old in (folder / "figures").glob("*.svg"):
        if old.stem not in drawn:
            old.unlink()
    return [folder / name for name in (*texts, "report.csv", "summary.csv")]


def _scores(rows: tuple[Row, ...]) -> Iterator[Iterable[object]]:
    """The long table, one line a score, with the fields of `results.jsonl`."""
    yield Row.model_fields
    for row in rows:
        values = row.model_dump(mode="json").values()
        yield [json.dumps(v) if isinstance(v, dict | list) else v for v in values]


def _measures(summary: Summary) -> Iterator[Iterable[object]]:
    """The summary measures, one line each; shares, with the ends of their 95 % intervals."""
    yield ("table", "arm", "measure", "value", "low", "high")
    for table in summary.tables:
        for measure in table.measures:
            for arm, value in measure.values.items():
                yield (table.title, arm, measure.name, value.mean, value.low, value.high)
