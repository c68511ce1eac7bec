"""Tables of changed test images: what a mean over corruptions is of, and what is drawn where no seed draws."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from report_study import ARMS, RunFolder

from monoeval.metrics.paired import paired_difference
from monoeval.report import summarise
from monoeval.report.layout import columns, lines
from monoeval.report.markdown import markdown
from monoeval.report.model import MEAN, Summary
from monoeval.report.points import Point, drawn_once

Make = Callable[..., RunFolder]
PAIR = [ARMS[0], {**ARMS[1], "controls": []}]
ROWS = 40
EXTRAS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
GAIN = {"fog": 4, "contrast": 8, **dict.fromkeys(EXTRAS, -20)}
"""Rows that the second arm has right beyond the first."""


def point(kind: str, level: float, source: str = "imagenet-c.onthefly") -> Point:
    return Point("corruption", f"corruption/{source}/{kind}@{level:g}/224", kind, level)


def corrupted(run_folder: Make, kinds: Sequence[str]) -> Summary:
    run = run_folder(PAIR, ["corruption"], seeds=3)
    run.test("t", [str(i) for i in range(ROWS)], np.arange(ROWS) % 10)
    for kind in kinds:
        for level in (0, 1, 5):
            for arm, right in (("raw", 24), ("random", 24 + (GAIN[kind] if level else 0))):
                run.score(arm, np.arange(ROWS) < right, conditional=True, **point(kind, level)._asdict())
    return summarise(run.folder)


def test_extra_corruptions_are_shown_but_outside_the_mean_and_the_verdict(run_folder: Make) -> None:
    summary = corrupted(run_folder, ("speckle_noise", "fog", "saturate", "contrast", "spatter", "gaussian_blur"))
    (table,) = summary.tables
    assert [c.label for c in table.columns if c.extra] == ["speckle_noise", "saturate", "spatter", "gaussian_blur"]
    assert {p.series for p in table.columns[table.primary].points} == {"fog", "contrast"}
    assert table.primary_label == "mean accuracy over 4 corruptions × severities, without the extra ones"
    assert table.cells["random"][table.primary].interval.mean == pytest.approx((28 + 32) / 2 / ROWS)
    (comparison,) = table.comparisons
    gains = np.stack([(np.arange(ROWS) >= 24) & (np.arange(ROWS) < 24 + n) for n in (4, 8)]).mean(0)
    assert comparison.baseline.primary.interval.mean == paired_difference(gains[:, None]).mean
    shown = table.cells["random"][[c.label for c in table.columns].index("saturate")]
    assert shown.interval.mean == pytest.approx(4 / ROWS)
    measures = {m.name: m.values["random"].mean for m in table.measures}
    assert measures["relative_accuracy"] == pytest.approx(30 / 24)
    mean = next(curve for curve in table.curves if (curve.arm, curve.series) == ("random", MEAN))
    assert [cell.interval.mean for cell in mean.cells] == pytest.approx([24 / ROWS, 30 / ROWS, 30 / ROWS])
    assert "saturate †" in markdown(summary)
    assert sum("marked †" in note for note in summary.notes) == 1


def test_extra_corruptions_alone_are_what_the_mean_is_over(run_folder: Make) -> None:
    summary = corrupted(run_folder, ("speckle_noise", "saturate"))
    (table,) = summary.tables
    assert not any(column.extra for column in table.columns)
    assert table.primary_label == "mean accuracy over 4 corruptions × severities"
    assert table.cells["random"][table.primary].interval.mean == pytest.approx(4 / ROWS)
    assert "†" not in markdown(summary)


@pytest.mark.parametrize("extra", EXTRAS)
def test_one_scored_corruption_is_enough(extra: str) -> None:
    points = [point(kind, level, "cifar-c.official") for kind in (extra, "frost") for level in (0, 2)]
    made, primary, words = columns(points, {})
    assert made[primary].points == (points[3],)
    assert words == "accuracy at frost"
    assert lines(points)[MEAN] == {0: [points[2]], 2: [points[3]]}


def test_a_series_of_another_scenario_may_be_called_alike() -> None:
    points = [
        Point("tints", f"tints/{kind}@{level}", kind, level) for kind in ("saturate", "grey") for level in (1, 2)
    ]
    made, primary, _ = columns(points, {})
    assert made[primary].points == tuple(points)


def noted(run_folder: Make, where: Point, seeds: object = 3) -> list[str]:
    run = run_folder(PAIR, [where.scenario], seeds=seeds)
    run.test("t", [str(i) for i in range(ROWS)], np.arange(ROWS) % 10)
    for arm, right in (("raw", 20), ("random", 24)):
        run.score(arm, np.arange(ROWS) < right, conditional=True, **where._asdict())
    summary = summarise(run.folder)
    return [*summary.tables[0].comparisons[0].notes, *summary.notes]


@pytest.mark.parametrize("seeds", [3, {"backbones": 1, "adapters": 2, "draws": 1}])
@pytest.mark.parametrize(
    ("where", "says"),
    [
        (
            Point("input-noise", "input-noise/gaussian@0.4", "gaussian", 0.4),
            "the noise on test images is one draw",
        ),
        (point("fog", 3), "the corruption of test images is one draw"),
        (point("frost-synthetic", 3), "the corruption of test images is one draw"),
        (point("contrast", 3), "nothing is drawn"),
        (point("fog", 3, "imagenet-c.official"), "nothing is drawn"),
        (Point("clean", "clean", "clean", 0), "nothing is drawn"),
    ],
)
def test_what_is_drawn_once_is_said_where_seeds_draw_nothing(
    run_folder: Make, where: Point, says: str, seeds: object
) -> None:
    more = ", shared by all arms and seeds" if "one draw" in says else ""
    assert f"{says}{more}: test rows only" in noted(run_folder, where, seeds)


def test_a_mean_over_some_that_are_drawn_is_drawn_too() -> None:
    assert drawn_once([point("contrast", 3), point("snow", 1)]) == "the corruption of test images"
    assert not drawn_once([point("contrast", 3), point("snow", 0)])
    assert drawn_once([point("snow", 1)._replace(protocol="corruption/onthefly/snow@1")])  # one that failed
