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


LISTED = {"model": "models", "method": "methods", "probe": "probes", "scenario": "scenarios", "recipe": "recipes"}
"""Kinds of names that `monoeval list` shows."""


def unknown(kind: str, word: str, choices: Iterable[str], hint: str = "") -> UsageError:
    """The error for a name nobody knows, with the nearest valid one."""
    names = sorted(choices)
    near = nearest(word, names)
    if near:
        advice = f"did you mean {near!r}?"
    elif len(names) <= 12:
        advice = f"choose one of {', '.join(names)}."
    elif kind in LISTED:
        advice = f"`monoeval list {LISTED[kind]}` shows all {len(names)}."
    else:
        advice = f"choose one of {', '.join(names[:12])}, … ({len(names)} in all)."
    return UsageError(f"There is no {kind} named {word!r}: {advice}{' ' + hint if hint else ''}")


NO_MEMORY = ("allocate", "ALLOC_FAILED", "out of memory")
"""In the words of torch's allocators, and of the libraries that a GPU's products and convolutions come from."""


@contextmanager
def enough_memory(what: str, advice: str) -> Iterator[None]:
    """Turn what torch and numpy raise where memory runs out into one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no class of its own for it on a CPU, nor for a library's failure on a GPU
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in NO_MEMORY):
            raise MonoevalError(f"There is not enough memory for {what}: {advice}.") from error
        raise


def smaller_batch(batch: int, asked: str, otherwise: str) -> str:
    """What to do where batches of `batch` images do not fit: half of it, in the words of `asked` with its {}, and
    `otherwise`, alone where it cannot be halved."""
    half = f"try {asked.format(batch // 2)}, or " if batch > 2 else ""
    return half + otherwise
