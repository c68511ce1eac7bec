"""A second label of each training row, from a file or a column of the data: what people said, not a draw."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from monoeval.data.images import DataSpec, ImageSet, Ints
from monoeval.data.label_noise import some
from monoeval.data.load import training_rows
from monoeval.errors import UsageError, nearest
from monoeval.keys import file_key


def from_file(path: Path, spec: DataSpec, train: ImageSet) -> Ints:
    """Labels [N] of the rows of `train`, the training set of `spec`.

    The file has one class name or number (its position among the class names, from 0) a line, in the order of the
    training rows before any limit (of all rows, where the source has one split); or, as `.csv`, lines of row id
    and label, in any order, with more rows than are needed and a heading if you like. Where every label is a class
    name they are read as names. Raises UsageError for a file that is not that.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from error
    table = [row for row in csv.reader(lines) if row] if path.suffix.lower() == ".csv" else []
    everyone = training_rows(spec)
    if table and len(table[0]) > 1:
        words = _by_id(table, everyone.ids.tolist(), path)
    else:
        words = [row[0].strip() for row in table] if table else [line.strip() for line in lines if line.strip()]
    if len(words) != len(everyone):
        raise UsageError(
            f"{path} has {len(words)} labels, and {spec.label} has {len(everyone)} training rows: give one label "
            "a row in their order, or a .csv with lines of id,label."
        )
    return _positions(words, train.class_names, str(path))[_rows_of(train.ids, everyone.ids)]


def content_of(path: Path) -> str:
    """A hash of the file's bytes. Raises UsageError where it cannot be read."""
    try:
        return file_key(path.expanduser())
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or "it is not text"
    return UsageError(f"The labels in {path} cannot be read ({reason}): check the path of file.")


def _by_id(table: list[list[str]], ids: list[str], path: Path) -> list[str]:
    if any(len(row) != 2 for row in table):
        raise UsageError(f"{path} has lines without exactly an id and a label: write id,label in each.")
    found = {row[0].strip(): row[1].strip() for row in table}
    if len(found) < len(table):
        raise UsageError(f"{path} has {len(table) - len(found)} ids more than once: give each row one label.")
    missing = [name for name in ids if name not in found]
    if missing:
        raise UsageError(
            f"{path} has no label for {len(missing)} of {len(ids)} training rows ({some(missing)}): add a line "
            "with each id."
        )
    return [found[name] for name in ids]


def from_column(column: str, spec: DataSpec, train: ImageSet) -> Ints:
    """Labels [N] of the rows of `train`, the training set of `spec`, from another label column of its table.

    The test split need not have that column. Classes are matched by name. Raises UsageError where there is no such
    column or it has classes of its own.
    """
    try:
        other = training_rows(spec.model_copy(update={"label_column": column}))
    except UsageError as error:
        words = str(error).replace("for --label-column", "for label noise")
        raise UsageError(f"Label noise from the column {column!r}: {words}") from error
    if other.fingerprint == training_rows(spec).fingerprint:
        raise UsageError(
            f"Label noise from the column {column!r}: {spec.label} has no label column beside its own: use file, "
            "or data in a table."
        )
    given = other.labels[_rows_of(train.ids, other.ids)]
    return _positions([other.class_names[i] for i in given], train.class_names, f"The column {column!r}")


def _rows_of(ids: NDArray[np.str_], everyone: NDArray[np.str_]) -> Ints:
    position = {name: i for i, name in enumerate(everyone.tolist())}
    return np.array([position[name] for name in ids.tolist()], dtype=np.int64)


def _positions(words: Sequence[str], class_names: tuple[str, ...], what: str) -> Ints:
    position = {name: i for i, name in enumerate(class_names)}
    strangers = sorted(set(words) - position.keys())
    if not strangers:
        return np.array([position[word] for word in words], dtype=np.int64)
    if all(word.isdecimal() and int(word) < len(class_names) for word in set(words)):
        return np.array([int(word) for word in words], dtype=np.int64)
    near = nearest(strangers[0], class_names)
    advice = f"did you mean {near!r}?" if near else f"the classes are {some(class_names)}."
    raise UsageError(f"{what} has labels that are no classes of the data ({some(strangers)}): {advice}")
