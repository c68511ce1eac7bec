"""What a report says of its family, its margin, sizes of effects, and what its intervals cover."""

from collections.abc import Callable

import numpy as np
import pytest
import yaml
from report_study import ARMS, RunFolder

from monoeval.report import summarise
from monoeval.report.layout import columns
from monoeval.report.markdown import markdown
from monoeval.report.model import Comparison, Summary
from monoeval.report.scores import Point

Make = Callable[..., RunFolder]
ROWS = 400


def name_in_recipe(run: RunFolder, **fields: object) -> None:
    path = run.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **fields}, sort_keys=False))


def claims(summary: Summary, arm: str = "sae") -> dict[str, Comparison]:
    return {t.scenario: c for t in summary.tables for c in t.comparisons if c.arm == arm}


@pytest.fixture
def run(run_folder: Make) -> RunFolder:
    """`sae` is 40 of 400 rows better than raw on clean data, and 9 under label noise; `random` is like raw."""
    made = run_folder(ARMS, ["clean", "label-noise"], seeds=1)
    made.test("t", [str(i) for i in range(ROWS)], np.zeros(ROWS, dtype=np.int64))
    noise = {
        "scenario": "label-noise",
        "series": "symmetric",
        "level": 0.4,
        "protocol": "label-noise/symmetric@0.4",
    }
    for arm, right, noisy in (("raw", 300, 200), ("random", 300, 201), ("sae", 340, 209)):
        made.score(arm, np.arange(ROWS) < right)
        made.score(arm, np.arange(ROWS) < noisy, **noise)
    return made


def test_a_named_family_is_what_is_adjusted_for(run: RunFolder) -> None:
    name_in_recipe(run, family=[
        {"scenario": "label-noise", "arm": "sae", "against": None},
        {"scenario": "label-noise", "arm": "sae", "against": "random"},
    ])  # fmt: skip
    summary = summarise(run.folder)
    noisy, clean = claims(summary)["label-noise"], claims(summary)["clean"]
    p = [d.primary.interval.p_value for d in noisy.differences]
    assert p[0] < p[1]
    assert noisy.baseline.adjusted_p == pytest.approx(2 * p[0])  # Holm of two, by hand
    assert noisy.controls[0].adjusted_p == pytest.approx(max(2 * p[0], p[1]))
    assert clean.baseline.adjusted_p is None
    assert "outside the recipe's family: exploratory" in clean.notes
    assert any("2 comparisons that the recipe names as its family" in note for note in summary.notes)


def test_a_scenario_in_the_family_is_every_gain_in_it(run: RunFolder) -> None:
    name_in_recipe(run, family=[{"scenario": "clean", "arm": None, "against": None}])
    found = claims(summarise(run.folder))
    assert found["clean"].baseline.adjusted_p == found["clean"].baseline.primary.interval.p_value
    assert found["clean"].controls[0].adjusted_p is None
    assert claims(summarise(run.folder), "random")["clean"].baseline.adjusted_p is None  # a control claims nothing


def test_a_control_that_the_family_names_is_judged_too(run: RunFolder) -> None:
    assert claims(summarise(run.folder), "random")["clean"].kind == "control"
    name_in_recipe(run, family=[{"scenario": "clean", "arm": "random", "against": None}])
    found = claims(summarise(run.folder), "random")["clean"]
    assert found.kind == "no gain"
    assert found.baseline.adjusted_p == 1
    assert claims(summarise(run.folder))["clean"].controls[0].against == "random"


def test_all_rows_are_no_part_of_the_mean_over_shares() -> None:
    points = [Point("few-shot", f"few-shot/unlabelled-train/share@{s:g}", "share", s) for s in (0.1, 0.5, 1)]
    made, primary, words = columns(points, {})
    assert [column.label for column in made] == ["0.1", "0.5", "1", "mean"]
    assert made[primary].points == tuple(points[:2])
    assert words == "mean accuracy over 2 shares of the rows"
    shots = [Point("few-shot", f"few-shot/unlabelled-train@{k}", "shots", k) for k in (1, 4)]
    made, primary, words = columns(shots, {})
    assert made[primary].points == tuple(shots)  # one shot is few
    assert words == "mean accuracy over 2 numbers of shots"


