"""The line of standard models, and what lies beyond it: closed forms, a report, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from report_study import ARMS, RunFolder
from scipy.special import expit, logit
from typer.testing import CliRunner

from monoeval.cli.main import app
from monoeval.data.images import DataSpec
from monoeval.errors import UsageError
from monoeval.metrics.scores import effective_robustness, standard_line
from monoeval.report import summarise
from monoeval.report.summary import to_json
from monoeval.report.wording import measure, overview
from monoeval.scenarios.ood import OutOfDomain
from monoeval.suite.changes import changed
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe_files import load_recipe

PAIR = [ARMS[0], {**ARMS[2], "controls": []}]
CLEAN = np.array([0.6, 0.7, 0.8, 0.9])
EXACT = [[float(c), float(expit(0.9 * logit(c) - 0.5))] for c in CLEAN]
"""Standard models that all lie on logit(shifted) = 0.9 · logit(clean) − 0.5."""


def test_a_line_through_models_that_lie_on_it() -> None:
    line = standard_line(*np.transpose(EXACT))
    assert (line.slope, line.intercept, line.r2) == pytest.approx((0.9, -0.5, 1))
    assert (line.models, line.low, line.high) == (4, 0.6, 0.9)
    for clean, shifted in EXACT:
        assert effective_robustness(shifted, clean, line.slope, line.intercept) == pytest.approx(0)


def test_the_line_is_that_of_least_squares_in_logits() -> None:
    """Three models whose logits are (−1, 0), (0, 3), (1, 0): slope 0, mean 1, and nothing explained."""
    line = standard_line(expit([-1, 0, 1]), expit([0, 3, 0]))
    assert (line.slope, line.intercept, line.r2) == pytest.approx((0, 1, 0), abs=1e-12)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20))
    line = standard_line(expit(x), expit(y))
    assert (line.slope, line.intercept) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    assert line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


@pytest.fixture
def shift(run_folder: Callable[..., RunFolder]) -> RunFolder:
    """Two arms on 50 rows of the data (40 and 45 right) and on 100 rows of another set (60 and 75 right)."""
    run = run_folder(PAIR, ["ood"], seeds=1)
    path = run.folder / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    recipe["scenarios"] = [{"name": "ood", "standard": {"far": EXACT}}]
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    for name, n in (("near", 50), ("far", 100)):
        run.test(name, [f"{name} {i}" for i in range(n)], np.zeros(n, dtype=np.int64))
    for arm, near, far in (("raw", 40, 60), ("sae", 45, 75)):
        for level, (name, right, n) in enumerate((("near", near, 50), ("far", far, 100))):
            place = {"series": "near → far", "level": float(level), "protocol": f"ood/near/{name}"}
            run.score(arm, np.arange(n) < right, name, scenario="ood", **place)
    return run


def test_the_report_has_both_robustnesses_and_says_what_line_it_is(shift: RunFolder) -> None:
    summary = summarise(shift.folder)
    measures = {m.name: m for m in summary.tables[0].measures}
    effective, relative = measures["effective_robustness_far"], measures["relative_robustness_far"]
    assert (effective.label, relative.label) == ("effective robustness", "relative robustness")
    for arm, clean, far in (("raw", 0.8, 0.6), ("sae", 0.9, 0.75)):
        assert effective.values[arm].mean == pytest.approx(far - expit(0.9 * logit(clean) - 0.5))
    assert list(relative.values) == ["sae"]
    assert relative.values["sae"].mean == pytest.approx(0.15)
    assert measure(effective, "raw").startswith("−7.9 ± ")
    assert overview(summary)[0] == ["arm", "ood: effective robustness"]
    (note,) = (note for note in summary.notes if "standard models" in note)
    assert "to far is the accuracy beyond σ(0.90 · logit(clean) − 0.50)" in note
    assert "of 4 standard models that the recipe gives (R² = 1.00, clean accuracy 60.0 to 90.0 %)" in note
    assert "effective robustness" in json.dumps(to_json(summary))


def test_the_interval_takes_in_both_test_sets(shift: RunFolder) -> None:
    """Rows of the two sets are independent, so variances add, that of clean times the line's slope squared."""
    value = next(
        m.values["raw"] for m in summarise(shift.folder).tables[0].measures if m.name == "effective_robustness_far"
    )
    assert value.low is not None
    assert value.high is not None
    step = 1e-6
    slope = (expit(0.9 * logit(0.8 + step) - 0.5) - expit(0.9 * logit(0.8 - step) - 0.5)) / (2 * step)
    error = np.sqrt(0.6 * 0.4 / 100 + slope**2 * 0.8 * 0.2 / 50)
    assert (value.high - value.low) / 2 == pytest.approx(1.976 * error, rel=0.01)  # t of 149 degrees of freedom


