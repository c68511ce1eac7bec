"""`monoeval compare RUN_A RUN_B`: arms of several runs side by side, from their ledgers alone."""

import json
from pathlib import Path
from typing import Annotated

import typer

from monoeval.cli import options as o
from monoeval.cli.console import out


def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN_A RUN_B [RUN_C]…", help="Run folders; the first is held against.")
    ],
    as_json: o.AsJson = False,
    debug: o.Debug = False,  # noqa: ARG001 (read by main)
) -> None:
    """Compare runs on the conditions and test rows they share, without images or torch.

    Rows are paired by id and seed; unlike protocols are never set side by side.
    """
    from monoeval.report.across import summarise_together
    from monoeval.report.summary import to_json
    from monoeval.report.terminal import render

    summary = summarise_together(runs)
    if as_json:
        out.print_json(json.dumps(to_json(summary)))
        return
    for part in render(summary, out.width, everything="in --json"):
        out.print(part)
