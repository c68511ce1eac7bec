"""Write a run's report beside its results."""

import csv
import json
from pathlib import Path

from monoeval.files import atomic
from monoeval.report.figures import figures
from monoeval.report.html import html
from monoeval.report.markdown import markdown
from monoeval.report.model import Summary
from monoeval.report.summary import summarise
from monoeval.suite.ledger import Row


def write(folder: Path, summary: Summary | None = None) -> list[Path]:
    """Write report.html, report.md, report.csv and figures/*.svg into the run folder; returns their paths.

    Figures of an earlier report that no longer exist are removed. Raises UsageError where `folder` is no run,
    MonoevalError where something cannot be read or written.
    """
    summary = summary or summarise(folder)
    drawn = figures(summary)
    texts = {f"figures/{name}.svg": svg for name, svg in drawn.items()}
    texts["report.md"] = markdown(summary, list(texts))
    texts["report.html"] = html(summary, drawn)
    for name, text in texts.items():
        with atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    with atomic(folder / "report.csv") as temporary:
        _csv(temporary, summary.rows)
    for old in (folder / "figures").glob("*.svg"):
        if old.stem not in drawn:
            old.unlink()
    return [folder / name for name in (*texts, "report.csv")]


def _csv(path: Path, rows: tuple[Row, ...]) -> None:
    """The long table, one line a score, with the fields of `results.jsonl`."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(Row.model_fields)
        for row in rows:
            values = row.model_dump(mode="json").values()
            table.writerow(json.dumps(v) if isinstance(v, dict | list) else v for v in values)
