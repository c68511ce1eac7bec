"""Run or plan a study and show it; what `suite` and `probe` share."""

import json
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from monoeval.cli.console import err, out, say
from monoeval.suite.recipe import Recipe


def show_run(study: Recipe, *, out: str, device: str, fresh: bool, as_json: bool, debug: bool) -> None:
    """Run `study`, print its tables (or JSON) and where its files are; exit 1 where a trial failed."""
    from monoeval.suite.run import run

    finished = run(study, out=out, device=device, fresh=fresh, debug=debug)
    show_report(finished.folder, as_json)
    if finished.failed:
        reasons: dict[str, list[str]] = {}
        for row in finished.failed:
            reasons.setdefault(row.error or row.status, []).append(row.arm)
        say("error", f"{len(finished.failed)} of {len(finished.rows)} scores failed.")
        for reason, arms in list(reasons.items())[:5]:
            err.print(f"  {', '.join(dict.fromkeys(arms))}: {reason}", markup=False, soft_wrap=True)
        raise typer.Exit(1)


def show_report(folder: Path, as_json: bool) -> None:
    """Print the summary of a run folder, and where its files are."""
    from monoeval.report.summary import summarise

    summary = summarise(folder)
    if as_json:
        from monoeval.report.summary import to_json

        out.print_json(json.dumps(to_json(summary)))
        return
    from monoeval.report.terminal import render

    for part in render(summary, out.width):
        out.print(part)
    out.print(f"\nReport: {folder / 'report.html'}  ·  Markdown: {folder / 'report.md'}  ·  "
              f"Scores: {folder / 'results.jsonl'}", markup=False, soft_wrap=True)  # fmt: skip


def show_plan(study: Recipe, folder: str, as_json: bool, fresh: bool) -> None:
    """Print what running `study` would do."""
    from monoeval.suite.forecast import forecast

    expected = forecast(study, Path(folder), fresh=fresh)
    if as_json:
        out.print_json(json.dumps(expected))
        return
    title = Text(f"What would be done in {expected['folder']}")
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in expected.items():
        if name != "folder":
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    out.print(table)
