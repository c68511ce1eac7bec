"""Summary measures against scikit-learn, hand-worked numbers, and the delta method."""

from collections.abc import Callable

import numpy as np
import pytest
from report_study import ARMS, RunFolder
from rich.console import Console
from sklearn.metrics import balanced_accuracy_score

from monoeval.metrics.paired import paired_difference
from monoeval.metrics.scores import ALEXNET_ERROR, area_under_levels, balanced, level_weights
from monoeval.report import summarise
from monoeval.report.html import html
from monoeval.report.markdown import markdown
from monoeval.report.model import Table, Value
from monoeval.report.terminal import _MEASURE, render
from monoeval.report.wording import overview
from monoeval.scenarios import SCENARIOS

Make = Callable[..., RunFolder]
PAIR = [ARMS[0], {**ARMS[2], "controls": []}]
IDS = [str(i) for i in range(200)]


def value(table: Table, name: str, arm: str = "raw") -> Value:
    (found,) = (m for m in table.measures if m.name == name)
    return found.values[arm]


def noise(rate: float, signal: float = 0.5) -> dict[str, object]:
    return {"scenario": "label-noise", "series": "symmetric", "level": rate, "label_signal": signal,
            "protocol": f"label-noise/symmetric@{rate:g}"}  # fmt: skip


def test_weights_of_levels_make_the_area() -> None:
    rng = np.random.default_rng(0)
    levels, accuracy = rng.permutation([0, 0.1, 0.5, 0.9]), rng.uniform(size=4)
    order = np.argsort(levels)
    expected = np.trapezoid(accuracy[order], levels[order]) / 0.9
    assert level_weights(levels) @ accuracy == pytest.approx(expected)
    assert area_under_levels(levels, accuracy) == pytest.approx(expected)
    assert level_weights(levels).sum() == pytest.approx(1)


def test_balanced_values_average_to_balanced_accuracy_and_spread_as_strata() -> None:
    rng = np.random.default_rng(1)
    labels = rng.choice(4, 500, p=[0.7, 0.2, 0.07, 0.03])
    predicted = np.where(rng.uniform(size=500) < 0.5 + labels / 10, labels, (labels + 1) % 4)
    right = (predicted == labels).astype(float)[:, None]
    found = paired_difference(balanced(right, labels))
    assert found.mean == pytest.approx(balanced_accuracy_score(labels, predicted))
    strata = [right[labels == c, 0] for c in range(4)]
    assert found.standard_error**2 == pytest.approx(sum(s.var(ddof=1) / len(s) for s in strata) / 16, rel=0.01)
    # every class alike and all of one accuracy: nothing is left of what differs between classes
    assert (balanced(np.ones((500, 1)), labels) == 1.0).all()


def test_area_over_levels_with_signal_and_relative_accuracy(run_folder: Make) -> None:
    run = run_folder(ARMS[:1], ["label-noise"], seeds=1)
    run.test("t", IDS, np.arange(200) % 10)
    hits = {0.0: 180, 0.2: 160, 0.6: 100, 0.9: 10}
    for rate, n in hits.items():
        run.score("raw", np.arange(200) < n, **noise(rate, 0.0 if rate == 0.9 else 0.5))
    (table,) = summarise(run.folder).tables
    assert value(table, "area_symmetric").mean == pytest.approx((0.85 * 0.2 + 0.65 * 0.4) / 0.6)
    assert value(table, "relative_accuracy").mean == pytest.approx(0.65 / 0.9)
    # the area's rows by hand: weights 1/6, 1/2, 1/3
    rows = (np.arange(200)[:, None] < [180, 160, 100]) @ np.array([1 / 6, 1 / 2, 1 / 3])
    by_hand = paired_difference(rows[:, None])
    assert value(table, "area_symmetric").low == pytest.approx(by_hand.low)


def test_a_ratio_has_the_interval_of_the_delta_method(run_folder: Make) -> None:
    run = run_folder(ARMS[:1], ["label-noise"], seeds=2)
    rng = np.random.default_rng(2)
    run.test("t", IDS, np.arange(200) % 10)
    clean, noisy = rng.uniform(size=200) < 0.8, rng.uniform(size=(200, 2)) < 0.5
    run.score("raw", clean, **noise(0.0))
    for seed in (0, 1):
        run.score("raw", noisy[:, seed] & clean, draw=seed, **noise(0.4))
    (table,) = summarise(run.folder).tables
    a, c = (noisy & clean[:, None]).astype(float), clean[:, None].astype(float)
    ratio = a.mean() / c.mean()
    by_hand = paired_difference(ratio + (a - ratio * c) / c.mean())
    found = value(table, "relative_accuracy")
    assert (found.mean, found.low, found.high) == pytest.approx((ratio, by_hand.low, by_hand.high))


def test_the_gap_of_unlike_test_sets_spreads_as_two_samples(run_folder: Make) -> None:
    run = run_folder(ARMS[:1], ["ood"], seeds=1)
    run.test("t", IDS, np.arange(200) % 10)
    run.test("far", [f"far/{i}" for i in range(50)], np.arange(50) % 10)
    near, far = np.arange(200) < 170, np.arange(50) < 20
    for level, test, right in ((0.0, "t", near), (1.0, "far", far)):
        place = {"series": "digits → printed", "level": level, "protocol": f"ood/digits/{test}"}
        run.score("raw", right, test, scenario="ood", **place)
    (table,) = summarise(run.folder).tables
    found = value(table, "gap")
    assert found.mean == pytest.approx(0.85 - 0.4)
    error = np.sqrt(near.var() / 200 + far.var() / 50)
    assert (found.high - found.low) / 2 == pytest.approx(1.97 * error, rel=0.01)
    assert value(table, "relative_accuracy").mean == pytest.approx(0.4 / 0.85)


