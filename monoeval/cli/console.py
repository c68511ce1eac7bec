"""What goes to the terminal: results to stdout, progress and warnings to stderr."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from monoeval import progress
from monoeval.training.distributed import is_first

WIDTH = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 100
"""What is piped or redirected keeps the width that the tables are laid out for."""

out = Console(highlight=False, width=WIDTH)
err = Console(stderr=True, highlight=False)


class _Bars:
    """One rich display; bars nest, and all is quiet when stderr is not a terminal."""

    def __init__(self) -> None:
        self._display: Progress | None = None

    @contextmanager
    def __call__(self, description: str, total: int | None, unit: str) -> Iterator[progress.Advance]:
        outermost = self._display is None
        if self._display is None:
            bar = [BarColumn(bar_width=28)] if err.width >= 100 else []  # the time left is worth more
            self._display = Progress(
                TextColumn("{task.description}", markup=False),
                *bar,
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=err,
                transient=True,
                disable=not err.is_terminal,
            )
            self._display.start()
        display = self._display
        task = display.add_task(description, total=total, unit=unit)
        try:
            yield lambda count: display.advance(task, count)
        finally:
            display.remove_task(task)
            if outermost:
                display.stop()
                self._display = None


def say(kind: str, message: str) -> None:
    """Print a sentence to stderr. Its brackets are those of a path or of somebody's code, never markup."""
    err.print(Text.assemble((f"{kind}:", "red" if kind == "error" else "yellow"), " ", message), soft_wrap=True)


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.levelname.lower(), record.getMessage())


def install() -> None:
    """Show monoeval's progress and warnings; libraries keep theirs to themselves."""
    first = is_first()  # of those that torchrun started, one speaks; what fails, any of them says
    progress.show_on(_Bars() if first else None)
    logger = logging.getLogger("monoeval")
    logger.handlers = [_Warnings()]
    logger.propagate = False
    logger.setLevel(logging.INFO if first else logging.ERROR)
