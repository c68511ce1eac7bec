"""The numbers of a report, against hand-worked ones."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_allclose
from report_study import ARMS, RunFolder

from monoeval.adapters.rows import TrainingRows
from monoeval.errors import MonoevalError, UsageError
from monoeval.metrics.paired import paired_difference
from monoeval.report import summarise, to_json
from monoeval.report.markdown import markdown
from monoeval.report.model import Comparison, Summary, Table
from monoeval.report.wording import about

Make = Callable[..., RunFolder]
IDS = ["a", "b", "c", "d"]
LABELS = np.array([0, 1, 2, 3])
PAIR = [ARMS[0], {**ARMS[2], "controls": []}]


def bits(text: str) -> np.ndarray:
    """Correctness of each row, written as ones and zeros."""
    return np.array([c == "1" for c in text])


def table(summary: Summary, scenario: str) -> Table:
    (found,) = (t for t in summary.tables if t.scenario == scenario)
    return found


def claim(summary: Summary, scenario: str, arm: str = "sae") -> Comparison:
    (found,) = (c for c in table(summary, scenario).comparisons if c.arm == arm)
    return found


def noise(rate: float, signal: float = 0.5) -> dict[str, object]:
    return {"scenario": "label-noise", "series": "symmetric", "level": rate, "label_signal": signal,
            "protocol": f"label-noise/symmetric@{rate:g}"}  # fmt: skip


def test_a_score_without_seeds_stands_beside_every_seed(run_folder: Make) -> None:
    run = run_folder(PAIR, ["clean"], seeds=2)
    run.test("t", IDS, LABELS)
    run.score("raw", bits("1010"))
    run.score("sae", bits("1110"), adapter_seed=0)
    run.score("sae", bits("1111"), adapter_seed=1)
    summary = summarise(run.folder)
    cells = table(summary, "clean").cells
    assert cells["raw"][0].interval.mean == 0.5
    assert cells["sae"][0].interval.mean == 0.875
    delta = np.array([[0, 0], [1, 1], [0, 0], [0, 1]])  # rows × seeds, by hand
    gain = claim(summary, "clean").baseline.primary.interval
    assert gain == paired_difference(delta)
    assert (gain.mean, gain.units, gain.rows) == (0.375, 2, 4)


def test_rows_are_paired_by_id_and_not_by_place(run_folder: Make) -> None:
    run = run_folder(PAIR, ["clean"], seeds=1)
    run.test("t", IDS, LABELS)
    run.test("shuffled", ["d", "x", "b", "a", "c"], np.array([3, 9, 1, 0, 2]))
    run.score("raw", bits("1010"))
    run.score("sae", bits("00110"), "shuffled")  # d 0, x 0, b 1, a 1, c 0
    gain = claim(summarise(run.folder), "clean").baseline.primary
    assert gain.interval == paired_difference([[0], [1], [-1], [0]])
    assert any("4 of 5 test rows" in remark for remark in gain.remarks)


def test_groups_reach_the_statistics(run_folder: Make) -> None:
    run = run_folder(PAIR, ["clean"], seeds=1)
    run.test("t", IDS, LABELS, groups=np.array([7, 7, 8, 9]))
    run.score("raw", bits("1010"))
    run.score("sae", bits("1101"))
    gain = claim(summarise(run.folder), "clean").baseline.primary.interval
    assert gain == paired_difference([[0], [1], [-1], [1]], [7, 7, 8, 9])


def test_levels_without_signal_are_shown_but_outside_the_mean(run_folder: Make) -> None:
    run = run_folder(ARMS[:1], ["label-noise"], seeds=1)
    run.test("t", IDS, LABELS)
    for rate, signal, correct in ((0.0, 1.0, "1111"), (0.4, 0.5, "1110"), (0.5, 0.4, "1100"), (0.9, 0.0, "0000")):
        run.score("raw", bits(correct), **noise(rate, signal))
    made = table(summarise(run.folder), "label-noise")
    assert [c.label for c in made.columns] == ["0", "0.4", "0.5", "0.9", "mean"]
    assert [c.negative_control for c in made.columns] == [False, False, False, True, False]
    # rate 0 changes nothing and 0.9 carries nothing: the mean is over the two between
    assert [cell.interval.mean for cell in made.cells["raw"]] == [1.0, 0.75, 0.5, 0.0, 0.625]


def test_an_adapter_no_better_than_its_untrained_self_gets_no_verdict(run_folder: Make) -> None:
    """From the names a real autoencoder gives its measures, not from names of this test's own."""
    import torch

    from monoeval.adapters.registry import build
    from monoeval.adapters.spec import AdapterSpec
    from monoeval.backbones.features import FeatureSet

    features = run_folder(PAIR, ["clean"], seeds=2)
    path = features.folder / "00000-x.npy"
    np.save(path, np.random.default_rng(0).standard_normal((64, 8), dtype=np.float32))
    adapter = build(AdapterSpec(method="sae", params={"width": 16, "k": 2, "steps": 0}))
    measures = adapter.fit(TrainingRows(FeatureSet("f", (path,)), None, torch.device("cpu")), seed=0).report()
    features.test("t", IDS, LABELS)
    for seed in (0, 1):
        features.score("raw", bits("1000"), backbone_seed=seed)
        features.score("sae", bits("1100"), backbone_seed=seed, adapter_seed=seed, adapter=measures)
    comparison = claim(summarise(features.folder), "clean")
    assert comparison.kind == "no verdict"
    assert "not trained" in comparison.sentence


