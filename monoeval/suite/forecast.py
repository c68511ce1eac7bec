"""What running a recipe would do, told from the plan, the ledgers and the cache: no torch, nothing written."""

from pathlib import Path
from typing import Any

from monoeval.adapters.registry import n_views
from monoeval.backbones import records
from monoeval.backbones.resolve import identity
from monoeval.data.transforms import views
from monoeval.errors import MonoevalError
from monoeval.keys import key
from monoeval.probes.spec import Paper
from monoeval.suite.ledger import Row, read_rows
from monoeval.suite.plan import Group, backbone_identity, make_plan
from monoeval.suite.recipe import Recipe
from monoeval.suite.run import missing, run_folder
from monoeval.suite.trial_rows import load, test_images, tested_rows
from monoeval.training.keys import pretrained_folder
from monoeval.training.settings import FinetuneSpec

BYTES_A_VALUE = 2  # features are kept in half precision


def forecast(recipe: Recipe, out: Path, *, fresh: bool = False) -> dict[str, Any]:
    """Counts of what is to be made, and of what is there already, by name.

    The time is guessed from like scores in the runs under `out`; where there are none, it says so. With `fresh`
    every score is to be made.
    """
    plan = make_plan(recipe)
    folder = run_folder(plan.recipe, out)
    rows = read_rows(folder)
    elsewhere = [
        row for path in out.glob("*/results.jsonl") if path.parent != folder for row in _sibling(path.parent)
    ]
    todo = missing(plan, [] if fresh else rows)
    taken_over = set() if fresh else {row.key for row in elsewhere if row.status == "ok"}
    new = sum(k not in taken_over for group in todo for k in group.keys)
    images, cached, size = _images(todo)
    return {
        "folder": str(folder),
        "scores in all": plan.scores,
        "scores to make": new,
        "scores there already": plan.scores - new,
        "arms": len(plan.recipe.arms),
        "seeds": plan.recipe.seeds if isinstance(plan.recipe.seeds, int) else str(plan.recipe.seeds),
        "backbones to pretrain": len(_to_pretrain(todo)),
        "networks to finetune": _to_finetune(todo),
        "images to extract": images,
        "images in the cache": cached,
        "features to write": f"{size / 1e6:,.1f} MB" if size is not None else "unknown until the model is loaded",
        "estimated time": _time(todo, [*rows, *elsewhere], taken_over),
    }


def _sibling(folder: Path) -> list[Row]:
    """The rows of another run; none of one that a run would not take over either."""
    try:
        return read_rows(folder)
    except MonoevalError:
        return []


def _to_pretrain(groups: list[Group]) -> set[Path]:
    folders = set()
    for group in groups:
        if group.backbone.pretrain is not None:
            train, seed = load(group.data).train, group.backbone_seed or 0
            folders.add(pretrained_folder(group.backbone.pretrain, train.fingerprint, len(train), seed))
    return {folder for folder in folders if not folder.exists()}


def _to_finetune(groups: list[Group]) -> int:
    """How many trainings finetuning comes to: one for each rate that is tried, and one at the chosen rate."""
    trainings = 0
    for group in groups:
        if isinstance(group.probe, FinetuneSpec):
            rates = len(group.probe.learning_rates)
            fits = {trial.fit.model_dump_json() for trial in group.trials}
            trainings += len(fits) * (rates + 1 if rates > 1 else 1)
    return trainings


def _images(groups: list[Group]) -> tuple[int, int, int | None]:
    """Images to extract, images whose features are cached, and the bytes to be written where that is known."""
    seen: set[tuple[str, str, str]] = set()
    new, cached, size = 0, 0, 0
    known = True
    for group in groups:
        if group.arm.learner == "finetune":
            continue  # it reads images, and keeps no features
        data = group.data
        identity_key = key(backbone_identity(group.backbone, group.backbone_seed, data))
        record = records.read(identity_key)
        projected = group.backbone.pretrain is not None and group.backbone.layer in {None, "projector"}
        width = group.backbone.pretrain.width if projected and group.backbone.pretrain else record.get("width")
        wanted = [(load(data).train, None), *((test_images(t.test), t.test.transform) for t in group.trials)]
        augmented = group.probe.n_views if isinstance(group.probe, Paper) else 0
        augmented = max(augmented, n_views(group.arm.adapter))
        wanted += [(load(data).train, view) for view in views(augmented)]
        by_whom = [(identity_key, width, *each) for each in wanted]
        if group.reference is not None:
            other = key(identity(group.reference))
            by_whom.append((other, records.read(other).get("width"), load(data).test, None))
        for network, width, images, transform in by_whom:
            place = (network, images.fingerprint, transform.model_dump_json() if transform else "")
            if place in seen:
                continue
            seen.add(place)
            if records.cached(network, images.fingerprint, transform):
                cached += len(images)
                continue
            new += len(images)
            known = known and isinstance(width, int)
            size += len(images) * width * BYTES_A_VALUE if isinstance(width, int) else 0
    return new, cached, size if known else None


def _time(groups: list[Group], rows: list[Row], taken_over: set[str]) -> str:
    """A rough guess: the mean time of scores of the same arm, probe, scenario and number of test rows."""
    spent: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        if row.status == "ok":
            spent.setdefault((row.arm, row.method, row.probe_kind, row.scenario, row.rows), []).append(row.seconds)
    seconds = 0.0
    for group in groups:
        for trial, k in zip(group.trials, group.keys, strict=True):
            if k in taken_over:
                continue
            like = (group.arm.name, group.arm.method, group.probe.kind, trial.scenario, len(tested_rows(trial)[0]))
            if like not in spent:
                return "unknown: nothing like it was run under this folder yet"
            seconds += sum(spent[like]) / len(spent[like])
    return f"about {seconds / 60:.1f} minutes" if seconds >= 90 else f"about {seconds:.0f} seconds"
