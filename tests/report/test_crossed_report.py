"""Reports of crossed seeds: the interval of the design, whose doing it is, gaps, and other runs beside it."""

from pathlib import Path

import numpy as np
import pytest
from report_study import ARMS, RunFolder

from monoeval.metrics.components import Levels, Shares
from monoeval.metrics.paired import paired_difference
from monoeval.report import to_json
from monoeval.report.across import summarise_together
from monoeval.report.markdown import markdown
from monoeval.report.model import Summary
from monoeval.report.summary import summarise
from monoeval.report.wording import about, uncertain
from monoeval.suite.units import units_of

ROWS = 60
PAIR = [ARMS[0], {**ARMS[2], "controls": []}]
NOISE = {"scenario": "label-noise", "series": "symmetric", "level": 0.4, "protocol": "label-noise/symmetric@0.4"}
SEEDS = {"backbones": 3, "adapters": 2, "draws": 2}


class Crossed:
    """A run in which `large` moves the arm's accuracy, and the correctness it was made of."""

    def __init__(
        self, folder: Path, seeds=SEEDS, large: str = "backbone", without=(), scenario=NOISE, given=()
    ) -> None:
        self.run = RunFolder(folder, PAIR, [scenario.get("scenario", "clean")], seeds)
        self.run.test("t", [str(i) for i in range(ROWS)], np.zeros(ROWS, dtype=np.int64))
        draws, pretrained = bool(scenario), "backbones" in seeds if isinstance(seeds, dict) else True
        generator = np.random.default_rng(0)
        self.right: dict[tuple, np.ndarray] = {}
        for unit in units_of(seeds):
            for arm in ("raw", "sae"):
                place = (
                    arm, unit.backbone if pretrained and arm not in given else None,
                    unit.adapter if arm == "sae" else None, unit.draw if draws else None,
                )  # fmt: skip
                if place in self.right:
                    continue
                lift = 0.1 * (-1) ** getattr(unit, large) if arm == "sae" else 0.0
                right = self.right[place] = generator.random(ROWS) < 0.5 + lift
                about_seeds = dict(zip(("backbone_seed", "adapter_seed", "draw"), place[1:], strict=True))
                failed = place in without
                key = {"key": f"{folder.name}-{place}".replace("/", "")} if not failed else {}
                self.run.score(
                    arm, None if failed else right, conditional=place[1] is None, **about_seeds, **scenario, **key
                )
        self.folder = folder

    def delta(self, units, b=True, d=True) -> np.ndarray:
        """The paired differences [R, U], written out."""
        return np.stack(
            [
                self.right["sae", u.backbone if b else None, u.adapter, u.draw if d else None].astype(float)
                - self.right["raw", u.backbone if b else None, None, u.draw if d else None]
                for u in units
            ],
            1,
        )


def gain_of(summary: Summary):
    (comparison,) = summary.tables[0].comparisons
    return comparison.baseline, comparison


def test_the_interval_is_that_of_the_design(tmp_path: Path) -> None:
    made = Crossed(tmp_path / "run")
    summary = summarise(made.folder)
    gain, comparison = gain_of(summary)
    expected = paired_difference(made.delta(units_of(SEEDS)), levels=Levels(**SEEDS))
    assert gain.primary.interval == expected
    assert gain.varied == ("backbone", "adapter", "draw")
    assert about(summary).startswith("2 arms, 3 backbones × 2 adapters × 2 draws, ")
    shares = expected.shares
    text = markdown(summary)
    assert f"backbone {100 * shares.backbone:.0f} %, adapter {100 * shares.adapter:.0f} %" in text
    assert f"test rows {100 * shares.rows:.0f} %" in text
    assert "Seeds are crossed: 3 backbones × 2 adapters × 2 draws." in " ".join(summary.notes)
    assert uncertain(shares, gain.varied, gain.levels) in comparison.notes
    assert any(note.startswith("two draws: ") for note in comparison.notes)
    assert not any("two adapters" in note for note in comparison.notes)  # of each backbone, and averaged there
    assert to_json(summary)["levels"] == SEEDS