def test_repeats_are_averaged_within_a_seed_and_paired_by_number(run_folder: Make) -> None:
    run = run_folder(PAIR, ["few-shot"], seeds=1)
    run.test("t", IDS, LABELS)
    place = {"scenario": "few-shot", "series": "shots", "level": 1, "protocol": "few-shot/unlabelled-train@1"}
    for repeat, raw, sae in ((0, "1000", "1100"), (1, "1100", "1111"), (2, "0000", None)):
        run.score("raw", bits(raw), draw=0, repeat=repeat, **place)
        run.score("sae", None if sae is None else bits(sae), draw=0, repeat=repeat, **place)
    summary = summarise(run.folder)
    gain = claim(summary, "few-shot").baseline.primary
    assert gain.interval == paired_difference([[0], [0.5], [0.5], [0.5]])
    assert any("repeat" in remark for remark in gain.remarks)
    assert table(summary, "few-shot").cells["raw"][0].interval.mean == pytest.approx(0.25)


def test_a_level_without_signal_in_one_draw_is_a_negative_control(run_folder: Make) -> None:
    run = run_folder(PAIR, ["label-noise"], seeds=2)
    run.test("t", IDS, LABELS)
    for draw, signal in enumerate((-0.01, 0.02)):  # instance noise: what a draw leaves is its own
        for arm in ("raw", "sae"):
            run.score(arm, bits("1100"), draw=draw, **noise(0.6, signal))
            run.score(arm, bits("1100"), draw=draw, **noise(0.4))
    assert [c.negative_control for c in table(summarise(run.folder), "label-noise").columns] == [False, True]


def test_a_failed_level_is_not_available_and_left_out_of_pairs(run_folder: Make) -> None:
    run = run_folder(PAIR, ["label-noise"], seeds=1)
    run.test("t", IDS, LABELS)
    run.score("raw", bits("1100"), **noise(0.2))
    run.score("raw", bits("1000"), **noise(0.4))
    run.score("sae", bits("1110"), **noise(0.2))
    run.score("sae", None, **noise(0.4))
    summary = summarise(run.folder)
    cells = table(summary, "label-noise").cells["sae"]
    assert [cell.interval is None for cell in cells] == [False, True, True]
    assert "out of memory" in cells[1].remarks[0]
    comparison = claim(summary, "label-noise")
    assert comparison.baseline.primary.interval.mean == 0.25  # on 0.2 alone
    assert any("1 of 2 levels, without symmetric 0.4" in note for note in comparison.notes)
    assert any("1 of 4 scores have no result" in note for note in summary.notes)


def test_one_level_that_one_seed_lacks_gives_way_rather_than_the_seed(run_folder: Make) -> None:
    run = run_folder(PAIR, ["label-noise"], seeds=2)
    run.test("t", IDS, LABELS)
    for rate in (0.1, 0.2, 0.3):
        run.score("raw", bits("1000"), **noise(rate))
        for seed in (0, 1):
            run.score("sae", None if (rate, seed) == (0.2, 1) else bits("1100"), adapter_seed=seed, **noise(rate))
    primary = claim(summarise(run.folder), "label-noise").baseline.primary
    assert primary.interval.units == 2
    assert primary.remarks == ("on 2 of 3 levels, without symmetric 0.2",)


