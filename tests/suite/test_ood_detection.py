"""Rows of elsewhere against rows of the data: what is kept, and that the measures come from what is kept."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from monoeval.adapters.base import SparseRows
from monoeval.data.images import DataSpec
from monoeval.errors import UsageError
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.neighbours import distances_to_neighbour
from monoeval.report.summary import summarise
from monoeval.scenarios.ood_detection import OODDetection
from monoeval.suite.changes import changed
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe_files import load_recipe
from monoeval.suite.run import Run, run

SMALL: dict[str, Any] = {
    "name": "detect",
    "data": {"name": "digits", "limit": 100},
    "seeds": 1,
    "backbones": {"CL": {"pretrain": {"objective": "simclr", "epochs": 1, "width": 16, "image_size": 8}}},
    "arms": [
        {"name": "CL", "backbone": "CL"},
        {"name": "CL + relu", "backbone": "CL", "method": "relu", "baseline": "CL"},
    ],
    "probe": {"kind": "ncm", "folds": 2},
    "scenarios": ["clean", "ood-detection"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("detect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MONOEVAL_CACHE", str(folder / "cache"))
        return run(SMALL, out=folder / "runs")


def test_measures_can_be_made_again_from_what_is_kept(finished: Run) -> None:
    assert {row.status for row in finished.rows} == {"ok"}
    for arm in ("CL", "CL + relu"):
        clean, inside, outside = (row for row in finished.rows if row.arm == arm)
        assert inside.accuracy == clean.accuracy
        assert (outside.rows, outside.accuracy, outside.log_loss) == (100, None, None)
        assert outside.protocol == "ood-detection/digits-printed/id-positive"
        kept = [pq.read_table(finished.folder / str(row.predictions)).to_pydict() for row in (inside, outside)]
        labels = pq.read_table(finished.folder / f"tests/{outside.test}.parquet")["label"].to_pylist()
        assert set(labels) == {-1}
        assert np.isnan(kept[1]["log_loss"]).all()
        truth = [1] * 100 + [0] * 100
        for name, sign in (("max_softmax", 1), ("energy", -1), ("neighbour_distance", -1)):
            expected = roc_auc_score(truth, sign * np.array(kept[0][name] + kept[1][name]))
            assert outside.measures[f"auroc_{name}"] == pytest.approx(expected, abs=1e-9)
            assert 0 <= outside.measures[f"fpr95_{name}"] <= 1


def test_rows_and_groups_of_elsewhere_are_never_those_of_the_data(finished: Run) -> None:
    inside, outside = (
        next(r for r in finished.rows if r.scenario == "ood-detection" and r.level == level) for level in (0, 1)
    )
    own, other = (
        pq.read_table(finished.folder / f"tests/{r.test}.parquet").to_pydict() for r in (inside, outside)
    )
    assert all(i.startswith("digits/") for i in own["row_id"])
    assert all(i.startswith("digits-printed: digits-printed/") for i in other["row_id"])
    assert not set(own["group"]) & set(other["group"])


def test_the_report_shows_the_area_of_each_score_and_paired_differences(finished: Run) -> None:
    (table,) = (t for t in summarise(finished.folder).tables if t.scenario == "ood-detection")
    assert [column.label for column in table.columns] == ["max-softmax", "energy", "neighbours"]
    rows = {row.arm: row for row in finished.rows if row.scenario == "ood-detection" and row.level}
    for arm, cells in table.cells.items():
        for cell, name in zip(cells, ("max_softmax", "energy", "neighbour_distance"), strict=True):
            assert cell.interval is not None
            assert cell.interval.mean == pytest.approx(rows[arm].measures[f"auroc_{name}"])
            assert cell.interval.low < cell.interval.mean < cell.interval.high
    gain = table.comparisons[0].baseline.primary.interval
    raw, relu = (rows[arm].measures["auroc_max_softmax"] for arm in ("CL", "CL + relu"))
    assert gain is not None
    assert gain.mean == pytest.approx(relu - raw)
    text = (finished.folder / "report.md").read_text()
    assert "AUROC in per cent, with the distance to the farther end" in text
    assert "placements of DeLong" in text
    measures = {measure.name: measure for measure in table.measures}
    assert measures["fpr95_energy"].values["CL"].mean == pytest.approx(rows["CL"].measures["fpr95_energy"])
    assert "worst_class" not in measures


@pytest.mark.parametrize("sparse", [False, True])
def test_the_distance_is_that_to_the_kth_neighbour_of_centred_codes(sparse: bool) -> None:
    torch.manual_seed(0)
    train, test = torch.randn(40, 6).relu(), torch.randn(9, 6).relu()
    rows = np.arange(5, 35)

    def as_codes(dense: torch.Tensor) -> torch.Tensor | SparseRows:
        return SparseRows(dense, torch.arange(6).expand(len(dense), -1).contiguous(), 6) if sparse else dense

    centre = train[rows].mean(0)
    search = NearestNeighbors(metric="cosine").fit((train[rows] - centre).numpy())
    for k in (1, 7, 100):
        codes = TrainingCodes(as_codes(train), scale=3.0)
        found = distances_to_neighbour(codes, rows, [as_codes(test[:4]), as_codes(test[4:])], k)
        expected = search.kneighbors((test - centre).numpy(), min(k, 30))[0][:, -1]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_classes_on_both_sides_are_said(caplog: pytest.LogCaptureFixture) -> None:
    make_plan(load_recipe(SMALL))
    assert (
        "digits-printed has classes of digits (0, 1, 2, 3, 4, 5, 6, 7, 8, 9): what is detected is a change of "
        "domain" in caplog.text
    )


def test_the_target_of_the_command_reaches_it_and_one_is_needed() -> None:
    recipe = load_recipe(SMALL)
    elsewhere = changed(recipe, data=DataSpec(name="./a"), target=DataSpec(name="./b"))
    assert [s.target.name for s in elsewhere.scenarios if isinstance(s, OODDetection) and s.target] == ["./b"]
    assert [s.name for s in changed(recipe, data=DataSpec(name="./a")).scenarios] == ["clean"]
    with pytest.raises(UsageError, match="ood-detection scenario needs a target for elsewhere"):
        list(OODDetection().trials(DataSpec(name="elsewhere"), 0))
    with pytest.raises(UsageError, match="--target"):
        changed(load_recipe({**SMALL, "scenarios": ["clean"]}), target=DataSpec(name="./b"))


def test_a_protocol_names_an_unusual_number_of_neighbours() -> None:
    made = next(OODDetection(neighbours=7).trials(DataSpec(name="digits"), 0))
    assert made.protocol == "ood-detection/digits-printed/id-positive/7-neighbours"


def test_keys_know_the_neighbours_and_the_positive_side() -> None:
    def keys(**settings: object) -> set[str]:
        fields = {**SMALL, "scenarios": [{"name": "ood-detection", **settings}]}
        return {k for group in make_plan(load_recipe(fields)).groups for k in group.keys}

    made = [keys(), keys(neighbours=5), keys(positive="ood")]
    assert len(set.union(*made)) == 3 * len(made[0])