def test_an_axis_that_nothing_was_drawn_on_counts_for_nothing(tmp_path: Path) -> None:
    made = Crossed(tmp_path / "run", scenario={})  # clean: rows of no draw
    gain, comparison = gain_of(summarise(made.folder))
    units = units_of({**SEEDS, "draws": 1})
    over_backbones = made.delta(units, d=False).reshape(ROWS, 3, 2).mean(2)
    expected = paired_difference(over_backbones)
    assert (gain.primary.interval.low, gain.primary.interval.high) == pytest.approx((expected.low, expected.high))
    assert gain.varied == ("backbone", "adapter")
    assert gain.primary.interval.shares.draw == 0
    assert not any("draw" in note for note in comparison.notes)


def test_of_a_given_backbone_adapters_are_the_units(tmp_path: Path) -> None:
    made = Crossed(tmp_path / "run", {"adapters": 3, "draws": 2})
    summary = summarise(made.folder)
    gain, comparison = gain_of(summary)
    delta = made.delta(units_of({"adapters": 3, "draws": 2}), b=False)
    assert gain.primary.interval == paired_difference(delta, levels=Levels(adapters=3, draws=2))
    assert gain.primary.interval.shares.backbone == 0
    assert {"conditional on one backbone"} <= {*comparison.notes}


def test_what_is_drawn_once_for_all_is_named(tmp_path: Path) -> None:
    made = Crossed(tmp_path / "run", {"backbones": 1, "adapters": 3, "draws": 1})
    gain, comparison = gain_of(summarise(made.folder))
    assert gain.varied == ("adapter",)
    assert {"conditional on one backbone", "conditional on one draw"} <= {*comparison.notes}
    assert "conditional on one adapter" not in comparison.notes


def test_an_adapter_of_each_backbone_is_told_together_with_it(tmp_path: Path) -> None:
    """Each backbone has an adapter of its own, so the interval covers both, but not whose doing it is."""
    made = Crossed(tmp_path / "run", {"backbones": 3, "adapters": 1, "draws": 2})
    summary = summarise(made.folder)
    gain, comparison = gain_of(summary)
    assert gain.varied == ("backbone", "adapter", "draw")
    assert not any("conditional" in note for note in comparison.notes)
    share = gain.primary.interval.shares.backbone
    assert f"| backbone with its adapter {100 * share:.0f} %, draw " in markdown(summary)


@pytest.mark.parametrize("draws", [1, 2])
def test_adapters_of_a_given_backbone_are_crossed_with_pretrained_ones(tmp_path: Path, draws: int) -> None:
    """Averaged over within each backbone they would leave no trace in the interval: each stands against one."""
    seeds = {"backbones": 2, "adapters": 3, "draws": draws}
    made = Crossed(tmp_path / "run", seeds, large="adapter", given=("sae",))
    gain, comparison = gain_of(summarise(made.folder))
    pairs = [(s, d) for s in range(2) for d in range(draws)]
    right = made.right
    delta = np.stack([right["sae", None, s, d].astype(float) - right["raw", s, None, d] for s, d in pairs], 1)
    expected = paired_difference(delta, levels=Levels(backbones=2, draws=draws))
    assert vars(gain.primary.interval) == pytest.approx(vars(expected) | {"shares": gain.primary.interval.shares})
    assert gain.levels == Levels(backbones=2, draws=draws)
    assert any(note.startswith(f"on {2 * draws} of {6 * draws} combinations") for note in comparison.notes)
    assert "each pretrained backbone stands against one adapter of the given backbone" in comparison.notes


def test_failed_scores_on_a_diagonal_leave_what_is_whole(tmp_path: Path) -> None:
    seeds = {"backbones": 2, "adapters": 2, "draws": 1}
    made = Crossed(tmp_path / "run", seeds, without={("sae", 0, 1, 0), ("sae", 1, 0, 0)})
    gain, _ = gain_of(summarise(made.folder))
    assert gain.primary.interval.units == 1
    assert gain.primary.interval.mean == pytest.approx(made.delta([units_of(seeds)[0]]).mean())


