"""Progress of long work. Rooms report; whoever installs a display (the CLI) shows it; the default is silent."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Advance = Callable[[int], None]
Display = Callable[[str, int | None, str], AbstractContextManager[Advance]]


@contextmanager
def _silent(description: str, total: int | None, unit: str) -> Iterator[Advance]:  # noqa: ARG001
    yield lambda _: None


_display: Display = _silent


def show_on(display: Display | None) -> None:
    """Send all progress to `display`; None silences it."""
    global _display
    _display = display or _silent


def bar(description: str, total: int | None, unit: str = "") -> AbstractContextManager[Advance]:
    """Open a bar of `total` units; the context's value advances it by a count."""
    return _display(description, total, unit)
