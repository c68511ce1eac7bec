"""Rows that belong together: read from a column, held out as wholes, and clustered by the statistics."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from monoeval.data.images import Data, DataSpec
from monoeval.data.load import load_data
from monoeval.errors import UsageError
from monoeval.suite.run import run


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "cache"))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, "png")
    return buffer.getvalue()


def photos(path: Path, patients: list[str | None], labels: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [png(100 * (label == "ill") + row % 50) for row, label in enumerate(labels)]
    pq.write_table(pa.table({"image": images, "diagnosis": labels, "patient": patients}), path)
    return path.parent


def loaded(folder: Path, **fields: str) -> Data:
    return load_data(DataSpec(name=str(folder), label_column="diagnosis", **fields))


def test_a_group_column_is_used_where_it_is_named(tmp_path: Path) -> None:
    people = ["b", "a", "c", "a"] * 3
    folder = photos(tmp_path / "t/train.parquet", people, ["ill", "well"] * 6)
    photos(tmp_path / "t/test.parquet", ["d", "e"] * 2, ["ill", "well"] * 2)
    grouped, plain = loaded(folder, group_column="patient"), loaded(folder)
    assert grouped.train.groups is not None
    assert grouped.train.groups.tolist() == [1, 0, 2, 0] * 3
    assert grouped.test.groups is not None
    assert grouped.test.groups.tolist() == [0, 1] * 2
    assert plain.train.groups is None
    # what intervals are over, and what folds divide, is part of what a score stands for
    assert grouped.test.fingerprint != plain.test.fingerprint


def test_whole_groups_are_held_out_and_the_same_ones_in_any_order(tmp_path: Path) -> None:
    people, labels = [f"p{i // 4}" for i in range(80)], ["ill", "well"] * 40
    data = loaded(photos(tmp_path / "t/all.parquet", people, labels), group_column="patient")

    def held(data: Data) -> set[str]:
        assert data.whole is not None
        rows = [data.whole.ids.tolist().index(name) for name in data.test.ids]
        return {people_of[row] for row in rows}

    people_of = people
    out = held(data)
    assert len(out) == 6  # of 20 patients
    assert len(data.test) == 24
    order = np.random.default_rng(0).permutation(80)
    people_of = [people[i] for i in order]
    again = photos(tmp_path / "u/all.parquet", people_of, [labels[i] for i in order])
    assert held(loaded(again, group_column="patient")) == out


def test_groups_of_domains_are_joined(tmp_path: Path) -> None:
    for domain, person in (("photo", "a"), ("sketch", "b")):
        photos(tmp_path / f"t/{domain}.parquet", [person] * 2 + ["shared"] * 8, ["ill", "well"] * 5)
    data = loaded(tmp_path / "t", group_column="patient")
    assert data.whole is not None
    assert data.whole.groups is not None
    assert data.whole.groups.tolist() == [0, 0, *[2] * 8, 1, 1, *[2] * 8]


@pytest.mark.parametrize(
    ("patients", "labels", "column", "says"),
    [
        (["a", None] * 4, ["ill", "well"] * 4, "patient", "without a group in the column 'patient'"),
        (["a"] * 8, ["ill", "well"] * 4, "patient", "no group of at most 30 % of its rows"),
        (["a", *["b"] * 9], ["ill", *["well"] * 9], "patient", "every group is held out for test \\(ill\\)"),
        (["a"] * 8, ["ill", "well"] * 4, "patients", "did you mean 'patient'"),
        (["a"] * 8, ["ill", "well"] * 4, "image", "whole numbers or text"),
    ],
)
def test_groups_that_cannot_be_used_are_one_sentence(
    patients: list[str | None], labels: list[str], column: str, says: str, tmp_path: Path
) -> None:
    folder = photos(tmp_path / "t/all.parquet", patients, labels)
    with pytest.raises(UsageError, match=says) as caught:
        loaded(folder, group_column=column)
    assert "\n" not in str(caught.value)


def test_what_has_no_columns_refuses_one(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(3))
    for name in (str(tmp_path), "digits"):
        with pytest.raises(UsageError, match="column"):
            load_data(DataSpec(name=name, group_column="patient"))


def test_a_run_keeps_groups_for_its_statistics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monoeval.report.write", lambda _: None)
    people = [f"p{i // 4}" for i in range(80)]
    folder = photos(tmp_path / "t/all.parquet", people, ["ill", "well"] * 40)
    fields = {
        "models": [{"model": "test_vit", "weights": "random", "precision": "fp32"}],
        "data": {"name": str(folder), "label_column": "diagnosis", "group_column": "patient"},
        "scenarios": ["clean"],
        "probe": {"l2": [1e-2]},
    }
    done = run(fields, out=tmp_path / "runs")
    (row,) = done.rows
    assert row.status == "ok"
    table = pq.read_table(done.folder / "tests" / f"{row.test}.parquet").to_pydict()
    assert len(set(table["group"])) == 6
