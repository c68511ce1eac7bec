"""Errors a person reads: one sentence that says what was wrong and what to type instead."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class MonoevalError(Exception):
    """Something failed; the message is one sentence for a person, printed without a traceback."""

    exit_code = 1


class UsageError(MonoevalError):
    """The command, recipe or data was asked for wrongly."""

    exit_code = 2


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The one of `choices` most like `word`, if any is."""
    return next(iter(get_close_matches(word, sorted(choices), n=1, cutoff=0.5)), None)


def unknown(kind: str, word: str, choices: Iterable[str], hint: str = "") -> UsageError:
    """The error for a name nobody knows, with the nearest valid one."""
    names = sorted(choices)
    near = nearest(word, names)
    if near:
        advice = f"did you mean {near!r}?"
    elif len(names) <= 12:
        advice = f"choose one of {', '.join(names)}."
    else:
        advice = f"`monoeval list {kind}s` shows all {len(names)}."
    return UsageError(f"There is no {kind} named {word!r}: {advice}{' ' + hint if hint else ''}")


@contextmanager
def enough_memory(what: str, advice: str) -> Iterator[None]:
    """Turn what torch and numpy raise where memory runs out into one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate" in str(
            error
        ):  # torch has no class of its own for it on a CPU
            raise MonoevalError(f"There is not enough memory for {what}: {advice}.") from error
        raise
