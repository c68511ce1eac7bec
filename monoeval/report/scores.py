"""A run folder in memory: which score answers which question, paired by row id. No torch."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from monoeval.errors import MonoevalError, UsageError
from monoeval.metrics.components import Levels
from monoeval.metrics.detection import SCORES, linearised
from monoeval.metrics.scores import StandardLine, balanced, standard_line
from monoeval.report.points import (
    DETECTION,
    Point,
    adapters_across_backbones,
    applies,
    fixed,
    mean_measures,
    means,
    point_of,
    points_of,
    reason,
    seeds_of,
    varied,
)
from monoeval.report.sidecars import TestRows, groups_of, labels_of, numbers, read, read_tests, union
from monoeval.suite.ledger import Row, read_rows
from monoeval.suite.units import Unit, one_adapter_each, units_of, whole

_NAMED = 4
"""Combinations of seeds that a sentence names before it only counts."""


@dataclass(frozen=True)
class Sample:
    """Correctness, or the difference of two arms in it, averaged over points and repeats."""

    values: NDArray[np.float64]  # [R, U]
    groups: NDArray[np.int64] | None  # [R]
    units: tuple[Unit, ...]
    levels: Levels | None
    """How `units` are crossed; None where backbone, adapter and draw move together."""
    wrong: NDArray[np.float64] | None
    """[R, U] errors of the arm that is subtracted; None for one arm's values, and for AUROC."""
    varied: tuple[str, ...]
    """What each unit has of its own, of backbone, adapter and draw; if nothing, units are copies of one score."""
    fixed: tuple[str, ...]
    """What was drawn, but once for all units."""
    conditional: bool
    remarks: tuple[str, ...]
    """What was left out to keep the pairs whole."""
    ids: NDArray[np.int64]  # [R], sorted
    labels: NDArray[np.int64]  # [R]