def test_without_a_line_there_is_neither(shift: RunFolder) -> None:
    path = shift.folder / "recipe.yaml"
    path.write_text(path.read_text().replace("far:", "elsewhere:"))
    summary = summarise(shift.folder)
    assert not [m for m in summary.tables[0].measures if "robustness" in m.name]
    assert not [note for note in summary.notes if "standard models" in note]


def study(standard: object, **more: Any) -> dict[str, Any]:
    scenario = {"name": "ood", "target": "digits-printed", "standard": standard}
    return {"data": {"name": "digits", "limit": 50}, "models": ["test_vit"], "scenarios": [scenario], **more}


def test_a_file_becomes_part_of_the_recipe_and_of_no_key(tmp_path: Path) -> None:
    path = tmp_path / "models.csv"
    path.write_text("name,clean,shifted\n" + "".join(f"m,{clean},{shifted}\n" for clean, shifted in EXACT))
    recipe = load_recipe(study({"digits-printed": str(path)}))
    assert recipe.model_dump(mode="json")["scenarios"][0]["standard"] == {"digits-printed": EXACT}
    assert load_recipe(study({"digits-printed": EXACT})).key() == recipe.key() != load_recipe(study({})).key()
    with_line, without = (make_plan(load_recipe(study(s))) for s in ({"digits-printed": EXACT}, {}))
    assert [g.keys for g in with_line.groups] == [g.keys for g in without.groups]


def test_another_target_or_other_data_leave_the_line_behind(tmp_path: Path) -> None:
    recipe = load_recipe(study({"digits-printed": EXACT}))

    def standard(**replaced: Any) -> dict[str, Any]:
        (scenario,) = changed(recipe, **replaced).scenarios
        assert isinstance(scenario, OutOfDomain)
        return scenario.standard

    assert standard(seeds=1)
    assert standard(target=[DataSpec(name="digits-printed")])
    assert not standard(target=[DataSpec(name=str(tmp_path))])
    assert not standard(data=DataSpec(name="digits-printed"), target=[DataSpec(name="digits")])


@pytest.mark.parametrize(
    ("standard", "says"),
    [
        (
            {"digits-print": EXACT},
            "There is no target of ood named 'digits-print': did you mean 'digits-printed'?",
        ),
        (
            {"digits-printed": [[76.1, 40.0], [80.0, 41.0], [85.0, 50.0]]},
            "are shares, such as 0.761, and 76.1 does not lie between 0 and 1",
        ),
        ({"digits-printed": EXACT[:2]}, "at least 3 standard models of unlike clean accuracies"),
        ({"digits-printed": [EXACT[0]] * 4}, "at least 3 standard models of unlike clean accuracies"),
        ({"digits-printed": "none.csv"}, "the accuracies in none.csv cannot be read (No such file or directory)"),
        ({"digits-printed": "odd.csv"}, "odd.csv has no columns clean and shifted: give it a heading"),
        ({"digits-printed": "words.csv"}, "unable to parse string as a number"),
    ],
)
def test_lines_that_cannot_be_are_one_sentence(
    standard: object, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.csv").write_text("name,accuracy\na,0.5\n")
    Path("words.csv").write_text("clean,shifted\n0.5,0.4\n0.6,none\n0.7,0.6\n")
    Path("study.yaml").write_text(yaml.safe_dump(study(standard)))
    error = CliRunner().invoke(app, ["suite", "--recipe", "study.yaml", "--dry-run"]).exception
    assert isinstance(error, UsageError)
    assert says in str(error)
