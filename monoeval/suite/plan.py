"""From a recipe to the scores that are to be made, each with its key. No torch, no images decoded."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from monoeval.adapters.registry import adapter_identity
from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.resolve import identity
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.corruptions import VERSION as CORRUPTIONS_VERSION
from monoeval.data.images import DataSpec
from monoeval.errors import UsageError
from monoeval.keys import key
from monoeval.probes.spec import ArmProbe
from monoeval.scenarios import AnyScenario
from monoeval.scenarios.trial import Fit, Trial
from monoeval.spec import Spec
from monoeval.suite.recipe import Arm, Recipe
from monoeval.suite.trial_rows import check, counts_as, load, shared_classes, test_images, training_labels
from monoeval.suite.units import Unit
from monoeval.training.keys import pretrained_key
from monoeval.training.settings import FinetuneSpec

USES_LABELS = {"supcon": "simclr", "nscl": "ncl"}
"""Objectives of pretraining that tell classes apart → the one that is alike but for that."""
SCHEMA = 5
"""Raised whenever equal specifications would give other scores than before."""


class Group(Spec):
    """Trials of one arm that share training data, backbone, adapter and draw, and so one set of training codes.

    A group is what a worker is sent: it holds no arrays, and its composition depends on the recipe alone, so a
    resumed run solves the same batches as an undisturbed one.
    """

    arm: Arm
    data: DataSpec
    backbone: BackboneSpec
    backbone_seed: int | None
    """None where the recipe does not pretrain the backbone: it is the same for every seed."""
    adapter_seed: int | None
    adapter_seeds: tuple[int, ...]
    """All that the arm has on this backbone: their adapters are fitted together where that is quicker."""
    draw: int | None
    probe: ArmProbe
    """The arm's, or else the recipe's."""
    reference: BackboneSpec | None = None
    """The recipe's: what measures of codes compare images by."""
    match: "Group | None" = None
    """The arm that this one matches, without trials: what is needed to fit its adapter."""
    trials: tuple[Trial, ...]
    keys: tuple[str, ...]
    """One key a trial, in their order."""


@dataclass(frozen=True)
class Plan:
    """All groups of a recipe, in the order they run."""

    recipe: Recipe
    groups: tuple[Group, ...]

    @property
    def scores(self) -> int:
        return sum(len(group.keys) for group in self.groups)


def make_plan(recipe: Recipe) -> Plan:
    """Expand `recipe` and check, before anything heavy starts, that every trial can be made.

    Raises UsageError for unknown names, too few rows for the shots asked, or domains without shared classes.
    """
    recipe = recipe.resolved()
    fitted = _together(recipe, _trials)
    unfitted = _together(recipe, _unfitted_trials) if any(map(fits_nothing, recipe.arms)) else {}
    groups: dict[tuple[object, ...], Group] = {}
    for unit in recipe.units:
        for arm in recipe.arms:
            for (data, draw), some in (unfitted if fits_nothing(arm) else fitted).items():
                if draw not in (None, unit.draw):
                    continue
                group = _group(recipe, arm, unit, some[0].data)
                place = (arm.name, data, group.backbone_seed, group.adapter_seed, draw)
                if place in groups:
                    continue
                group = group.model_copy(update={"draw": draw, "trials": tuple(some)})
                groups[place] = group.model_copy(update={"keys": _keys(group)})
    _check_labels(groups.values())
    _check_axes(recipe, groups.values())
    backbones, arms = list(recipe.backbones), [arm.name for arm in recipe.arms]
    data_sets = list(dict.fromkeys(data for data, _ in (*fitted, *unfitted)))

    def place_of(group: Group) -> tuple[int, ...]:
        """One backbone after the other, so that each is loaded once."""
        seeds = (-1 if s is None else s for s in (group.backbone_seed, group.adapter_seed, group.draw))
        backbone_seed, adapter_seed, draw = seeds
        # a backbone that the recipe pretrains is another one for other data
        made_of = data_sets.index(group.data.model_dump_json()) if group.backbone.pretrain else 0
        backbone, arm = backbones.index(group.arm.backbone), arms.index(group.arm.name)
        return (backbone_seed, backbone, made_of, arm, adapter_seed, draw)

    return Plan(recipe, tuple(sorted(groups.values(), key=place_of)))


