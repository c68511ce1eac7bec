"""The ledger survives a torn last line, and has one writer."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from monoeval.errors import MonoevalError
from monoeval.suite.ledger import Ledger, Predictions, Row, read_rows


def row(key: str, **fields: object) -> Row:
    needed = {
        "arm": "a", "baseline": None, "controls": (), "model": "m", "method": "identity", "conditional": True,
        "probe_kind": "logistic",
        "backbone_seed": None, "adapter_seed": None, "draw": None,
        "scenario": "clean", "series": "clean", "level": 0.0, "protocol": "clean",
    }  # fmt: skip
    return Row.model_validate({"key": key, **needed, **fields})


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [row("x", accuracy=0.1 + 0.2, adapter={"l0": 3.0}), row("y", status="failed", error="no")]
    with Ledger(tmp_path) as ledger:
        ledger.append(rows)
        assert ledger.rows() == rows


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_is_dropped_and_the_next_one_is_whole(tmp_path: Path, cut: int) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append([row("x"), row("y")])
    text = ledger.path.read_bytes()
    ledger.path.write_bytes(text[:-cut])
    assert [r.key for r in read_rows(tmp_path)] == ["x"]
    with Ledger(tmp_path) as ledger:
        ledger.append([row("z")])
        assert [r.key for r in ledger.rows()] == ["x", "z"]


def test_a_score_made_again_replaces_the_failed_one(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append([row("x", status="failed"), row("y")])
        ledger.append([row("x", accuracy=1.0)])
        assert {r.key: r.status for r in ledger.rows()} == {"x": "ok", "y": "ok"}


def test_a_second_writer_is_told_so(tmp_path: Path) -> None:
    with Ledger(tmp_path), pytest.raises(MonoevalError, match="Another monoeval process"), Ledger(tmp_path):
        pass


@pytest.mark.parametrize("damage", [b"{nonsense", b"[1]", b"\xff\r\x00"])
def test_damage_in_the_middle_names_the_line(tmp_path: Path, damage: bytes) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.append([row("x"), row("y")])
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(damage + b"\n" + lines[1])
    with pytest.raises(MonoevalError, match="line 1"):
        read_rows(tmp_path)


def test_sidecars_hold_what_statistics_need(tmp_path: Path) -> None:
    made = Predictions(
        prediction=np.array([1, 0], np.int32),
        log_loss=np.array([0.5, 0.25], np.float32),
        max_softmax=np.array([0.6, 0.8], np.float32),
        energy=np.array([-1.0, -2.0], np.float32),
    )
    with Ledger(tmp_path) as ledger:
        ledger.add_test("t", ["one", "two"], np.array([1, 0]), None)
        ledger.add_predictions(row("x", predictions="predictions/x.parquet"), made)
    test = pq.read_table(tmp_path / "tests" / "t.parquet").to_pydict()
    assert test == {"row_id": ["one", "two"], "label": [1, 0], "group": [None, None]}
    table = pq.read_table(tmp_path / "predictions" / "x.parquet").to_pydict()
    assert table["row"] == [0, 1]
    assert table["prediction"] == [1, 0]
    assert table["energy"] == [-1.0, -2.0]


def test_kept_rows_have_the_protocol_ids_of_the_plan(tmp_path: Path) -> None:
    corrupted = "corruption/cifar-c.onthefly/fog@3/32"
    with Ledger(tmp_path) as ledger:
        ledger.append([row("x", protocol="label-noise/human/a.txt@0"), row("y", protocol=corrupted)])
        plan = {("a", "x"): "label-noise/human/a.txt-0f0f0f@0", ("a", "y"): "corruption/onthefly/fog@3"}
        ledger.keep(plan)
        assert [r.protocol for r in ledger.rows()] == ["label-noise/human/a.txt-0f0f0f@0", corrupted]
        before = ledger.path.stat().st_mtime_ns
        ledger.keep(plan)
        assert ledger.path.stat().st_mtime_ns == before


@pytest.mark.parametrize("file", ["tests/t.parquet", "predictions/x.parquet"])
@pytest.mark.parametrize("harm", ["gone", "cut"])
def test_rows_without_their_sidecars_are_made_again(tmp_path: Path, file: str, harm: str) -> None:
    made = Predictions(*(np.zeros(2, kind) for kind in (np.int32, np.float32, np.float32, np.float32)))
    lines = [row("x", test="t", predictions="predictions/x.parquet"), row("y", status="failed", error="no")]
    with Ledger(tmp_path) as ledger:
        ledger.add_test("t", ["one", "two"], np.array([1, 0]), None)
        ledger.add_predictions(lines[0], made)
        ledger.append(lines)
        ledger.keep(dict.fromkeys([("a", "x"), ("a", "y")], "clean"))
        assert len(ledger.rows()) == 2
        path = tmp_path / file
        content = path.read_bytes()
        path.unlink()
        if harm == "cut":
            path.write_bytes(content[:-20])
        ledger.keep(dict.fromkeys([("a", "x"), ("a", "y")], "clean"))
        assert [r.key for r in ledger.rows()] == ["y"]
        assert not path.exists()
