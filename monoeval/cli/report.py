"""`monoeval report RUN`: write and show a run's report again, from its ledger alone."""

from pathlib import Path
from typing import Annotated

import typer

from monoeval.cli import options as o
from monoeval.cli.outcome import show_report


def report(
    run: Annotated[Path, typer.Argument(help="A run folder, for example runs/quickstart-digits-3fa91c.")],
    as_json: o.AsJson = False,
    debug: o.Debug = False,  # noqa: ARG001 (read by main)
) -> None:
    """Recompute a run's report from its ledger, without images or torch."""
    from monoeval.errors import UsageError
    from monoeval.report import write

    if not (run / "results.jsonl").is_file():
        here = sorted(p.parent for p in run.glob("*/results.jsonl")) or sorted(
            p.parent for p in Path("runs").glob("*/results.jsonl")
        )
        advice = f"there is {here[-1]}." if here else "`monoeval suite` makes one."
        raise UsageError(f"{run} is not a run folder (it has no results.jsonl): {advice}")
    write(run)
    show_report(run, as_json)
