"""Content hashes of files, remembered, so that a second run does not read everything again."""

import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from monoeval.errors import MonoevalError
from monoeval.files import atomic, cache_dir
from monoeval.keys import file_key, key
from monoeval.progress import bar

log = logging.getLogger("monoeval")


def file_keys(root: Path, names: Sequence[str]) -> list[str]:
    """The content hash of each of the files `names`, which are relative to `root`.

    Hashes are kept in the cache for each root, and used again while a file's size and time of change (in
    nanoseconds) stay. A cache that cannot be written costs reading the files again, with a warning.
    Raises MonoevalError for a file that cannot be read.
    """
    root = root.resolve()
    index = cache_dir() / "fingerprints" / f"{key(str(root))}.json"
    known = _read(index)
    found: dict[str, list[int | str]] = {}
    missing = []
    for name in names:
        stamp = _stamp(root, name)
        if known.get(name, [])[:2] == stamp:
            found[name] = known[name]
        else:
            missing.append((name, stamp))
    with bar("Reading files", len(missing), "files") as advance, ThreadPoolExecutor(8) as pool:
        for (name, stamp), content in zip(
            missing, pool.map(partial(_content, root), [name for name, _ in missing]), strict=True
        ):
            found[name] = [*stamp, content]
            advance(1)
    if missing:
        try:
            with atomic(index) as temporary:
                temporary.write_text(json.dumps(known | found))
        except MonoevalError as error:
            log.warning("%s Without it the next run reads all files again.", error)
    return [str(found[name][2]) for name in names]


def _stamp(root: Path, name: str) -> list[int | str]:
    try:
        stat = Path(f"{root}/{name}").stat()  # half the time of joining paths, for a million files
    except OSError as error:
        raise _unreadable(root / name, error) from error
    return [stat.st_size, stat.st_mtime_ns]


def _content(root: Path, name: str) -> str:
    try:
        return file_key(root / name)
    except OSError as error:
        raise _unreadable(root / name, error) from error


def _unreadable(path: Path, error: OSError) -> MonoevalError:
    return MonoevalError(f"{path} cannot be read ({error.strerror}): make it readable, then run again.")


def _read(index: Path) -> dict[str, list[int | str]]:
    try:
        read = json.loads(index.read_text())
    except (OSError, ValueError):  # nothing remembered yet, or half a file from elsewhere
        return {}
    return read if isinstance(read, dict) else {}