def test_an_outcome_makes_no_family_smaller(run_folder: Make) -> None:
    """Two claims, one of which has no score: Holm's adjustment is over both."""
    run = run_folder([PAIR[0], PAIR[1], {**PAIR[1], "name": "other"}], ["clean"], seeds=2)
    run.test("t", [str(i) for i in range(400)], np.zeros(400, dtype=np.int64))
    for seed in (0, 1):
        run.score("raw", np.arange(400) < 200, backbone_seed=seed)
        run.score("sae", np.arange(400) < 216, backbone_seed=seed, adapter_seed=seed)
    (gain,) = [c.baseline for c in summarise(run.folder).tables[0].comparisons if c.arm == "sae"]
    assert gain.primary.interval is not None
    assert gain.adjusted_p == pytest.approx(2 * gain.primary.interval.p_value)
    assert gain.adjusted_p < 1


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_seed_says_test_rows_only_also_without_a_comparison(run_folder: Make, seeds: int) -> None:
    run = run_folder(ARMS[:1], ["clean"], seeds=seeds)
    run.test("t", IDS, LABELS)
    for seed in range(seeds):
        run.score("raw", bits("1100"), backbone_seed=seed)
    said = " ".join(summarise(run.folder).notes)
    assert ("test rows only, as there is one seed" in said) == (seeds == 1)
    assert ("crossed with seeds" in said) == (seeds == 2)


def test_an_arm_that_never_ran_is_shown(run_folder: Make) -> None:
    run = run_folder(ARMS, ["clean"], seeds=1)
    run.test("t", IDS, LABELS)
    run.score("raw", bits("1100"))
    summary = summarise(run.folder)
    cell = table(summary, "clean").cells["sae"][0]
    assert cell.interval is None
    assert "not run" in cell.remarks[0]
    assert claim(summary, "clean").kind == "no verdict"


def test_unlike_protocols_are_never_in_one_table(run_folder: Make) -> None:
    run = run_folder(ARMS[:1], ["corruption"], seeds=1)
    run.test("t", IDS, LABELS)
    for source, correct in (("imagenet-c.onthefly", "1111"), ("imagenet-c.official", "0000")):
        for kind in ("fog", "snow"):
            place = {"series": kind, "level": 1, "protocol": f"corruption/{source}/{kind}@1/224"}
            run.score("raw", bits(correct), scenario="corruption", **place)
    tables = summarise(run.folder).tables
    assert [t.cells["raw"][t.primary].interval.mean for t in tables] == [1.0, 0.0]
    assert len({t.slug for t in tables}) == 2


def test_a_failed_corruption_is_counted_under_the_protocol_of_its_twin(run_folder: Make) -> None:
    run = run_folder(ARMS[:2], ["corruption"], seeds=1)
    run.test("t", IDS, LABELS)
    place = {"scenario": "corruption", "series": "fog", "level": 1}
    run.score("raw", bits("1111"), **place, protocol="corruption/cifar-c.onthefly/fog@1/32")
    run.score("random", None, **place, protocol="corruption/onthefly/fog@1")
    made = table(summarise(run.folder), "corruption")
    assert "out of memory" in made.cells["random"][0].remarks[0]


def test_corruptions_are_averaged_over_severities_and_clean_is_apart(run_folder: Make) -> None:
    run = run_folder(ARMS[:1], ["corruption"], seeds=1)
    run.test("t", IDS, LABELS)
    for kind, scores in {"fog": ("1111", "1110", "1100"), "snow": ("1111", "1000", "0000")}.items():
        for level, correct in enumerate(scores):
            protocol = f"corruption/cifar-c.onthefly/{kind}@{level}/32"
            run.score("raw", bits(correct), scenario="corruption", series=kind, level=level, protocol=protocol)
    made = table(summarise(run.folder), "corruption")
    assert [c.label for c in made.columns] == ["clean", "fog", "snow", "mean"]
    assert_allclose([cell.interval.mean for cell in made.cells["raw"]], [1.0, 0.625, 0.125, 0.375])
    mean = next(c for c in made.curves if c.series.startswith("mean"))
    assert_allclose([cell.interval.mean for cell in mean.cells], [1.0, 0.5, 0.25])


