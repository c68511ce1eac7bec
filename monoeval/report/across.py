"""Several runs side by side, on the conditions and test rows that they share."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from monoeval.errors import UsageError
from monoeval.report.compare import fill
from monoeval.report.layout import divide, slugs
from monoeval.report.model import Summary
from monoeval.report.points import Point, point_of
from monoeval.report.scores import Scores
from monoeval.report.summary import summary_of
from monoeval.suite.ledger import Row

_NAMED = 3
"""Protocols that a sentence names before it only counts."""


def summarise_together(folders: Sequence[Path]) -> Summary:
    """Arms of several runs, those of the later runs held against the first; nothing is written.

    Conditions are shared where the protocol id, the series and the level are equal; rows are paired by id, seeds
    and repeats by number. An arm is held against the arm of its name in the first run; without one, against the
    first arm there that has a baseline and no namesake either, else against the first. An arm whose scores have
    equal keys in both runs is shown once. All comparisons are one family for Holm's adjustment. Raises UsageError
    for fewer than two runs, one named twice, a folder that is no run or has no score, and runs that share no
    protocol or no test row; MonoevalError where a file is damaged or of another schema.
    """
    if len(folders) < 2:
        raise UsageError("A comparison needs two runs or more: `monoeval compare RUN_A RUN_B`.")
    twice = [folder for folder, n in Counter(folder.resolve() for folder in folders).items() if n > 1]
    if twice:
        raise UsageError(f"{twice[0].name} was named twice: a run cannot be compared with itself.")
    runs = [Scores(folder) for folder in folders]
    for run in runs:
        if not any(row.status == "ok" for row in run.rows):
            raise UsageError(f"{run.folder} has no score yet: finish it with `monoeval suite` first.")
    names = _names(folders)
    for run, name in zip(runs[1:], names[1:], strict=True):
        _check_protocols(runs[0], run, names[0], name)
    together = _Together(runs, names)
    for name in names[1:]:
        _check_rows(together, names[0], name)
    divided = divide(together.points)
    tables = [
        fill(together, title, slug, points)
        for slug, (title, points) in zip(slugs([title for title, _ in divided]), divided, strict=True)
    ]
    made = summary_of(together, tables)
    return replace(made, notes=(*_notes(runs, names, together), *made.notes))


class _Together(Scores):
    """The scores of several runs on the conditions that the first shares with another."""

    def __init__(self, runs: Sequence[Scores], names: Sequence[str]) -> None:
        first = runs[0]
        super().__init__(first.folder)
        others = {point for run in runs[1:] for point in run.points}
        shared = {point for point in first.points if point in others}
        self.same: list[str] = []
        """Arms that are one and the same in the first run and a later one."""
        self.run_of: dict[str, str] = {}
        """Arm of one run alone → that run's name."""
        self.tests_of: dict[str, set[str]] = defaultdict(set)
        kept: list[tuple[int, dict[str, Any]]] = [(0, arm) for arm in first.arms]
        for place, run in enumerate(runs[1:], 1):
            for arm in run.arms:
                if _keys(run, arm["name"], shared) == _keys(first, arm["name"], shared) != {}:
                    self.same.append(str(arm["name"]))
                else:
                    kept.append((place, arm))
            if kept[-1][0] != place:
                raise UsageError(
                    f"Every score that {names[place]} shares with {names[0]} is the same: nothing differs."
                )
        count, tags = Counter(arm["name"] for _, arm in kept), _tags(names)
        new = {
            (place, arm["name"]): f"{arm['name']} [{tags[place]}]" if count[arm["name"]] > 1 else str(arm["name"])
            for place, arm in kept
        }
        alone = [arm for arm in first.arms if count[arm["name"]] == 1 and arm["name"] not in self.same]
        fallback = next((arm for arm in alone if arm.get("baseline")), first.arms[0])
        here = {arm["name"] for arm in first.arms}
        self.arms, self.rows = [], []
        for place, arm in kept:
            name, run = new[place, arm["name"]], runs[place]
            against = new[0, arm["name"] if arm["name"] in here else fallback["name"]] if place else None
            if name == arm["name"] and name not in self.same:
                self.run_of[name] = names[place]
            about = {
                "backbone": _backbone(run, arm),
                "probe": run.probe(arm["name"]),
                "latents": arm.get("latents"),
            }
            self.arms.append({"name": name, "baseline": against, "controls": (), **about})
        for place, run in enumerate(runs):
            for row in run.rows:
                if point_of(row) not in shared:
                    continue
                if (place, row.arm) in new:
                    moved = _moved(row, run.folder)
                    self.rows.append(moved.model_copy(update={"arm": new[place, row.arm]}))
                    if row.status == "ok":
                        self.tests_of[names[place]].add(str(moved.test))
        self.crossed = all(run.crossed for run in runs)
        # of a crossed run beside one that is not, the units whose seeds are all one number are in both
        self.units = tuple(sorted({u for run in runs for u in run.units if run.crossed == self.crossed}))
        title = " against ".join((" and ".join(names[1:]), names[0]))
        judges = [run.recipe.get("reference") for run in runs]
        judge = judges[0] if all(other == judges[0] for other in judges) else None
        # what the first recipe named as its family is no comparison between runs
        self.recipe = {**first.recipe, "name": title, "note": None, "family": [], "reference": judge}
        self._of = defaultdict(list)
        for row in self.used:
            self._of[row.arm, point_of(row)].append(row)


