"""The Parquet files beside the ledger: rows of test sets, aligned by id."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from monoeval.errors import MonoevalError


@dataclass(frozen=True)
class TestRows:
    """The rows of one test set, sorted by id so that equal sets are aligned without a look-up."""

    __test__ = False  # not a pytest class

    ids: NDArray[np.int64]  # [R], sorted; one number a row id, the same in every test set of the run
    labels: NDArray[np.int64]  # [R]
    groups: NDArray[np.int64] | None  # [R]
    place: NDArray[np.int64]  # [N] → where the file's rows went in the sorted order


def read_tests(folder: Path, names: Sequence[str]) -> dict[str, TestRows]:
    """The test sets `names` of a run folder.

    Raises MonoevalError where one is missing, damaged or has an id twice.
    """
    tables = [read(folder / "tests" / f"{name}.parquet", ["row_id", "label", "group"]) for name in names]
    number: dict[str, int] = {}
    made = {}
    for name, table in zip(names, tables, strict=True):
        ids = np.array([number.setdefault(i, len(number)) for i in table["row_id"].to_pylist()], dtype=np.int64)
        order = np.argsort(ids, kind="stable")
        if len(np.unique(ids)) < len(ids):
            raise MonoevalError(f"Two rows of {folder / 'tests' / name}.parquet have the same id.")
        group = table["group"]
        made[name] = TestRows(
            ids=ids[order],
            labels=numbers(table["label"])[order],
            groups=None if group.null_count else numbers(group)[order],
            place=np.argsort(order, kind="stable"),
        )
    return made


def labels_of(tests: Sequence[TestRows], ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels [R] of the rows `ids`, each from a test set that has it."""
    labels = np.empty(len(ids), dtype=np.int64)
    for test in tests:
        place = np.minimum(np.searchsorted(ids, test.ids), len(ids) - 1)
        inside = ids[place] == test.ids
        labels[place[inside]] = test.labels[inside]
    return labels


def union(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The ids that any of `parts` has, sorted as they are."""
    distinct = list({id(part): part for part in parts}.values())  # most are one and the same array
    return distinct[0] if len(distinct) == 1 else np.unique(np.concatenate(distinct))


def groups_of(tests: Sequence[TestRows], ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The group of each of the rows `ids` [R], where all of `tests` have groups."""
    groups = np.zeros(len(ids), dtype=np.int64)
    for test in tests:
        if test.groups is None:
            return None
        here = np.isin(test.ids, ids)
        groups[np.searchsorted(ids, test.ids[here])] = test.groups[here]
    return groups


def read(path: Path, columns: list[str]) -> Any:
    """The `columns` of a Parquet file; raises MonoevalError where it is missing or damaged."""
    try:
        return pq.ParquetFile(path).read(columns=columns, use_threads=False)
    except (OSError, ValueError) as error:
        raise MonoevalError(f"{path} is missing or damaged: run the study again with --fresh.") from error


def numbers(column: Any) -> NDArray[np.int64]:
    """A column without nulls; `to_numpy` would import pandas, which takes longer than all else here."""
    return np.from_dlpack(column.combine_chunks()).astype(np.int64, copy=False)
