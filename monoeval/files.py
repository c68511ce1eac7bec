"""Where things are kept, and how a file is written so that a crash never leaves half of one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock

from monoeval.errors import MonoevalError


def cache_dir() -> Path:
    """The cache folder: `MONOEVAL_CACHE`, or the user's cache directory."""
    chosen = os.environ.get("MONOEVAL_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("monoeval"))


class CannotWriteError(MonoevalError):
    """The disk refused: full, read-only, or not a folder."""


@contextmanager
def locked(entry: Path) -> Iterator[None]:
    """Hold the lock beside a cache entry, so that two processes do not make it at once.

    Raises CannotWriteError where the cache cannot be written.
    """
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise cannot_write(entry, error) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed over `path`.

    Raises CannotWriteError where the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError) -> CannotWriteError:
    """The sentence for a file that could not be written, with the way out for the cache."""
    reason = error.strerror or str(error)
    if path.is_relative_to(cache_dir()):
        advice = "free some room with `monoeval cache clear`, or set MONOEVAL_CACHE to a folder you can write."
    else:
        advice = "choose another folder with --out."
    return CannotWriteError(f"Could not write {path} ({reason}): {advice}")
