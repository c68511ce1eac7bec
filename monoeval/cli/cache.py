"""`monoeval cache`: what is kept between runs, and how to be rid of it."""

import json
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from monoeval.cli import options as o
from monoeval.cli.console import err, out

app = typer.Typer(help="Features, adapters and pretrained backbones kept between runs.", no_args_is_help=True)


@app.command("ls")
def ls(as_json: o.AsJson = False) -> None:
    """List what is kept, and where."""
    from monoeval.backbones.cache import entries
    from monoeval.files import cache_dir

    found = entries()
    if as_json:
        out.print_json(json.dumps([{**vars(e), "used": e.used.isoformat()} for e in found]))
        return
    table = Table("kind", "key", "what it is", "size", "used", box=None, pad_edge=False)
    for entry in found:
        table.add_row(
            entry.kind, entry.key, escape(entry.what), decimal(entry.bytes), f"{entry.used:%Y-%m-%d %H:%M}"
        )
    if found:
        out.print(table)
    out.print(f"{cache_dir()}: {len(found)} entries, {decimal(sum(e.bytes for e in found))}",
              markup=False, soft_wrap=True)  # fmt: skip


@app.command()
def verify() -> None:
    """Recompute every checksum; damaged parts are removed, and made again when next needed."""
    from monoeval.backbones.cache import verify as check

    problems = check()
    for problem in problems:
        err.print(problem, markup=False, soft_wrap=True)
    out.print("All entries are whole." if not problems else f"{len(problems)} damaged parts were removed.")
    if problems:
        raise typer.Exit(1)


@app.command()
def clear(
    kind: Annotated[
        str | None, typer.Argument(help="features, adapters, backbones or pretrained; all by default.")
    ] = None,
) -> None:
    """Delete what is kept; runs and reports stay."""
    from monoeval.backbones.cache import clear as delete

    out.print(f"{decimal(delete(kind))} freed.")
