"""The `monoeval` command: its subcommands, and how errors leave it."""

import sys
from typing import Annotated

import typer

from monoeval import __version__
from monoeval.cli import (
    cache,
    compare,
    console,
    doctor,
    finetune,
    inspect,
    listing,
    pretrain,
    probe,
    report,
    suite,
)
from monoeval.errors import MonoevalError, UsageError
from monoeval.training import distributed

app = typer.Typer(
    help="Evaluate the robustness of vision backbones, with and without monosemantic adapters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.out.print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 (its callback has seen it)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Evaluate the robustness of vision backbones, with and without monosemantic adapters."""
    command, count = context.invoked_subcommand, distributed.started()
    if count > 1 and command != "pretrain":
        if not distributed.is_first():
            raise typer.Exit  # the first says it, and is not ended before it has
        raise UsageError(
            f"torchrun started {count} processes, and only `monoeval pretrain` shares its work among several: "
            f"start `monoeval {command}` without torchrun."
        )


app.command()(suite.suite)
app.command()(probe.probe)
app.command()(pretrain.pretrain)
app.command()(finetune.finetune)
app.command()(inspect.inspect)
app.command()(report.report)
app.command()(compare.compare)
app.command("list")(listing.listing)
app.command()(doctor.doctor)
app.add_typer(cache.app, name="cache")


def run(debug: bool) -> None:
    """Run the command that was typed; what goes wrong is one sentence, or a traceback where `debug`."""
    console.install()
    try:
        app(prog_name="monoeval")
    except MonoevalError as error:
        if debug:
            raise
        console.say("error", str(error))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        text = str(error).splitlines()[0] if str(error) else ""
        happened = f"something unexpected happened ({type(error).__name__}: {text})"
        console.say("error", f"{happened}: run again with --debug to see where, and report it.")
        sys.exit(1)