def test_one_backbone_pair_gives_no_verdict_on_the_pretraining(run_folder: Make) -> None:
    arms = [{"name": "cl", "backbone": "cl", "method": "identity"},
            {"name": "ncl", "backbone": "ncl", "method": "identity", "baseline": "cl"}]  # fmt: skip
    run = run_folder(arms, ["clean"], seeds=2)
    run.test("t", IDS, LABELS)
    run.score("cl", bits("0000"), conditional=True)
    run.score("ncl", bits("1111"), conditional=True)
    comparison = claim(summarise(run.folder), "clean", "ncl")
    assert comparison.kind == "no verdict"
    assert "conditional on one backbone pair" in comparison.notes


def test_an_adapter_no_better_than_untrained_gets_no_verdict(run_folder: Make) -> None:
    run = run_folder(ARMS, ["clean"], seeds=1)
    run.test("t", IDS, LABELS)
    run.score("raw", bits("0000"))
    run.score("random", bits("0000"), adapter_seed=0)
    adapter = {"explained_variance": 0.3, "explained_variance_untrained": 0.3}
    run.score("sae", bits("1111"), adapter_seed=0, adapter=adapter)
    comparison = claim(summarise(run.folder), "clean")
    assert comparison.kind == "no verdict"
    assert "Adapter not trained" in comparison.sentence


GCE = {**ARMS[0], "name": "gce", "baseline": "raw", "probe": {"kind": "gce", "q": 0.7}}


def test_a_difference_of_probes_is_shown_said_and_not_judged(run_folder: Make) -> None:
    arms = [*ARMS, GCE, {**ARMS[2], "name": "both", "baseline": "gce", "controls": [], "probe": GCE["probe"]}]
    run = run_folder(arms, ["clean"], seeds=1)
    rows = 200
    run.test("t", [str(i) for i in range(rows)], np.arange(rows) % 10)
    for arm, right in {"raw": 100, "random": 105, "sae": 150, "gce": 150, "both": 190}.items():
        run.score(arm, np.arange(rows) < right, adapter_seed=0, conditional=True)
    summary = summarise(run.folder)
    kinds = {c.arm: c.kind for c in table(summary, "clean").comparisons}
    assert kinds["sae"] == "beyond the controls"
    assert kinds["both"] == "gain, no controls"  # of equal probes
    assert kinds["gce"] == "no verdict"
    comparison = claim(summary, "clean", "gce")
    assert comparison.baseline.primary.interval.mean == 0.25
    assert comparison.baseline.adjusted_p is None
    says = "gce and logistic probes: a difference of probes, not of codes alone"
    assert says in comparison.baseline.primary.remarks
    assert says in comparison.notes
    assert sum("a difference of probes" in note for _, c in summary.claims for note in c.notes) == 1
    assert "Probes: logistic for raw, random, sae; gce for gce, both." in summary.notes
    assert about(summary).endswith("logistic and gce probes")


def test_unlike_settings_of_one_kind_are_unlike_probes(run_folder: Make) -> None:
    other = {**ARMS[2], "controls": [], "baseline": "gce", "probe": {"kind": "gce", "q": 0.5}}
    run = run_folder([ARMS[0], GCE, other], ["clean"], seeds=1)
    run.test("t", IDS, LABELS)
    for arm in ("raw", "gce", "sae"):
        run.score(arm, bits("1110"))
    comparison = claim(summarise(run.folder), "clean")
    assert comparison.kind == "no verdict"
    assert any("gce probes with unlike q" in note for note in comparison.notes)


def test_a_control_with_another_probe_leaves_no_verdict(run_folder: Make) -> None:
    run = run_folder([ARMS[0], GCE, {**ARMS[2], "controls": ["gce"]}], ["clean"], seeds=1)
    run.test("t", IDS, LABELS)
    for arm in ("raw", "gce", "sae"):
        run.score(arm, bits("1110"))
    comparison = claim(summarise(run.folder), "clean")
    assert comparison.kind == "no verdict"
    assert comparison.notes[0].startswith("against gce: logistic and gce probes")