def test_a_failed_score_takes_out_the_fewest_combinations(tmp_path: Path) -> None:
    made = Crossed(tmp_path / "run", without={("sae", 2, 1, 0)})
    gain, _ = gain_of(summarise(made.folder))
    units = units_of({**SEEDS, "backbones": 2})
    expected = paired_difference(made.delta(units), levels=Levels(2, 2, 2))
    assert gain.primary.interval.mean == expected.mean
    assert gain.primary.interval.standard_error == pytest.approx(expected.standard_error)
    (remark,) = gain.primary.remarks
    assert remark.startswith("on 8 of 12 combinations of seeds, without backbone-adapter-draw 2-0-0, ")


def test_areas_are_over_the_design_too(tmp_path: Path) -> None:
    """A clean level without draws beside a noisy one: units are those of both, and copies count for nothing."""
    made = Crossed(tmp_path / "run")
    clean = Crossed(tmp_path / "other", scenario={})
    for (arm, b, a, _), right in clean.right.items():
        fields = {**NOISE, "level": 0.0, "protocol": "label-noise/symmetric@0"}
        made.run.score(arm, right, backbone_seed=b, adapter_seed=a, **fields)
    (table,) = summarise(made.folder).tables
    (area,) = [m for m in table.measures if m.name.startswith("area")]
    units = units_of(SEEDS)
    noisy, without = made.right, clean.right
    pairs = [(noisy["sae", *unit], without["sae", unit.backbone, unit.adapter, None]) for unit in units]
    values = np.stack([(a.astype(float) + b) / 2 for a, b in pairs], 1)
    expected = paired_difference(values, levels=Levels(**SEEDS))
    found = area.values["sae"]
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_beside_a_run_of_seeds_that_move_together(tmp_path: Path) -> None:
    one, other = Crossed(tmp_path / "one"), Crossed(tmp_path / "other", seeds=2)
    for folders in ((one, other), (other, one)):
        summary = summarise_together([run.folder for run in folders])
        assert summary.levels is None
        for comparison in summary.tables[0].comparisons:
            assert comparison.baseline.units == 2
        assert any("scores belong to no seed of this study and are not used" in note for note in summary.notes)


def test_two_crossed_runs_side_by_side(tmp_path: Path) -> None:
    one, other = Crossed(tmp_path / "one"), Crossed(tmp_path / "other", {**SEEDS, "backbones": 2}, large="draw")
    summary = summarise_together([one.folder, other.folder])
    sae = next(c for c in summary.tables[0].comparisons if c.arm.startswith("sae"))
    assert sae.baseline.levels == Levels(2, 2, 2)
    units = units_of({**SEEDS, "backbones": 2})
    right = [np.stack([run.right["sae", *unit].astype(float) for unit in units], 1) for run in (one, other)]
    assert sae.baseline.primary.interval == paired_difference(right[1] - right[0], levels=Levels(2, 2, 2))


@pytest.mark.parametrize(
    ("shares", "sentence"),
    [
        (Shares(0.7, 0.1, 0.1, 0, 0.1), "70 % of the variance is the backbone's: add backbones"),
        (Shares(0.1, 0.1, 0.6, 0, 0.2), "60 % of the variance is the draw's: add draws"),
        (Shares(0.1, 0.1, 0.1, 0.1, 0.6), "60 % of the variance comes from test rows: add test rows"),
        (
            Shares(0, 0, 0.1, 0.8, 0.1),
            "80 % of the variance is draws' interplay with the rest: add draws or what they are crossed with",
        ),
        (
            Shares(0.4, 0, 0.1, 0.2, 0.3),
            "no one source has most of the variance: backbone 40 %, test rows 30 %",
        ),
    ],
)
def test_who_is_to_be_repeated_more(shares: Shares, sentence: str) -> None:
    assert uncertain(shares, ("backbone", "adapter", "draw"), Levels(3, 2, 2)) == sentence


def test_backbones_with_an_adapter_each_are_to_be_repeated_together() -> None:
    for adapter in ("adapter", "finetuning"):
        told = uncertain(Shares(0.7, 0, 0.1, 0, 0.2), ("backbone", adapter, "draw"), Levels(3, 1, 2))
        assert told == f"70 % of the variance comes from the backbone with its {adapter}: add backbones"
