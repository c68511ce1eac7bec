"""Run or plan a study and show it; what `suite` and `probe` share."""

import json
from pathlib import Path

import typer
from rich.table import Table

from monoeval.cli.console import err, out
from monoeval.suite.recipe import Recipe


def show_run(study: Recipe, *, out: str, device: str, fresh: bool, as_json: bool, debug: bool) -> None:
    """Run `study`, print its tables (or JSON) and where its files are; exit 1 where a trial failed."""
    from monoeval.suite.run import run

    finished = run(study, out=out, device=device, fresh=fresh, debug=debug)
    show_report(finished.folder, as_json)
    if finished.failed:
        kinds = sorted({f"{row.arm}: {row.error or row.status}" for row in finished.failed})
        err.print(
            f"[red]error:[/red] {len(finished.failed)} of {len(finished.rows)} scores failed.", soft_wrap=True
        )
        for line in kinds[:5]:
            err.print("  " + line, markup=False, soft_wrap=True)
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

    for part in render(summary):
        out.print(part)
    out.print(f"\nReport: {folder / 'report.html'}  ·  Markdown: {folder / 'report.md'}  ·  "
              f"Scores: {folder / 'results.jsonl'}", markup=False, soft_wrap=True)  # fmt: skip


def show_plan(study: Recipe, folder: str, as_json: bool) -> None:
    """Print what running `study` would do."""
    from monoeval.suite.forecast import forecast

    expected = forecast(study, Path(folder))
    if as_json:
        out.print_json(json.dumps(expected))
        return
    table = Table(title=f"What would be done in {expected['folder']}", title_justify="left", show_header=False)
    for name, value in expected.items():
        if name != "folder":
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    out.print(table)
