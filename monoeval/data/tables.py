"""Tables of encoded images: folders of parquet, saved `datasets` folders, and what the hub's library has cached.

All are read as Arrow files that are mapped into memory, so that any row is reached at once and a set may be
larger than memory. Parquet can only be unpacked a block at a time, so its image column is copied once into the
cache, as the `datasets` library does.
"""

import atexit
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from monoeval.data.decode import to_rgb
from monoeval.data.fingerprint import file_keys
from monoeval.data.images import DataSpec, Image, Ints
from monoeval.data.source import Source, Splits, parquet_files
from monoeval.errors import MonoevalError, UsageError, nearest
from monoeval.files import atomic, cache_dir, cannot_write
from monoeval.keys import key
from monoeval.progress import bar

log = logging.getLogger("monoeval")

IMAGE_NAMES = ("image", "img", "images", "picture", "pixels")
LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "category", "y", "cls", "wnid")
DOMAIN_NAME = "domain"


@dataclass(frozen=True)
class _Read:
    """Reads rows of an image column of Arrow files; its state is their paths, and a copy maps them anew."""

    name: str
    paths: tuple[str, ...]
    column: str
    _open: list[tuple[Ints, list[Any]]] = field(default_factory=list, compare=False, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return {"name": self.name, "paths": self.paths, "column": self.column, "_open": []}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)

    def __call__(self, row: int) -> Image:
        if not self._open:  # two threads may both do this, and do it alike
            chunks = [c for path in self.paths for c in _arrow(Path(path)).column(self.column).chunks]
            self._open.append((np.cumsum([0, *map(len, chunks)]), chunks))
        starts, chunks = self._open[0]
        chunk = int(np.searchsorted(starts, row, side="right")) - 1
        cell = chunks[chunk][row - int(starts[chunk])].as_py()
        name = f"Row {row} of {self.name}"
        if isinstance(cell, dict):
            cell = cell.get("bytes") or (Path(cell["path"]) if cell.get("path") else None)
        if cell is None:
            raise MonoevalError(f"{name} has no image: remove the row, then run again.")
        return to_rgb(cell, name)


