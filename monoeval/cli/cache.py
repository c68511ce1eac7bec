"""`monoeval cache`: what is kept between runs, and how to be rid of it."""

import json
import sys
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
    from monoeval.cache import entries
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
    from monoeval.cache import verify as check

    problems = check()
    for problem in problems:
        err.print(problem, markup=False, soft_wrap=True)
    out.print("All entries are whole." if not problems else f"{len(problems)} damaged parts were removed.")
    if problems:
        raise typer.Exit(1)


@app.command()
def clear(
    kind: Annotated[
        str | None, typer.Argument(help="A kind of entry, as `cache ls` shows it; all by default.")
    ] = None,
    max_cache: Annotated[
        float | None, typer.Option(help="Keep this many gigabytes: what was used longest ago goes first.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; nor is a script asked.")] = False,
) -> None:
    """Delete what is kept, or only what was used longest ago; runs and reports stay."""
    from monoeval.cache import clear as delete
    from monoeval.cache import entries, trim
    from monoeval.errors import UsageError

    if max_cache is None:
        trained = sum(
            entry.kind in ("pretrained", "adapters") for entry in entries() if kind in (None, entry.kind)
        )
        if trained and not yes and sys.stdin.isatty():
            typer.confirm(f"Delete {trained} networks and adapters that were trained here, too?", abort=True)
        freed = delete(kind)
    elif kind is not None or max_cache < 0:
        raise UsageError("--max-cache is a number of gigabytes for the whole cache: give it without a kind.")
    else:
        freed = trim(int(max_cache * 1e9))
    out.print(f"{decimal(freed)} freed.")