def _keys(run: Scores, arm: str, points: set[Point]) -> dict[tuple[object, ...], str]:
    """The key of every score of `arm` at `points`."""
    return {
        (point_of(row), row.backbone_seed, row.adapter_seed, row.draw, row.repeat): row.key
        for row in run.rows
        if row.arm == arm and row.status == "ok" and point_of(row) in points
    }


def _backbone(run: Scores, arm: dict[str, Any]) -> str:
    """What tells the arm's backbone from that of another run, whatever the two call it."""
    spec = (run.recipe.get("backbones") or {}).get(arm.get("backbone"), arm.get("backbone"))
    trained = run.recipe.get("data") if isinstance(spec, dict) and spec.get("pretrain") else None
    return json.dumps([spec, trained], sort_keys=True, default=str)


def _moved(row: Row, folder: Path) -> Row:
    """`row` with its sidecars named so that they are found from any run folder."""
    if row.predictions is None or row.test is None:
        return row
    home = folder.resolve()
    return row.model_copy(
        update={"test": str(home / "tests" / row.test), "predictions": str(home / row.predictions)}
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or their paths where two are called alike."""
    short = [folder.resolve().name for folder in folders]
    return [str(f) if short.count(name) > 1 else name for f, name in zip(folders, short, strict=True)]


def _tags(names: Sequence[str]) -> list[str]:
    """The names without the parts between hyphens that all of them begin with."""
    parts = [name.split("-") for name in names]
    while min(map(len, parts)) > 1 and len({some[0] for some in parts}) == 1:
        parts = [some[1:] for some in parts]
    return ["-".join(some) for some in parts]


def _check_protocols(first: Scores, other: Scores, name: str, other_name: str) -> None:
    if not set(first.points) & set(other.points):
        raise UsageError(
            f"{name} and {other_name} share no protocol, and unlike protocols are never set side by side: "
            f"{name} has {_some(first.points)}; {other_name} has {_some(other.points)}."
        )


def _check_rows(together: _Together, name: str, other: str) -> None:
    """Refuse runs without a test row in common, or whose rows of equal id have unlike labels."""
    mine, theirs = ([together._test(test) for test in sorted(together.tests_of[n])] for n in (name, other))
    shared = 0
    for a in mine:
        for b in theirs:
            ids, i, j = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
            shared += len(ids)
            if (a.labels[i] != b.labels[j]).any():
                raise UsageError(
                    f"Test rows of equal id have unlike labels in {name} and {other}: they are of unlike data."
                )
    if not shared:
        raise UsageError(
            f"{name} and {other} share protocols ({_some(together.points)}) but no test row: "
            "only runs on the same images can be compared."
        )


def _some(points: Sequence[Point]) -> str:
    names = list(dict.fromkeys(point.protocol for point in points))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _notes(runs: Sequence[Scores], names: Sequence[str], together: _Together) -> list[str]:
    arms: dict[str, list[str]] = defaultdict(list)
    for arm, name in together.run_of.items():
        arms[name].append(arm)
    notes = [f"Arms of {name} alone: {', '.join(some)}." for name, some in arms.items()]
    if together.same:
        notes.append(
            f"The same scores in more than one run, shown once: {', '.join(dict.fromkeys(together.same))}."
        )
    shared = set(together.points)
    for run, name in zip(runs, names, strict=True):
        if left := [point for point in run.points if point not in shared]:
            notes.append(f"Only in {name}, so not set side by side: {_some(left)}.")
    first = runs[0].recipe.get("data") or {}
    for run, name in zip(runs[1:], names[1:], strict=True):
        other = run.recipe.get("data") or {}
        unlike = [field for field in {**first, **other} if first.get(field) != other.get(field)]
        if unlike:
            said = ", ".join(f"{field} {first.get(field)} and {other.get(field)}" for field in unlike)
            notes.append(f"Data of {names[0]} and {name} are unlike, so training rows and draws may be: {said}.")
    return notes