def _together(
    recipe: Recipe, trials: Callable[[AnyScenario, DataSpec, int], Iterable[Trial]]
) -> dict[tuple[str, int | None], list[Trial]]:
    """Distinct trials of all draws by what they share: training data and draw."""
    together: dict[tuple[str, int | None], list[Trial]] = {}
    for seed in dict.fromkeys(unit.draw for unit in recipe.units):
        for scenario in recipe.scenarios:
            for trial in trials(scenario, recipe.data, seed):
                same = together.setdefault((trial.data.model_dump_json(), trial.draw), [])
                if trial not in same:
                    check(trial)
                    same.append(trial)
    return together


def _check_labels(groups: Iterable[Group]) -> None:
    """Refuse backbones that learned from clean labels which a scenario takes from the probes on them."""
    for group in groups:
        pretrain = group.backbone.pretrain
        if pretrain is None or pretrain.objective not in USES_LABELS:
            continue
        taken = next((trial.scenario for trial in group.trials if trial.fit != Fit()), None)
        if taken is not None:
            raise UsageError(
                f"The backbone {group.arm.backbone} is pretrained by {pretrain.objective} on the clean labels of "
                f"all training rows, some of which the {taken} scenario changes or leaves out: pretrain it by "
                f"{USES_LABELS[pretrain.objective]}, which needs none, or leave out {taken}."
            )


def _check_axes(recipe: Recipe, groups: Iterable[Group]) -> None:
    """Refuse a crossed recipe that repeats what nothing in it differs by, or cannot say what an arm matches."""
    if isinstance(recipe.seeds, int):
        return
    pretrained = {arm.name for arm in recipe.arms if recipe.backbones[arm.backbone].pretrain}
    for arm in recipe.arms:
        if recipe.seeds.backbones > 1 and arm.match in pretrained and arm.name not in pretrained:
            raise UsageError(
                f"{arm.name} has one adapter a seed, and {arm.match}, which it matches, one for each of "
                f"{recipe.seeds.backbones} backbones: leave out match, or give --seeds N."
            )
    idle = {
        "backbones": (recipe.seeds.backbones, "pretrains no backbone", [g.backbone_seed for g in groups]),
        "adapters": (recipe.seeds.adapters, "fits no adapter by a seed", [g.adapter_seed for g in groups]),
        "draws": (recipe.seeds.draws, "has no scenario that draws noise or shots", [g.draw for g in groups]),
    }
    for axis, (count, why, seeds) in idle.items():
        if count > 1 and not any(seed is not None for seed in seeds):
            raise UsageError(
                f"seeds asks for {count} {axis}, and the recipe {why}, so all would be one: leave {axis} out of "
                "seeds, or give --seeds N."
            )


def fits_nothing(arm: Arm) -> bool:
    """Whether the arm reads no training label, so that noise, shots and imbalance cannot reach it."""
    return arm.probe is not None and arm.probe.kind == "zero-shot"


def _trials(scenario: AnyScenario, data: DataSpec, seed: int) -> Iterable[Trial]:
    return scenario.trials(data, seed)


def _unfitted_trials(scenario: AnyScenario, data: DataSpec, seed: int) -> list[Trial]:
    """The trials of an arm that fits nothing: one for all seeds, unless a seed draws more than what is fitted."""
    here, next_seed = (
        [trial.model_copy(update={"fit": Fit(), "draw": None}) for trial in scenario.trials(data, s)]
        for s in (seed, seed + 1)
    )
    return here if here == next_seed else [trial.model_copy(update={"draw": seed}) for trial in here]