def test_worst_class_and_what_the_ledger_keeps(run_folder: Make) -> None:
    run = run_folder(PAIR, ["clean"], seeds=2)
    labels = np.arange(200) % 10
    run.test("t", IDS, labels)
    run.score("raw", labels != 3, measures={"ece": 0.04, "ece_t": 0.03, "auroc_energy": 0.9})
    for seed in (0, 1):  # class 3 is wrong in one seed, class 5 half wrong in both
        right = ((labels != 3) | (seed == 0)) & ((labels != 5) | (np.arange(200) < 100))
        run.score("sae", right, adapter_seed=seed, measures={"ece": 0.1 * seed})
    summary = summarise(run.folder)
    (table,) = summary.tables
    assert value(table, "worst_class") == Value(0.0)
    assert value(table, "worst_class", "sae") == Value(0.5)
    assert value(table, "ece", "sae") == Value(0.05)
    assert value(table, "balanced_accuracy").mean == pytest.approx(0.9)
    assert overview(summary)[0] == ["arm", "clean: ECE", "clean: ECE, scaled"]
    assert overview(summary)[1] == [["raw", "4.0", "3.0"], ["sae", "5.0", "n/a"]]
    (auroc,) = (m for m in table.measures if m.name == "auroc_energy")
    assert auroc.values == {"raw": Value(0.9)}
    assert "relative_accuracy" not in {m.name for m in table.measures}


@pytest.mark.parametrize("where", ["imagenet-c.official", "imagenet-c.onthefly"])
def test_mce_is_of_the_published_files_alone(run_folder: Make, where: str) -> None:
    run = run_folder([ARMS[0]], ["corruption"], seeds=1)
    run.test("t", IDS, np.arange(200) % 10)
    shares = []
    for number, (kind, alexnet) in enumerate(ALEXNET_ERROR.items()):
        for level in range(6):
            wrong = 20 + (level and number + 10 * level)  # of 200: a clean error of a tenth
            place = {"scenario": "corruption", "series": kind, "level": level,
                     "protocol": f"corruption/{where}/{kind}@{level}/224"}  # fmt: skip
            run.score("raw", np.arange(200) >= wrong, **place)
        error = (20 + number + 30) / 200  # the mean over severities
        shares.append((error / alexnet, (error - 0.1) / (alexnet - 0.4348)))
    (table,) = summarise(run.folder).tables
    if where == "imagenet-c.onthefly":
        assert not {"mce", "relative_mce"} & {m.name for m in table.measures}
        return
    assert value(table, "mce").mean == pytest.approx(np.mean([share for share, _ in shares]))
    assert value(table, "relative_mce").mean == pytest.approx(np.mean([share for _, share in shares]))


def test_imbalance_is_judged_by_balanced_accuracy(run_folder: Make) -> None:
    run = run_folder(PAIR, ["imbalance"], seeds=2)
    rng = np.random.default_rng(3)
    labels = rng.choice(4, 200, p=[0.7, 0.2, 0.06, 0.04])
    run.test("t", IDS, labels)
    right = {arm: rng.uniform(size=(200, 2)) < p for arm, p in (("raw", 0.4), ("sae", 0.9))}
    for ratio in (1.0, 100.0):
        for seed in (0, 1):
            place = {"series": "exponential", "level": ratio, "protocol": f"imbalance/exponential@{ratio:g}"}
            for arm, bits in right.items():
                run.score(arm, bits[:, seed], scenario="imbalance", draw=seed, **place)
    (table,) = summarise(run.folder).tables
    assert table.primary_label == "balanced accuracy at 100"
    assert table.quantity == "balanced accuracy"

    def score(arm: str) -> float:
        wrong = (labels + 1) % 10
        made = [balanced_accuracy_score(labels, np.where(b, labels, wrong)) for b in right[arm].T]
        return float(np.mean(made))

    with pytest.warns(UserWarning, match="y_pred contains classes"):
        raw, sae = score("raw"), score("sae")
    assert table.cells["raw"][table.primary].interval.mean == pytest.approx(raw)
    assert table.comparisons[0].baseline.primary.interval.mean == pytest.approx(sae - raw)
    assert value(table, "balanced_accuracy", "sae").mean == pytest.approx(sae)


def test_every_format_has_the_measures(full_study: RunFolder) -> None:
    summary = summarise(full_study.folder)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(*render(summary), sep="\n")
    text = console.export_text()
    assert text.count("Summary measures, %") == 1
    assert max(map(len, text.splitlines())) <= 100
    for page in (markdown(summary), html(summary, {})):
        assert "gap to the source" in page
        assert "area, gaussian" in page


def test_no_scenario_is_cut_short_above_its_summary_measure() -> None:
    assert max(len(f"{name}:") for name in SCENARIOS) <= _MEASURE
