"""The ledger: one JSON line a score, written last, beside the per-row predictions it summarises."""

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import ConfigDict

from monoeval.data.images import Ints
from monoeval.data.label_noise import Transitions
from monoeval.errors import MonoevalError
from monoeval.files import atomic, cannot_write
from monoeval.keys import key
from monoeval.spec import Spec

SCHEMA = 2

log = logging.getLogger("monoeval")


class Row(Spec):
    """One score. This is the documented schema of a line of `results.jsonl`."""

    model_config = ConfigDict(ser_json_inf_nan="constants")  # a measure may be NaN, a log-loss infinite

    schema_version: int = SCHEMA
    key: str
    """Equal where everything that decides the score is equal; rows are shared between runs by it."""
    status: Literal["ok", "failed", "nan", "empty"] = "ok"
    error: str | None = None

    arm: str
    baseline: str | None
    controls: tuple[str, ...]
    model: str
    """The resolved name of the backbone."""
    precision: str | None = None
    """What its features were computed in."""
    method: str
    probe_kind: str
    """One of `probes.spec.PROBES`; its settings stand in `recipe.yaml`."""
    conditional: bool
    """The backbone is the same for every seed, so intervals do not cover its training."""
    backbone_seed: int | None
    adapter_seed: int | None
    draw: int | None
    """Seed of noise or shots. A row belongs to a study unit where each seed is None or the unit's."""
    repeat: int = 0
    """Draws within a seed, averaged before statistics."""
    train: str = ""
    """Fingerprint of the training images, which differ within a run where domains or subclasses are held out."""

    scenario: str
    series: str
    level: float
    protocol: str
    label_signal: float | None = None
    """How much likelier the true class is than the likeliest wrong one, see `data.label_noise.label_signal`; a
    level without signal is a negative control."""
    realised_rate: float | None = None
    """Share of training labels that were changed."""
    transitions: str | None = None
    """`transitions/<content>.parquet`: how many training rows of each true class were given each class."""

    test: str | None = None
    """`tests/<test>.parquet`: row ids, labels and groups."""
    predictions: str | None = None
    """`predictions/<key>.parquet`: row, prediction, log-loss, max-softmax, energy, and where rows of elsewhere are
    detected the neighbour distance; those rows have label −1."""
    rows: int = 0
    accuracy: float | None = None
    log_loss: float | None = None
    measures: dict[str, float] = {}  # noqa: RUF012 (pydantic copies defaults)
    """What else was measured on these rows, by name and without unit: shares in [0, 1] unless said otherwise."""

    l2: float | None = None
    l2_at_edge: bool = False
    """The chosen L2, or what else the probe tunes, is the last of a grid that could not be extended further."""
    converged: bool = True
    probe: dict[str, float] = {}  # noqa: RUF012 (pydantic copies defaults)
    """What else is known of the probe's fit, for example the certified gap to the optimum."""
    tried: int = 1
    """Adapters whose validation losses were compared, one for each combination of the settings that are lists."""
    chosen: dict[str, int | float] = {}  # noqa: RUF012 (pydantic copies defaults)
    """The settings that differ between these, as the chosen one has them."""
    adapter: dict[str, float] = {}  # noqa: RUF012 (pydantic copies defaults)
    """Measures of the adapter's fit, and of its codes of clean held-out images."""
    drift: dict[str, float] = {}  # noqa: RUF012 (pydantic copies defaults)
    """What a change to the images does to their codes: see `metrics.drift.Drift`."""
    seconds: float = 0.0
    """Time of the whole group divided by its scores; the only field that differs between equal runs."""


@dataclass(frozen=True)
class Predictions:
    """What is kept of each test row [n], in the order of the test set."""

    prediction: NDArray[np.int32]
    log_loss: NDArray[np.float32]
    max_softmax: NDArray[np.float32]
    energy: NDArray[np.float32]
    tempered: NDArray[np.float32] | None = None
    """[n, G] for `metrics.calibration`; in memory only."""
    neighbour_distance: NDArray[np.float32] | None = None
    """To the k-th nearest training row, of trials that detect rows of elsewhere."""