def _group(recipe: Recipe, arm: Arm, unit: Unit, data: DataSpec) -> Group:
    """A group of `arm` without trials."""
    backbone = recipe.backbones[arm.backbone]
    matched = next((other for other in recipe.arms if other.name == arm.match), None)
    beside = [u.adapter for u in recipe.units if backbone.pretrain is None or u.backbone == unit.backbone]
    return Group(
        arm=arm,
        data=data,
        backbone=backbone,
        backbone_seed=unit.backbone if backbone.pretrain else None,
        adapter_seed=unit.adapter if arm.seeded else None,
        adapter_seeds=tuple(dict.fromkeys(beside)) if arm.seeded else (),
        draw=None,
        probe=arm.probe or recipe.probe,
        reference=recipe.reference,
        match=_group(recipe, matched, unit, data) if matched else None,
        trials=(),
        keys=(),
    )


def backbone_identity(backbone: BackboneSpec, seed: int | None, data: DataSpec) -> dict[str, object]:
    """All that decides the features and is known without loading the model."""
    if backbone.pretrain is None:
        return identity(backbone)
    train = load(data).train
    made = pretrained_key(backbone.pretrain, train.fingerprint, len(train), seed or 0)
    read = backbone.model_dump(include={"layer", "pool", "image_size", "precision"})
    return {"pretrained": made, **read}


def codes_identity(group: Group, *candidates: AdapterSpec) -> dict[str, object]:
    """All that decides the codes of given images by one adapter, or what is chosen from."""
    adapters = [adapter_identity(candidate) for candidate in candidates]
    return {
        "backbone": backbone_identity(group.backbone, group.backbone_seed, group.data),
        "adapter": adapters if len(adapters) > 1 else adapters[0],
        "adapter_seed": group.adapter_seed,
    }


def _keys(group: Group) -> tuple[str, ...]:
    shared = {
        "schema": SCHEMA,
        **codes_identity(group, *group.arm.adapter.candidates),
        "probe": group.probe,
        "train": load(group.data).train.fingerprint,
    }
    if group.arm.learner == "zero-shot":
        shared["classes"] = load(group.data).train.class_names
    if group.arm.latents is not None:
        shared["latents"] = group.arm.latents
    if isinstance(group.probe, FinetuneSpec) and group.probe.crop == 1 and group.probe.flip:
        shared["views"] = "mirrored"  # in schema 5 their aspect ratio was jittered at first
    if group.reference is not None:  # no score depends on it, and measures stand in the same line
        shared["reference"] = identity(group.reference)
    if group.match is not None:
        shared["match"] = codes_identity(group.match, *group.match.arm.adapter.candidates)
    keys = []
    for trial in group.trials:
        # what names data is left out: its content decides, wherever it lies
        fields = trial.model_dump(
            mode="json",
            exclude={
                "data": True,
                "protocol": True,
                "test": {"data": True, "shared_with": True, "official": {"folder"}},
            },
        )
        if trial.test.transform is not None and trial.test.transform.stage == "image":
            fields["corruptions"] = CORRUPTIONS_VERSION
        if trial.test.shared_with is not None:
            fields["series"] = shared_classes(trial)
            counts = counts_as(trial)
            if (counts >= 0).sum() > len(np.unique(counts[counts >= 0])):
                fields["counts_as"] = counts.tolist()
        if trial.fit.labels is not None and trial.fit.labels.kind == "human":
            fields["fit"]["labels"] |= {"file": None, "column": None, "given": training_labels(trial).tolist()}
        keys.append(key({**shared, "trial": fields, "test": test_images(trial.test).fingerprint}))
    return tuple(keys)


def described(group: Group, position: int) -> dict[str, Any]:
    """The fields of a row that are known before anything is computed."""
    trial = group.trials[position]
    return {
        "key": group.keys[position],
        "arm": group.arm.name,
        "baseline": group.arm.baseline,
        "controls": group.arm.controls,
        "method": group.arm.method,
        "probe_kind": group.probe.kind,
        "conditional": group.backbone.pretrain is None,
        "backbone_seed": group.backbone_seed,
        "adapter_seed": group.adapter_seed,
        "draw": trial.draw,
        "repeat": trial.repeat,
        "train": load(trial.data).train.fingerprint,
        "scenario": trial.scenario,
        "series": trial.series,
        "level": trial.level,
    }