def _arrow(path: Path) -> Any:
    """The table of an Arrow stream file, mapped, not read."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> MonoevalError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return MonoevalError(f"{path} cannot be read ({reason}): delete it or replace it, then run again.")


def saved_splits(root: Path, spec: DataSpec) -> Splits:
    """The splits of a folder that `save_to_disk` of a Dataset or DatasetDict wrote."""
    index = root / "dataset_dict.json"
    try:
        names = json.loads(index.read_text())["splits"] if index.exists() else [""]
        files = {
            name: [
                root / name / part["filename"]
                for part in json.loads((root / name / "state.json").read_text())["_data_files"]
            ]
            for name in names
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(root, error) from error
    return arrow_splits(str(root), root, files, spec)


def arrow_splits(name: str, root: Path, files: dict[str, list[Path]], spec: DataSpec) -> Splits:
    """Splits that lie as Arrow stream files under `root`; `name` is what errors call the set."""
    return {s: partial(_arrow_source, _called(name, s), root, s, tuple(p), spec) for s, p in files.items()}


def parquet_splits(root: Path, spec: DataSpec) -> Splits:
    """The splits of a folder of parquet, named by the words train, test, validation … in a path, else by file."""
    paths = sorted(parquet_files(root))
    files: dict[str, list[Path]] = {}
    for path in paths:
        files.setdefault(_split_name(path.relative_to(root)), []).append(path)
    return {s: partial(_parquet_source, _called(str(root), s), root, s, tuple(p), spec) for s, p in files.items()}


def _split_name(path: Path) -> str:
    stem = re.sub(r"([-_.]?\d+(-of-\d+)?)?([-_.][0-9a-f]{16})?$", "", path.stem)
    for part in (stem, *reversed(path.parts[:-1])):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in ("train", "training", "test", "testing", "validation", "valid", "val", "dev"):
                return word
    return stem or (path.parts[-2] if len(path.parts) > 1 else "")


def _arrow_source(called: str, root: Path, split: str, paths: tuple[Path, ...], spec: DataSpec) -> Source:
    tables = [_arrow(path) for path in paths]
    if not tables:
        raise UsageError(f"{called} has no rows: choose another split with --split.")
    used = _columns(called, tables[0].schema, spec)
    columns = {
        name: pa.chunked_array(
            [c for table in tables for c in table.column(name).chunks], type=tables[0].schema.field(name).type
        )
        for name in used.read_at_once
    }
    keys = file_keys(root, [path.relative_to(root).as_posix() for path in paths])
    return _source(called, split, tables[0].schema, used, columns, keys, paths)


def _parquet_source(called: str, root: Path, split: str, paths: tuple[Path, ...], spec: DataSpec) -> Source:
    try:
        schema = pq.read_schema(paths[0])
        used = _columns(called, schema, spec)
        tables = [pq.read_table(path, columns=used.read_at_once) for path in paths]
        columns = {
            name: pa.chunked_array(
                [c for table in tables for c in table.column(name).chunks], type=schema.field(name).type
            )
            for name in used.read_at_once
        }
    except (OSError, pa.ArrowException, KeyError) as error:
        raise _unreadable(paths[0].parent if len(paths) > 1 else paths[0], error) from error
    keys = file_keys(root, [path.relative_to(root).as_posix() for path in paths])
    return _source(called, split, schema, used, columns, keys, _unpacked(paths, keys, used.image))


def _called(name: str, split: str) -> str:
    return f"{name} ({split})" if split else name


def _source(
    called: str,
    split: str,
    schema: Any,
    used: "_Columns",
    columns: dict[str, Any],
    keys: Sequence[str],
    paths: Iterable[Path],
) -> Source:
    features = _features(schema)

    def read(what: str, column: str | None) -> tuple[Ints | None, tuple[str, ...]]:
        """What each row has in a column that every row must fill."""
        if column is None:
            return None, ()
        of, names = _labels(columns[column], features.get(column, {}).get("names"))
        if (of < 0).any():
            raise UsageError(f"{called} has rows without a {what} in the column {column!r}: fill them in.")
        return of, names

    labels, names = _labels(columns[used.label], features.get(used.label, {}).get("names"))
    domain, domains = read("domain", used.domain)
    group, groups = read("group", used.group)
    return Source(
        labels=labels,
        names=names,
        ids=np.array([f"{split or 'all'}/{row:07d}" for row in range(len(labels))]),
        keys=[*keys, used.image, used.label],
        read=_Read(called, tuple(str(path.resolve()) for path in paths), used.image),
        domains=domains,
        domain=domain,
        groups=None if group is None else np.array(groups)[group],
    )


def _labels(column: Any, names: Sequence[str] | None) -> tuple[Ints, tuple[str, ...]]:
    """Positions [N] in the class names, −1 for NULL; names are sorted, numbers by their value."""
    if names is not None:
        labels = column.cast(pa.int64()).fill_null(-1).to_numpy()
        return np.where(labels < len(names), labels, -1), tuple(names)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    encoded = column.combine_chunks().dictionary_encode()
    values = encoded.dictionary.to_pylist()
    order = sorted(range(len(values)), key=lambda i: values[i])
    position = np.empty(len(values) + 1, dtype=np.int64)
    position[order] = np.arange(len(values))
    position[-1] = -1  # where NULL is sent
    labels = position[np.asarray(encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False))]
    return labels, tuple(str(values[i]) for i in order)


def _unpacked(paths: Sequence[Path], keys: Sequence[str], image: str) -> list[Path]:
    """The image column of each parquet file as an Arrow file in the cache, made where it is not there yet."""
    names = [f"{key([content, image])}.arrow" for content in keys]
    folder = cache_dir() / "arrow"
    if not all((folder / name).exists() for name in names):
        folder = _writable(folder)
    missing = [pair for pair in zip(paths, names, strict=True) if not (folder / pair[1]).exists()]
    if missing:
        with bar("Unpacking parquet", sum(pq.read_metadata(p).num_rows for p, _ in missing), "rows") as advance:
            for source, name in missing:
                with atomic(folder / name) as temporary:
                    for rows in _copy(source, temporary, image):
                        advance(rows)
    return [folder / name for name in names]


def _copy(source: Path, target: Path, image: str) -> Iterator[int]:
    """Copy a column; yields the rows of each batch. Batches are small, as encoded images are not."""
    try:
        with pq.ParquetFile(source) as file:
            schema = pa.schema([file.schema_arrow.field(image)])
            with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                for batch in file.iter_batches(batch_size=256, columns=[image]):
                    writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
                    yield batch.num_rows
    except pa.ArrowException as error:
        raise _unreadable(source, error) from error


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        log.warning("%s Until then parquet is unpacked anew in each run.", cannot_write(folder, error))
        return _temporary()


@cache
def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="monoeval-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _features(schema: Any) -> dict[str, Any]:
    """What the `datasets` library noted of each column, if it wrote the file."""
    try:
        noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {name: feature for name, feature in noted.items() if isinstance(feature, dict)}


class _Columns(NamedTuple):
    """The columns of a table that are used."""

    image: str
    label: str
    domain: str | None
    group: str | None

    @property
    def read_at_once(self) -> list[str]:
        """All but the images, each once."""
        return list(dict.fromkeys(name for name in (self.label, self.domain, self.group) if name))


def _columns(called: str, schema: Any, spec: DataSpec) -> _Columns:
    """Those asked for, else the only or best-named ones; a group column is never guessed."""
    noted = _features(schema)
    images = [f.name for f in schema if noted.get(f.name, {}).get("_type") == "Image" or _is_image(f.type)]
    texts = [f.name for f in schema if _is_label(f.type) and f.name not in images]
    domain = None
    if spec.domain_column is not None or DOMAIN_NAME in texts:
        domain = _column(called, schema, "domain", spec.domain_column, texts, [DOMAIN_NAME])
    if spec.label_column == domain:
        domain = None  # one may ask for which domain an image is of
    labels = [name for name in texts if name not in (domain, spec.group_column)]
    classes = [name for name in labels if noted.get(name, {}).get("_type") == "ClassLabel"]
    likely = classes if len(classes) == 1 else [n for n in LABEL_NAMES if n in (classes or labels)][:1]
    named = [name for name in IMAGE_NAMES if name in images][:1]
    group = None if spec.group_column is None else _column(called, schema, "group", spec.group_column, texts, [])
    return _Columns(
        _column(called, schema, "image", spec.image_column, images, images if len(images) == 1 else named),
        _column(called, schema, "label", spec.label_column, labels, likely),
        domain,
        group,
    )


def _is_image(kind: Any) -> bool:
    """Encoded bytes, alone or beside a path."""
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and _is_image(f.type) for f in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_boolean(kind)
    )


def _column(
    called: str, schema: Any, what: str, asked: str | None, fit: Sequence[str], likely: Sequence[str]
) -> str:
    option = f"--{what}-column"
    listed = ", ".join(f"{f.name} ({str(f.type).split('<')[0]})" for f in schema)
    if asked is None:
        if likely:
            return likely[0]
        raise UsageError(f"{called} has no column that is clearly the {what}: name one with {option} ({listed}).")
    if asked not in schema.names:
        near = nearest(asked, schema.names)
        advice = f"did you mean {near!r}? It has" if near else "it has"
        raise UsageError(f"{called} has no column {asked!r} for {option}: {advice} {listed}.")
    if asked not in fit:
        kinds = "encoded images (bytes)" if what == "image" else "whole numbers or text"
        raise UsageError(
            f"The column {asked!r} of {called} cannot be the {what}, which is {kinds}: it has {listed}."
        )
    return asked
