"""Run a recipe: what is missing is made group by group, and each group is on disk before the next starts."""

import logging
import platform
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from monoeval import progress
from monoeval.backbones.resolve import check_available, resolve
from monoeval.data.load import source_of
from monoeval.errors import MonoevalError, UsageError
from monoeval.files import CannotWriteError, atomic
from monoeval.keys import key
from monoeval.suite.ledger import Ledger, Row, named, read_rows, readable, sidecars
from monoeval.suite.plan import Group, Plan, described, make_plan
from monoeval.suite.recipe import Recipe
from monoeval.suite.recipe_files import load_recipe
from monoeval.suite.trial_rows import load, test_images, tested_rows, transitions

if TYPE_CHECKING:
    from monoeval.suite.score import Score  # which needs torch

log = logging.getLogger("monoeval")
LEARNERS = {
    "frozen": "monoeval.suite.frozen:score",
    "zero-shot": "monoeval.suite.zero_shot:score",
    "finetune": "monoeval.suite.finetune:score",
}
"""Learner → `module:function` of (group, device) that gives its scores; imported when it is first needed."""
OTHER_GROUPS = 1 << 40
"""Added to the numbers of groups of another data set than the one that is trained on."""
LIBRARIES = ("monoeval", "torch", "timm", "open_clip_torch", "numpy", "scipy", "scikit-learn", "datasets")


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its rows, in the order of the plan."""

    folder: Path
    rows: list[Row]
    made: int
    """Scores computed now; the rest were there already."""

    @property
    def failed(self) -> list[Row]:
        """Rows that are not a score: a failed trial, a NaN, or no row to score."""
        return [row for row in self.rows if row.status != "ok"]


def run(
    recipe: str | Path | dict[str, Any] | Recipe,
    *,
    out: str | Path = "runs",
    device: str = "auto",
    fresh: bool = False,
    debug: bool = False,
) -> Run:
    """Run `recipe` (a name, a file, its fields, or a `Recipe`) and write its ledger and report.

    Scores that the run folder, or a sibling run with equal keys, has already are not made again.
    Raises MonoevalError; a trial that fails is a row with status `failed`, and the others go on.
    """
    plan = make_plan(load_recipe(recipe))
    folder = run_folder(plan.recipe, Path(out))
    todo = missing(plan, read_rows(folder)) if not fresh else list(plan.groups)
    needed = {g.arm.backbone: g.backbone for g in todo} | {"": plan.recipe.reference if todo else None}
    for backbone in needed.values():
        if backbone is not None and backbone.pretrain is None:
            check_available(backbone)
    if todo:
        from monoeval.suite.frozen import check  # with torch, which a finished study does not need

        check(todo, device)
    with Ledger(folder) as ledger:
        if not fresh:
            ledger.keep(
                {(g.arm.name, k): t.protocol for g in plan.groups for k, t in zip(g.keys, g.trials, strict=True)}
            )
            _import_siblings(plan, ledger)
        before = [] if fresh else ledger.rows()
        if before:
            _write_recipe(plan.recipe, folder)
        todo, done = missing(plan, before), {(row.arm, row.key) for row in before if row.status == "ok"}
        with progress.bar("Scoring", sum(len(g.keys) for g in todo), "scores") as advance:
            for number, group in enumerate(todo):
                made = _make(group, done, device, debug)
                if fresh and number == 0:  # what was there goes once there is something to take its place
                    _start_anew(folder)
                _write_recipe(plan.recipe, folder)
                _write(made, done, ledger)
                advance(len(group.keys))
        rows = _in_plan_order(plan, ledger.rows())
        if _older(folder / "report.html", ledger.path):
            from monoeval.report import write

            write(folder)
    return Run(folder, rows, made=sum(row.status == "ok" for row in rows) - len(done))


def run_folder(recipe: Recipe, out: Path) -> Path:
    """`out/name-data-hash`: the same recipe always has the same folder."""
    return out / f"{_file_name(recipe.name)}-{_file_name(recipe.data.label)}-{recipe.key()[:6]}"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


def missing(plan: Plan, rows: Iterable[Row]) -> list[Group]:
    """Groups that lack a score; a failed one is tried again."""
    done = {(row.arm, row.key) for row in rows if row.status == "ok"}
    return [g for g in plan.groups if any((g.arm.name, k) not in done for k in g.keys)]


def _make(group: Group, done: set[tuple[str, str]], device: str, debug: bool) -> "list[Score] | list[Row]":
    """The scores of one group, or rows that say why there are none."""
    module, function = LEARNERS[group.arm.learner].split(":")
    score = getattr(import_module(module), function)
    try:
        scores: list[Score] = score(group, device)
    except MonoevalError as error:
        if debug or isinstance(error, UsageError | CannotWriteError):  # what every other group would meet too
            raise
        log.warning("%s failed: %s", group.arm.name, error)
        return _failures(group, done, str(error))
    except Exception as error:
        if debug:
            raise
        log.warning("%s failed (%s): run again with --debug to see where.", group.arm.name, error)
        return _failures(group, done, f"{type(error).__name__}: {error}".splitlines()[0])
    return scores


def _write(scores: "list[Score] | list[Row]", done: set[tuple[str, str]], ledger: Ledger) -> None:
    """Write what one group gave: sidecars first, then its lines at once."""
    lines = []
    for made in scores:
        if isinstance(made, Row):
            lines.append(made)
            continue
        if (made.row.arm, made.row.key) in done:
            continue
        row = made.row
        if made.predictions is not None:
            test = test_images(made.trial.test)
            tested, labels = tested_rows(made.trial)
            content = key([test.fingerprint, tested.tolist(), labels.tolist()])
            name = f"{_file_name(made.trial.test.data.label)}-{content[:8]}"
            ids, groups = test.ids[tested].tolist(), None if test.groups is None else test.groups[tested]
            if source_of(made.trial.test.data) != source_of(made.trial.data):
                # row 7, or writer 7, of another set is another one, and must not be paired with that of the data
                ids = [f"{made.trial.test.data.label}: {row_id}" for row_id in ids]
                groups = None if groups is None else groups + OTHER_GROUPS
            ledger.add_test(name, ids, labels, groups)
            row = row.model_copy(update={"test": name, "predictions": f"predictions/{row.key}.parquet"})
            ledger.add_predictions(row, made.predictions)
            if (noisy := transitions(made.trial)) is not None:
                names = load(made.trial.data).train.class_names
                row = row.model_copy(update={"transitions": ledger.add_transitions(names, noisy)})
        lines.append(row)
    ledger.append(lines)


def _failures(group: Group, done: set[tuple[str, str]], error: str) -> list[Row]:
    resolved = group.backbone.pretrain.objective if group.backbone.pretrain else resolve(group.backbone).name
    return [
        Row.model_validate(
            {
                **described(group, i),
                "model": resolved,
                "protocol": trial.protocol,
                "status": "failed",
                "error": error,
            }
        )
        for i, trial in enumerate(group.trials)
        if (group.arm.name, group.keys[i]) not in done
    ]


def _in_plan_order(plan: Plan, rows: Iterable[Row]) -> list[Row]:
    by_key = {(row.arm, row.key): row for row in rows}
    planned = [(g.arm.name, k) for g in plan.groups for k in g.keys]
    return [by_key[place] for place in planned if place in by_key]


def _import_siblings(plan: Plan, ledger: Ledger) -> None:
    """Copy scores with equal keys from other runs beside this one."""
    wanted: dict[str, list[tuple[Group, int]]] = {}
    for group in missing(plan, ledger.rows()):
        for i, k in enumerate(group.keys):
            wanted.setdefault(k, []).append((group, i))
    have = {(row.arm, row.key) for row in ledger.rows() if row.status == "ok"}
    siblings = sorted(p.parent for p in ledger.folder.parent.glob("*/results.jsonl") if p.parent != ledger.folder)
    for sibling in siblings if wanted else ():
        try:
            rows = [r for r in read_rows(sibling) if r.status == "ok" and r.key in wanted]
        except MonoevalError as error:
            log.warning("Scores of %s were not taken over: %s", sibling, error)
            continue
        lines = []
        for row in rows:
            for group, i in wanted[row.key]:
                if (group.arm.name, row.key) in have or not _copy_sidecars(row, sibling, ledger.folder):
                    continue
                have.add((group.arm.name, row.key))
                mine = row.model_copy(update=described(group, i))
                lines.append(named(mine, group.trials[i].protocol))
        if lines:
            ledger.append(lines)


def _copy_sidecars(row: Row, source: Path, target: Path) -> bool:
    for relative in sidecars(row):
        if (target / relative).exists():
            continue
        if not readable(source / relative):
            return False
        with atomic(target / relative) as temporary:
            shutil.copyfile(source / relative, temporary)
    return True


def _older(report: Path, ledger: Path) -> bool:
    return not report.exists() or report.stat().st_mtime_ns < ledger.stat().st_mtime_ns


def _start_anew(folder: Path) -> None:
    """Delete what a run wrote; the ledger first, so that what is left never speaks of files that are gone."""
    for name in ("results.jsonl", "recipe.yaml", "report.html", "report.md", "report.csv", "summary.csv"):
        (folder / name).unlink(missing_ok=True)
    for name in ("predictions", "tests", "transitions", "figures"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _write_recipe(recipe: Recipe, folder: Path) -> None:
    """The resolved recipe with the versions and hardware it first ran on."""
    path = folder / "recipe.yaml"
    if path.exists():
        return
    fields = {**recipe.model_dump(mode="json"), "environment": environment()}
    with atomic(path) as temporary:
        temporary.write_text(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True), encoding="utf-8")


def environment() -> dict[str, str]:
    """Versions and hardware, without importing any of the libraries."""
    found = {"python": platform.python_version(), "system": platform.system(), "processor": _processor()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            found[library] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
