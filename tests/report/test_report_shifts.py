"""Tables of held-out domains and subclasses, whose columns are scored on unlike rows; numbers worked by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from report_study import ARMS, RunFolder

from monoeval.metrics.dictionary import WIDEST_EXACT
from monoeval.report import summarise
from monoeval.report.model import Table
from monoeval.report.wording import adapter_table

Make = Callable[..., RunFolder]
PAIR = [ARMS[0], {**ARMS[2], "controls": []}]
SIZES = {"photo": 40, "sketch": 10, "art": 25}


def domains(run: RunFolder) -> dict[str, dict[str, np.ndarray]]:
    """Scores of two arms on each domain, and on the test rows of the others; returns correctness by arm."""
    rng = np.random.default_rng(0)
    made: dict[str, dict[str, np.ndarray]] = {arm["name"]: {} for arm in PAIR}
    for domain, size in SIZES.items():
        run.test(domain, [f"{domain}/{i}" for i in range(size)], np.zeros(size, dtype=np.int64))
        others = [f"{d}/test/{i}" for d in SIZES if d != domain for i in range(5)]
        run.test(f"without-{domain}", others, np.zeros(10, dtype=np.int64))
        for name, found in made.items():
            found[domain] = rng.random(size) < (0.5 if name == "raw" else 0.7)
            found[f"without-{domain}"] = rng.random(10) < 0.8
            for level, test in enumerate((f"without-{domain}", domain)):
                place = {"series": domain, "level": float(level), "protocol": f"ood/set/{test}"}
                run.score(name, found[test], test, scenario="ood", **place)
    return made


def only_table(run: RunFolder) -> Table:
    (table,) = summarise(run.folder).tables
    return table


def test_held_out_domains_share_a_table_and_count_once_each(run_folder: Make) -> None:
    run = run_folder(PAIR, ["ood"], seeds=1)
    correct = domains(run)
    table = only_table(run)
    assert [c.label for c in table.columns] == ["other domains", "photo", "sketch", "art", "mean"]
    assert table.primary_label == "mean accuracy over 3 held-out domains"
    assert table.primary == 4
    for arm, found in correct.items():
        cells = [cell.interval.mean for cell in table.cells[arm] if cell.interval]
        held_out = [found[d].mean() for d in SIZES]
        sources = np.mean([found[f"without-{d}"].mean() for d in SIZES])
        assert cells == pytest.approx([sources, *held_out, np.mean(held_out)])


def test_the_interval_over_domains_is_that_of_a_stratified_mean(run_folder: Make) -> None:
    run = run_folder(PAIR, ["ood"], seeds=1)
    correct = domains(run)
    interval = only_table(run).comparisons[0].baseline.primary.interval
    assert interval is not None
    gains = [correct["sae"][d].astype(float) - correct["raw"][d] for d in SIZES]
    assert interval.mean == pytest.approx(np.mean([g.mean() for g in gains]))
    rows = sum(SIZES.values())
    # Σ_d s_d² / n_d over D², each s_d² with n_d below; a mean over rows has R − 1 below instead of R
    variance = sum(((g - g.mean()) ** 2).sum() / len(g) ** 2 for g in gains) / len(gains) ** 2
    assert interval.standard_error == pytest.approx(np.sqrt(variance * rows / (rows - 1)))


def test_one_held_out_domain_is_the_summary_itself(run_folder: Make) -> None:
    run = run_folder(PAIR, ["ood"], seeds=1)
    run.test("s", ["s/0", "s/1"], np.zeros(2, dtype=np.int64))
    run.test("o", ["o/0", "o/1"], np.zeros(2, dtype=np.int64))
    for arm in ("raw", "sae"):
        for level, test in enumerate("os"):
            place = {"series": "sketch", "level": float(level), "protocol": f"ood/set/{test}"}
            run.score(arm, np.array([True, arm == "sae"]), test, scenario="ood", **place)
    table = only_table(run)
    assert [c.label for c in table.columns] == ["other domains", "sketch"]
    assert (table.primary, table.primary_label) == (1, "accuracy on sketch, which was held out")


def test_subclasses_that_share_no_row_between_seeds_leave_the_seeds_alone_to_vary(run_folder: Make) -> None:
    """With disjoint rows seeds are independent, and the standard error is that of a mean of two numbers."""
    run = run_folder(PAIR, ["subpopulation"], seeds=2)
    rng = np.random.default_rng(1)
    gains = []
    for draw in (0, 1):
        correct = {}
        for level, classes in ((0.0, "seen"), (1.0, "new")):
            test = f"{classes}{draw}"
            run.test(test, [f"{test}/{i}" for i in range(20 + draw)], np.zeros(20 + draw, dtype=np.int64))
            place = {"series": "h", "level": level, "protocol": f"subpopulation/h/train-3@{level:g}", "draw": draw}
            for arm, chance in (("raw", 0.1), ("sae", (0.9, 0.2)[draw])):
                correct[arm] = rng.random(20 + draw) < chance
                run.score(arm, correct[arm], test, scenario="subpopulation", **place)
        gains.append(correct["sae"].mean() - correct["raw"].mean())
    table = only_table(run)
    assert [c.label for c in table.columns] == ["trained subclasses", "held-out subclasses"]
    interval = table.comparisons[0].baseline.primary.interval
    assert interval is not None
    assert interval.mean == pytest.approx(np.mean(gains))
    assert interval.standard_error == pytest.approx(abs(gains[0] - gains[1]) / 2)
    assert interval.degrees_of_freedom == pytest.approx(1, abs=0.2)


def test_what_a_change_adds_to_l0_and_explained_variance_is_shown(run_folder: Make) -> None:
    run = run_folder(PAIR, ["clean"], seeds=1)
    run.test("t", ["a", "b"], np.zeros(2, dtype=np.int64))
    for level, l0, explained in ((1.0, 12.0, 0.5), (2.0, 7.0, 0.2)):
        drift = {"l0_clean": 10.0, "l0_corrupted": l0, "explained_clean": 0.8, "explained_corrupted": explained}
        place = {"series": "fog", "level": level, "protocol": f"corruption/{level}", "scenario": "corruption"}
        run.score("sae", np.array([True, True]), drift={"cosine": 0.5, **drift}, **place)
        raw = {"cosine": 0.9, "l0_clean": 8.0, "l0_corrupted": 8.0}  # raw features have no way back
        run.score("raw", np.array([True, True]), drift=raw, **place)
    headings, lines = adapter_table(summarise(run.folder))
    raw, sae = (dict(zip(headings, line, strict=True)) for line in lines)
    assert [sae[f"{name} shift under change"] for name in ("L0", "explained variance")] == ["-0.5", "-0.450"]
    assert [raw[f"{name} shift under change"] for name in ("L0", "explained variance")] == ["+0.0", ""]


@pytest.mark.parametrize("exact", [0.0, 1.0])
def test_a_greedy_matching_is_told(run_folder: Make, exact: float) -> None:
    run = run_folder(PAIR, ["clean"], seeds=1)
    run.test("t", ["a", "b"], np.zeros(2, dtype=np.int64))
    run.score("raw", np.array([True, False]))
    found = {"stability": 0.5, "stability_chance": 0.1, "stability_exact": exact}
    run.score("sae", np.array([True, True]), adapter=found)
    summary = summarise(run.folder)
    told = [note for note in summary.notes if "stability over seeds of sae was matched greedily" in note]
    assert bool(told) == (exact == 0)
    assert all(f"more than {WIDEST_EXACT:,} latents" in note for note in told)
    assert "stability exact" not in adapter_table(summary)[0]


def test_measures_are_averaged_over_what_was_fitted(run_folder: Make) -> None:
    run = run_folder(PAIR, ["clean"], seeds=1)
    run.test("t", ["a", "b"], np.zeros(2, dtype=np.int64))
    for train, l0 in (("one", 10.0), ("one", 10.0), ("other", 40.0)):
        place = {"train": train, "adapter": {"l0": l0}, "level": l0, "protocol": f"clean@{l0}{run.count}"}
        run.score("sae", np.array([True, True]), **place)
    assert summarise(run.folder).adapters["sae"]["l0"] == 25