class Scores:
    """All scores of a run folder, read once.

    Raises UsageError where `folder` holds no run, MonoevalError where a sidecar is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        recipe = folder / "recipe.yaml"
        if not recipe.is_file():
            raise UsageError(f"{folder} is not a run folder (it has no recipe.yaml): name one that a run wrote.")
        self.folder = folder
        self.recipe_text = recipe.read_text(encoding="utf-8")
        try:
            self.recipe: dict[str, Any] = yaml.safe_load(self.recipe_text)
            self.arms: list[dict[str, Any]] = list(self.recipe["arms"])
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise MonoevalError(f"{recipe} is damaged: run the study again with --fresh.") from error
        self.rows = [row for row in read_rows(folder) if row.arm in {arm["name"] for arm in self.arms}]
        self._name_protocols()
        seeds = self.recipe.get("seeds", 1)
        self.crossed = isinstance(seeds, Mapping)
        """Whether backbones, adapters and draws have seeds of their own, in every combination."""
        self.units = units_of(seeds)
        self.margin = float(self.recipe.get("margin", 1.0)) / 100
        """Differences within ± this share count as none."""
        self._of: dict[tuple[str, Point], list[Row]] = defaultdict(list)
        for row in self.used:
            for point in points_of(row):
                self._of[row.arm, point].append(row)

    def _name_protocols(self) -> None:
        """Give failed rows the protocol of their scored twin: only running resolves all of it (the image size)."""
        scored: dict[tuple[str, str, float], list[Row]] = defaultdict(list)
        for row in self.rows:
            if row.status == "ok":
                scored[row.scenario, row.series, row.level].append(row)
        for place, row in enumerate(self.rows):
            twins = scored[row.scenario, row.series, row.level]
            if row.status == "ok" or not twins or row.protocol in {twin.protocol for twin in twins}:
                continue
            twin = next((t for t in twins if t.model == row.model), twins[0])
            self.rows[place] = row.model_copy(update={"protocol": twin.protocol})

    @cached_property
    def points(self) -> list[Point]:
        """Every condition of the run, in the order of the recipe's scenarios and then of the ledger."""
        order = [s if isinstance(s, str) else s["name"] for s in self.recipe.get("scenarios", [])]
        seen = dict.fromkeys(point for row in self.rows for point in points_of(row))
        place = {name: number for number, name in enumerate(order)}
        return sorted(seen, key=lambda point: place.get(point.scenario, len(order)))

    @cached_property
    def label_signal(self) -> dict[Point, float]:
        """The label signal of the points that have one; the smallest, where draws differ in it."""
        found: dict[Point, float] = {}
        for row in self.rows:
            if row.label_signal is not None:
                point = point_of(row)
                found[point] = min(row.label_signal, found.get(point, row.label_signal))
        return found

    @cached_property
    def standard(self) -> dict[str, StandardLine]:
        """Target of ood → the line of the standard models that the recipe gives for it."""
        listed = (s for s in self.recipe.get("scenarios", []) if isinstance(s, dict) and s["name"] == "ood")
        given = next((s.get("standard") for s in listed), None) or {}
        return {target: standard_line(*zip(*pairs, strict=True)) for target, pairs in given.items()}

    def probe(self, arm: str) -> dict[str, Any]:
        """The specification of an arm's probe: its own, or the recipe's."""
        own = next((about.get("probe") for about in self.arms if about["name"] == arm), None)
        return {"kind": "logistic", **(own or self.recipe.get("probe") or {})}

    def named(self, units: Sequence[Unit]) -> str:
        """The seeds of `units` in a sentence."""
        if self.crossed:
            more = f" and {len(units) - _NAMED} more" if len(units) > _NAMED else ""
            some = ", ".join("-".join(map(str, unit)) for unit in units[:_NAMED])
            return f"backbone-adapter-draw {some}{more}"
        return f"seed {', '.join(str(unit.draw) for unit in units)}"

    def monosemanticity(self, arm: str) -> dict[Unit, float]:
        """Unit → mean consistency of the latents' strongest rows, less that under permuted labels; held out.

        Where an arm has several adapters, of other training rows or settings, each one used is counted once.
        """
        found = {}
        for unit in self.units:
            own = [row for row in self.rows if row.arm == arm and applies(row, unit)]
            measures = mean_measures([row for row in own if "top_consistency" in row.adapter])
            if measures:
                found[unit] = measures["top_consistency"] - measures["top_consistency_chance"]
        return found

    @property
    def used(self) -> list[Row]:
        """Rows that belong to a unit of the study."""
        return [row for row in self.rows if any(applies(row, unit) for unit in self.units)]

    def adapter_measures(self, arm: str) -> dict[str, float]:
        """`mean_measures` of the arm's scores."""
        return mean_measures([row for row in self.used if row.arm == arm])

    def gaps(self, arm: str, point: Point) -> dict[Unit, str]:
        """Why a unit has no score, or only some of its repeats, of `arm` at `point`: unit → reason."""
        found: dict[Unit, str] = {}
        for unit in self.units:
            rows = [row for row in self._of[arm, point] if applies(row, unit)]
            bad = next((row for row in rows if row.status != "ok"), None)
            if bad is not None:
                found[unit] = reason(bad)
            elif not rows:
                found[unit] = "not run"
        return found

    def units_of(self, arm: str, point: Point, against: str | None = None) -> tuple[Unit, ...]:
        """The units that have a score of `arm` (and of `against`) at `point`."""
        return tuple(unit for unit in self.units if self._pairs(arm, against, point, unit)[0])

    def sample(
        self, arm: str, points: Sequence[Point], against: str | None = None, *, weigh: bool = True
    ) -> Sample | None:
        """Correctness of `arm`, minus that of `against`, over the units that have a score at all `points`.

        Under imbalance the values are those of `metrics.scores.balanced`, unless `weigh` is false.

        Rows are paired by id, repeats by number; None where no unit has them all. Points (or units) may be scored
        on unlike rows, as held-out domains and subclasses are: the mean of a column stays the mean over points p
        of their means m_p, each over its own R_p rows. A row then holds mean_p m_p + Σ_p (x_p − m_p) R / (P R_p)
        over the points that it is of, so that its spread is that of rows within a point, weighted as in the mean.
        """
        remarks: list[str] = []
        units = tuple(u for u in self.units if all(self._pairs(arm, against, p, u)[0] for p in points))
        if not units or not points:
            return None
        levels = None
        if self.crossed:
            units, levels = whole(units)
            rows = (
                row for p in points for u in units for pair in self._pairs(arm, against, p, u)[0] for row in pair
            )
            if adapters_across_backbones(list(rows)):
                units, levels = one_adapter_each(units)
                remarks.append("each pretrained backbone stands against one adapter of the given backbone")
        if len(units) < len(self.units):
            lost = self.named([u for u in self.units if u not in units]).removeprefix("seed ")
            what = "combinations of seeds" if self.crossed else "seeds"
            remarks.append(f"on {len(units)} of {len(self.units)} {what}, without {lost}")
        pairs = {(p, u): self._pairs(arm, against, p, u) for p in points for u in units}
        partial = sum(dropped for _, dropped in pairs.values())
        if partial:
            remarks.append(f"{partial} repeats without a counterpart left out")
        used = [row for found, _ in pairs.values() for pair in found for row in pair]
        if points[0].scenario == DETECTION:
            return self._told_apart(points, units, levels, pairs, remarks)
        tests = [self._test(str(name)) for name in dict.fromkeys(row.test for row in used)]
        ids = union([self._shared_ids(pair) for found, _ in pairs.values() for pair in found])
        groups = groups_of(tests, ids)
        values, wrong = np.zeros((2, len(ids), len(units)))
        partly: dict[tuple[int, int], None] = {}
        for column, unit in enumerate(units):
            for point in points:
                found, _ = pairs[point, unit]
                weight = 1 / (len(found) * len(points))
                for pair in found:
                    here = self._shared_ids(pair)
                    if not len(here):
                        return None
                    most = max(len(self._test(str(row.test)).ids) for row in pair)
                    if len(here) < most:
                        partly[len(here), most] = None
                    signs = zip(pair, (weight, -weight), strict=False)
                    part = sum((sign * self._correct(row, here) for row, sign in signs), np.zeros(len(here)))
                    place = np.searchsorted(ids, here)
                    for made, own in ((values, part), (wrong, weight * (1 - self._correct(pair[-1], here)))):
                        level = own.mean()
                        made[:, column] += level
                        made[place, column] += (own - level) * (len(ids) / len(here))
        labels = labels_of(tests, ids)
        if weigh and points[0].scenario == "imbalance":
            values, wrong = balanced(values, labels), balanced(wrong, labels)
        remarks += [f"only the {n} of {most} test rows that both arms have" for n, most in partly]
        return Sample(
            values,
            groups,
            units,
            levels,
            wrong=None if against is None else wrong,
            varied=varied(used),
            fixed=fixed(used),
            conditional=any(row.conditional for row in used),
            remarks=tuple(remarks),
            ids=ids,
            labels=labels,
        )

    def measures(self, arm: str, points: Sequence[Point]) -> dict[str, float]:
        """`Row.measures` of the arm's scores at `points`, averaged within each point and then over them.

        A measure that one of the points lacks is left out.
        """
        found = [means(row.measures for row in self._of[arm, point] if row.status == "ok") for point in points]
        return {name: value for name, value in means(found).items() if all(name in some for some in found)}

    @cache  # noqa: B019 (one report holds one of these)
    def _pairs(self, arm: str, against: str | None, point: Point, unit: Unit) -> tuple[list[tuple[Row, ...]], int]:
        """Scored rows of each repeat that every arm has, and how many repeats had to be left out."""
        arms = [arm] if against is None else [arm, against]
        repeats = [
            {row.repeat: row for row in self._of[a, point] if row.status == "ok" and applies(row, unit)}
            for a in arms
        ]
        shared = sorted(set.intersection(*(set(r) for r in repeats)))
        every = {row.repeat for a in arms for row in self._of[a, point] if applies(row, unit)}
        return [tuple(r[repeat] for r in repeats) for repeat in shared], len(every) - len(shared)

    def _told_apart(
        self,
        points: Sequence[Point],
        units: tuple[Unit, ...],
        levels: Levels | None,
        pairs: Mapping[tuple[Point, Unit], tuple[list[tuple[Row, ...]], int]],
        remarks: Sequence[str],
    ) -> Sample | None:
        """Values whose mean is the AUROC, over rows of the data and of elsewhere: see `detection.linearised`.

        So intervals and paired differences take in that both sides are samples.
        """
        used = [row for found, _ in pairs.values() for pair in found for row in pair]
        if len({(row.test, self._beside(row).test) for row in used}) > 1:
            return None
        within, beyond = self._test(str(self._beside(used[0]).test)), self._test(str(used[0].test))
        values = np.zeros((len(within.ids) + len(beyond.ids), len(units)))
        for (point, unit), (found, _) in pairs.items():
            sign, weight = SCORES[point.series], 1 / (len(found) * len(points))
            for pair in found:
                for row, share in zip(pair, (weight, -weight), strict=False):
                    scores = [sign * self._column(side, point.series) for side in (self._beside(row), row)]
                    values[:, units.index(unit)] += share * np.concatenate(linearised(*scores))
        groups = None
        if within.groups is not None or beyond.groups is not None:
            sides_groups = [side.ids if side.groups is None else side.groups for side in (within, beyond)]
            of_within, of_beyond = (np.unique(side, return_inverse=True)[1] for side in sides_groups)
            groups = np.concatenate([of_within, of_beyond + len(of_within)])
        return Sample(
            values,
            groups,
            units,
            levels,
            wrong=None,
            varied=varied(used),
            fixed=fixed(used),
            conditional=any(row.conditional for row in used),
            remarks=tuple(remarks),
            ids=np.concatenate([within.ids, beyond.ids]),
            labels=np.concatenate([within.labels, beyond.labels]),
        )

    def _beside(self, row: Row) -> Row:
        """The score of the data's own rows that belongs to one of rows from elsewhere."""
        beside = self._own.get(_place(row))
        if beside is None:
            raise MonoevalError(f"{self.folder} has no score of the data's own rows for {row.arm}: run it again.")
        return beside

    @cached_property
    def _own(self) -> dict[tuple[object, ...], Row]:
        own = [row for row in self.rows if row.scenario == DETECTION and row.status == "ok" and not row.level]
        return {_place(row): row for row in own}

    def _column(self, row: Row, name: str) -> NDArray[np.float64]:
        """A column [R] of a score's predictions, in the order of the test set's sorted ids."""
        table = read(self.folder / str(row.predictions), ["row", name])
        made = np.empty(len(table), dtype=np.float64)
        made[self._test(str(row.test)).place[numbers(table["row"])]] = np.from_dlpack(table[name].combine_chunks())
        return made

    def _shared_ids(self, rows: Sequence[Row]) -> NDArray[np.int64]:
        """Ids [R] of the test rows that all of `rows` were scored on, sorted."""
        ids = self._test(str(rows[0].test)).ids
        for row in rows[1:]:
            other = self._test(str(row.test)).ids
            ids = ids if other is ids else np.intersect1d(ids, other, assume_unique=True)
        return ids

    def _correct(self, row: Row, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of the rows `ids` [R] was predicted correctly."""
        correct = self._file(str(row.predictions), str(row.test))
        test = self._test(str(row.test))
        if len(test.ids) == len(ids):
            return correct
        found: NDArray[np.bool_] = correct[np.searchsorted(test.ids, ids)]
        return found

    @cache  # noqa: B019
    def _file(self, predictions: str, test_name: str) -> NDArray[np.bool_]:
        """Correctness [R] in the order of the test set's sorted ids."""
        test = self._test(test_name)
        table = read(self.folder / predictions, ["row", "prediction"])
        rows, predicted = numbers(table["row"]), numbers(table["prediction"])
        if len(rows) != len(test.ids) or not np.array_equal(np.sort(rows), np.arange(len(rows))):
            raise MonoevalError(
                f"{self.folder / predictions} does not hold each row of its test set once: "
                "run the study again with --fresh."
            )
        sorted_prediction = np.empty(len(test.ids), dtype=np.int64)
        sorted_prediction[test.place[rows]] = predicted
        correct: NDArray[np.bool_] = sorted_prediction == test.labels
        return correct

    def _test(self, name: str) -> TestRows:
        return self._tests[name]

    @cached_property
    def _tests(self) -> dict[str, TestRows]:
        return read_tests(self.folder, list(dict.fromkeys(str(r.test) for r in self.rows if r.status == "ok")))


def _place(row: Row) -> tuple[object, ...]:
    """Equal for the two scores whose rows are told apart."""
    return row.arm, row.protocol, row.repeat, *seeds_of(row)