def test_the_paper_probe_is_called_another_protocol(run_folder: Make) -> None:
    run = run_folder([{**ARMS[0], "probe": {"kind": "paper-cached"}}], ["clean"], seeds=1)
    run.test("t", IDS, LABELS)
    run.score("raw", bits("1110"), converged=False)
    summary = summarise(run.folder)
    assert any(note.startswith("Another protocol") and "paper-cached" in note for note in summary.notes)
    assert "1 of 1 scores come from probes that stopped before they converged." in summary.notes
    assert about(summary).endswith("paper-cached probes")


def test_edges_are_counted_with_and_without_an_l2(run_folder: Make) -> None:
    run = run_folder(ARMS[:1], ["clean"], seeds=3)
    run.test("t", IDS, LABELS)
    for seed, l2 in enumerate((0.1, None, None)):
        run.score("raw", bits("1110"), draw=seed, l2=l2, l2_at_edge=True)
    notes = summarise(run.folder).notes
    assert any(note.startswith("1 of 3 scores rest on the largest or smallest L2") for note in notes)
    assert any(note.startswith("2 of 3 scores rest on the last value of what their probe tunes") for note in notes)


@pytest.mark.parametrize(("gap", "said"), [(3.14e-6, "3.2e-06"), (3.1e-6, "3.1e-06"), (np.nan, "was not proven")])
@pytest.mark.parametrize("converged", [True, False])
def test_the_worst_certificate_is_a_detail_unless_it_fails(
    run_folder: Make, gap: float, said: str, converged: bool
) -> None:
    run = run_folder(ARMS[:1], ["clean"], seeds=2)
    run.test("t", IDS, LABELS)
    run.score("raw", bits("1110"), draw=0, probe={"gap": 1e-9})
    run.score("raw", bits("1110"), draw=1, probe={"gap": gap}, converged=converged)
    summary = summarise(run.folder)
    passed = converged and np.isfinite(gap)
    assert any(said in line for line in (summary.details if passed else summary.notes))
    assert not any(said in line for line in (summary.notes if passed else summary.details))
    text = markdown(summary)
    assert said in text
    assert about(summary).endswith("2 scores")


def test_planted_gains_are_found_in_every_scenario(full_study: RunFolder) -> None:
    summary = summarise(full_study.folder)
    accuracy: dict[tuple[str, str], list[float]] = {}
    for row in summary.rows:  # means of the ledger's own accuracies, an independent way to the same gain
        inside = row.scenario in {"clean", "few-shot", "label-noise"} or row.level > 0
        if inside and (row.label_signal is None or row.label_signal > 0):
            accuracy.setdefault((row.scenario, row.arm), []).append(float(row.accuracy or 0))
    assert {t.scenario for t, _ in summary.claims} == {row.scenario for row in summary.rows}
    for made, comparison in summary.claims:
        assert comparison.arm == "sae"
        gain = comparison.baseline.primary.interval
        assert gain.low > 0
        if made.scenario != "label-noise":  # where level 0 has other numbers of rows than the rest
            means = [np.mean(accuracy[made.scenario, arm]) for arm in ("sae", "raw")]
            assert_allclose(gain.mean, means[0] - means[1], atol=1e-12)


def test_adjusted_p_is_holm_over_the_claims(full_study: RunFolder) -> None:
    claims = [c for _, c in summarise(full_study.folder).claims]
    raw = np.array([c.baseline.primary.interval.p_value for c in claims])
    expected = np.empty(len(raw))
    worst = 0.0
    for rank, place in enumerate(np.argsort(raw)):
        worst = max(worst, min(1.0, (len(raw) - rank) * raw[place]))
        expected[place] = worst
    assert_allclose([c.baseline.adjusted_p for c in claims], expected)
    for claimed, p, adjusted in zip(claims, raw, expected, strict=True):
        assert any("not after adjustment" in note for note in claimed.notes) == (p <= 0.05 < adjusted)


def test_what_holds_for_all_is_said_once(full_study: RunFolder) -> None:
    summary = summarise(full_study.folder)
    assert "Every comparison here: conditional on one backbone." in summary.notes
    assert not any("conditional" in note for _, c in summary.claims for note in c.notes)
    assert sum("a gain over the baseline and over every control" in note for note in summary.notes) == 1