def test_a_comparison_without_a_score_still_counts(run_folder: Make) -> None:
    made = run_folder(ARMS, ["clean"], seeds=1)
    made.test("t", [str(i) for i in range(ROWS)], np.zeros(ROWS, dtype=np.int64))
    name_in_recipe(made, family=[
        {"scenario": "clean", "arm": "sae", "against": None},
        {"scenario": "clean", "arm": "sae", "against": "random"},
    ])  # fmt: skip
    made.score("raw", np.arange(ROWS) < 300)
    made.score("sae", np.arange(ROWS) < 310)
    found = claims(summarise(made.folder))["clean"]
    assert found.baseline.adjusted_p == pytest.approx(2 * found.baseline.primary.interval.p_value)
    assert found.controls[0].adjusted_p == 1


def test_the_margin_is_the_recipes(run_folder: Make) -> None:
    made = run_folder([ARMS[0], {**ARMS[2], "controls": []}], ["clean"], seeds=1)
    made.test("t", [str(i) for i in range(ROWS)], np.zeros(ROWS, dtype=np.int64))
    made.score("raw", np.arange(ROWS) < 300)
    made.score("sae", np.arange(ROWS) < 302)
    name_in_recipe(made, margin=1.0)
    assert claims(summarise(made.folder))["clean"].kind == "undetermined"  # 0.5 points, 90 % interval [−0.1, 1.1]
    name_in_recipe(made, margin=2.0)
    found = claims(summarise(made.folder))["clean"]
    assert found.kind == "no gain"
    assert "within ±2.0 points" in found.sentence


def test_sizes_and_what_seeds_redraw_stand_beside_stars(run: RunFolder) -> None:
    summary = summarise(run.folder)
    gain = claims(summary)["clean"].baseline
    assert gain.fewer_errors.value == pytest.approx(40 / 100)
    assert 0 < gain.fewer_errors.low < 0.4 < gain.fewer_errors.high < 1
    text = markdown(summary)
    assert "fewer errors, %" in text
    assert r"+40 \[+" in text
    assert "| one seed |" in text


def test_what_varies_is_told_apart(run_folder: Make) -> None:
    made = run_folder(ARMS, ["label-noise"], seeds=3)
    made.test("t", [str(i) for i in range(ROWS)], np.zeros(ROWS, dtype=np.int64))
    noise = {
        "scenario": "label-noise",
        "series": "symmetric",
        "level": 0.4,
        "protocol": "label-noise/symmetric@0.4",
    }
    generator = np.random.default_rng(0)
    for seed in range(3):
        for arm in ("raw", "random", "sae"):
            fitted = {} if arm == "raw" else {"adapter_seed": seed}
            made.score(arm, generator.random(ROWS) < 0.7, draw=seed, conditional=True, **noise, **fitted)
    summary = summarise(made.folder)
    found = claims(summary)["label-noise"]
    assert found.baseline.varied == ("adapter", "draw")
    assert any("Each seed redraws at once the adapter and draw and nothing else" in note for note in summary.notes)
    share = round(100 * found.baseline.primary.interval.unit_share)
    assert f"adapter + draw: {share} %" in markdown(summary)


def test_an_accuracy_of_all_rows_has_a_width(run_folder: Make) -> None:
    made = run_folder(ARMS[:1], ["clean"], seeds=1)
    made.test("t", [str(i) for i in range(ROWS)], np.zeros(ROWS, dtype=np.int64))
    made.score("raw", np.ones(ROWS, dtype=bool))
    assert "100.0 ± 1.0" in markdown(summarise(made.folder))  # t² / (400 + t²) = 0.96 %