class Ledger:
    """A run folder opened by its one writer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "results.jsonl"
        self._lock = FileLock(folder / ".lock", blocking=False)

    def __enter__(self) -> "Ledger":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise MonoevalError(
                f"Another monoeval process is writing {self.folder}: wait for it, or choose another --out."
            ) from None
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self._drop_half_line()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if [path.name for path in self.folder.iterdir()] == [".lock"]:  # nothing came of it
            (self.folder / ".lock").unlink(missing_ok=True)
            self.folder.rmdir()

    def _drop_half_line(self) -> None:
        """A kill can cut the last line short; what it described is made again."""
        if not self.path.exists():
            return
        text = self.path.read_bytes()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):  # else the file keeps its time, by which a report is told to be current
            with self.path.open("rb+") as stream:
                stream.truncate(whole)

    def rows(self) -> list[Row]:
        return read_rows(self.folder)

    def keep(self, protocols: Mapping[tuple[str, str], str]) -> None:
        """Drop rows of (arm, key) not in `protocols`: their data, weights or libraries have changed since.

        The others get the id that `protocols` has for them, see `named`. Rows whose sidecars were deleted or cut
        short go too, with what is left of those: they are made again.
        """
        rows = self.rows()
        planned = [named(r, protocols[r.arm, r.key]) for r in rows if (r.arm, r.key) in protocols]
        broken = {path for row in planned for path in sidecars(row) if not readable(self.folder / path)}
        if broken:
            log.warning("%s is missing or damaged: its scores are made again.", self.folder / min(broken))
        for path in broken:
            (self.folder / path).unlink(missing_ok=True)
        kept = [row for row in planned if broken.isdisjoint(sidecars(row))]
        if kept != rows:
            with atomic(self.path) as temporary:
                temporary.write_text("".join(row.model_dump_json() + "\n" for row in kept), encoding="utf-8")

    def add_test(self, name: str, ids: Sequence[str], labels: Ints, groups: Ints | None) -> None:
        """Write a test set's ids, labels and groups, once."""
        path = self.folder / "tests" / f"{name}.parquet"
        if path.exists():
            return
        group = pa.nulls(len(labels), pa.int64()) if groups is None else pa.array(groups)
        table = pa.table({"row_id": pa.array(list(map(str, ids))), "label": pa.array(labels), "group": group})
        with atomic(path) as temporary:
            pq.write_table(table, temporary)

    def add_transitions(self, class_names: Sequence[str], transitions: Transitions) -> str:
        """Write what label noise did, once for all arms: true and given class names with a count. Its path."""
        columns = (transitions.true, transitions.given, transitions.count)
        content = key([list(class_names), *(column.tolist() for column in columns)])
        path = f"transitions/{content}.parquet"
        if not (self.folder / path).exists():
            names = pa.array(list(class_names))
            true, given = (pa.DictionaryArray.from_arrays(pa.array(c), names) for c in columns[:2])
            with atomic(self.folder / path) as temporary:
                pq.write_table(pa.table({"true": true, "given": given, "count": columns[2]}), temporary)
        return path

    def add_predictions(self, row: Row, predictions: Predictions) -> None:
        """Write the per-row outcome of a score; its line in the ledger comes after."""
        kept = {name: values for name, values in vars(predictions).items() if values is not None}
        columns = {name: pa.array(values) for name, values in kept.items() if name != "tempered"}
        table = pa.table({"row": pa.array(np.arange(len(predictions.prediction), dtype=np.int32)), **columns})
        with atomic(self.folder / str(row.predictions)) as temporary:
            pq.write_table(table, temporary)

    def append(self, rows: Iterable[Row]) -> None:
        """Add lines in one write and flush them to disk."""
        text = "".join(row.model_dump_json() + "\n" for row in rows)
        try:
            with self.path.open("ab") as stream:
                stream.write(text.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            self._drop_half_line()
            raise cannot_write(self.path, error) from error


def named(row: Row, protocol: str) -> Row:
    """`row` under the id that a plan has for its key: one clean score stands beside noise of whatever source.

    An image size, which is known once a trial has run, stays.
    """
    same = row.protocol == protocol or "/onthefly/" in protocol
    return row if same else row.model_copy(update={"protocol": protocol})


def sidecars(row: Row) -> tuple[str, ...]:
    """The files of a run folder that a row speaks of; none where nothing was scored."""
    named = (f"tests/{row.test}.parquet", row.predictions, row.transitions) if row.predictions else ()
    return tuple(path for path in named if path is not None)


def readable(path: Path) -> bool:
    """Whether a sidecar is there and whole to its end, where parquet keeps what is needed to read it."""
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return False
    return True


def read_rows(folder: Path) -> list[Row]:
    """The rows of a run: the last line of a score counts, and a half-written last line is dropped."""
    path = folder / "results.jsonl"
    if not path.exists():
        return []
    latest: dict[tuple[str, str], Row] = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict):
                raise ValueError("not an object")
            if fields.get("schema_version") != SCHEMA:
                raise MonoevalError(
                    f"{path}, line {number} has schema {fields.get('schema_version')}, and this version reads "
                    f"{SCHEMA}: run it again with --fresh."
                )
            row = Row.model_validate(fields)
        except ValueError as error:
            raise MonoevalError(f"{path}, line {number} is damaged: delete that line and run again.") from error
        latest.pop((row.arm, row.key), None)
        latest[row.arm, row.key] = row
    return list(latest.values())