def test_json_is_plain(full_study: RunFolder) -> None:
    made = to_json(summarise(full_study.folder))
    again = json.loads(json.dumps(made, allow_nan=False))
    assert again["tables"][0]["cells"]["raw"][0]["interval"]["rows"] == 300


def test_a_folder_without_a_run_is_named(run_folder: Make) -> None:
    folder = run_folder(ARMS, ["clean"]).folder
    with pytest.raises(UsageError, match="not a run folder"):
        summarise(folder / "tests")


def test_a_damaged_sidecar_is_named(full_study: RunFolder) -> None:
    path = full_study.folder / "predictions" / "k000000.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(MonoevalError, match="k000000"):
        summarise(full_study.folder)


@pytest.mark.parametrize(
    ("of_control", "said"),
    [
        ((0.2, 0.2), "In every seed its latents are more monosemantic than every control's"),
        ((0.2, 0.2), "top-20 consistency is +40.0 points against random, after chance"),
        ((0.2, 0.7), "every control's, but not in every seed: top-20 consistency is +15.0 points"),
        ((0.5, 0.9), "But its latents are not more monosemantic"),
        (None, "Monosemanticity was not measured"),
    ],
)
def test_a_cause_is_claimed_only_where_it_was_there(run_folder: Make, of_control, said) -> None:
    arms = [
        PAIR[0],
        {"name": "random", "backbone": "net", "method": "random-topk", "baseline": "raw"},
        {**PAIR[1], "controls": ["random"]},
    ]
    run = run_folder(arms, ["clean"], seeds=2)
    run.test("t", [str(i) for i in range(400)], np.zeros(400, dtype=np.int64))
    for seed in (0, 1):
        for arm, right in (("raw", 200), ("random", 200), ("sae", 390)):
            measured = {"top_consistency": 0.6, "top_consistency_chance": 0.1}
            if arm == "random" and of_control is not None:
                measured["top_consistency"] = of_control[seed]
            elif arm != "sae":
                measured = {}
            seeds = {"backbone_seed": seed, "adapter_seed": None if arm == "raw" else seed}
            run.score(arm, np.arange(400) < right, adapter=measured, **seeds)
    comparison = next(c for c in summarise(run.folder).tables[0].comparisons if c.arm == "sae")
    assert comparison.kind == ("manipulation failed" if of_control == (0.5, 0.9) else "beyond the controls")
    assert said in comparison.sentence


def test_a_cause_in_a_single_seed_speaks_of_no_seeds(run_folder: Make) -> None:
    arms = [
        PAIR[0],
        {"name": "random", "backbone": "net", "method": "random-topk", "baseline": "raw"},
        {**PAIR[1], "controls": ["random"]},
    ]
    run = run_folder(arms, ["clean"], seeds=1)
    run.test("t", [str(i) for i in range(400)], np.zeros(400, dtype=np.int64))
    for arm, right, consistency in (("raw", 200, 0.1), ("random", 200, 0.2), ("sae", 390, 0.6)):
        measured = {"top_consistency": consistency, "top_consistency_chance": 0.1}
        run.score(arm, np.arange(400) < right, adapter=measured, adapter_seed=None if arm == "raw" else 0)
    comparison = next(c for c in summarise(run.folder).tables[0].comparisons if c.arm == "sae")
    assert " Its latents are more monosemantic than every control's: top-20" in comparison.sentence
    assert "seed" not in comparison.sentence


@pytest.mark.parametrize(("seeds", "said"), [(2, True), (3, False)])
def test_two_seeds_are_called_too_few(run_folder: Callable[..., RunFolder], seeds: int, said: bool) -> None:
    run = run_folder([ARMS[0], {**ARMS[2], "controls": []}], ["clean"], seeds=seeds)
    run.test("t", [str(i) for i in range(50)], np.arange(50) % 10)
    run.score("raw", np.arange(50) < 30)
    for seed in range(seeds):
        run.score("sae", np.arange(50) < 40 + seed, adapter_seed=seed)
    (comparison,) = summarise(run.folder).tables[0].comparisons
    assert any(note.startswith("two seeds: 95 % intervals may hold") for note in comparison.notes) == said
