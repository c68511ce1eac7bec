"""Recipes as commands make them: with fields of another replaced, or for finetuning."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.images import DataSpec
from monoeval.data.load import loaded, source_of
from monoeval.data.subclasses import superclass_of
from monoeval.errors import UsageError, unknown
from monoeval.probes.spec import (
    ProbeSpec,
    WiSE,
)
from monoeval.scenarios import AnyScenario
from monoeval.scenarios.label_noise import LabelNoiseScenario
from monoeval.scenarios.ood import DEFAULT_TARGETS, OutOfDomain
from monoeval.scenarios.ood_detection import OODDetection
from monoeval.scenarios.registry import SCENARIOS
from monoeval.scenarios.subpopulation import Subpopulation
from monoeval.scenarios.trial import SelectOn
from monoeval.spec import Spec
from monoeval.suite.recipe import Arm, Recipe, TextArms, expand
from monoeval.suite.recipe_files import COMMAND, parse

log = logging.getLogger("monoeval")


def finetuning(
    models: Sequence[BackboneSpec],
    *,
    objectives: Sequence[str],
    adapts: Sequence[str],
    settings: Mapping[str, Any],
) -> Recipe:
    """A study that finetunes each model in every way asked for, under label noise and with few labels.

    An arm's baseline is the one that differs from it in one thing: LoRA for MonoLoRA, else CE for NCE. Of several
    adapts, a rank is of those that have one. Raises UsageError for unknown names and settings out of range.
    """
    backbones, arms = {}, []
    for model in models:
        label = str(model.model)
        backbones[label] = _fields(model)
        names = {
            (adapt, objective): f"{label} {objective}" + (f" {adapt}" if adapts != ["full"] else "")
            for adapt in adapts
            for objective in objectives
        }
        for (adapt, objective), name in names.items():
            plainer = [("lora", objective)] if adapt == "monolora" else []
            plainer += [(adapt, "ce")] if objective == "nce" else []
            baseline = next((names[other] for other in plainer if other in names), None)
            mixed = set(adapts) - {"full"}
            own = {n: v for n, v in settings.items() if n != "rank" or adapt != "full" or not mixed}
            probe = {"kind": "finetune", "objective": objective, "adapt": adapt, **own}
            arms.append({"name": name, "backbone": label, "probe": probe, "baseline": baseline})
    fields = {
        "backbones": backbones,
        "arms": arms,
        "scenarios": [
            {"name": "label-noise", "rates": [0, 0.2, 0.4, 0.6, 0.8]},
            {"name": "few-shot", "shots": [4, 8, 16], "repeats": 2},
        ],
    }
    return parse(fields, COMMAND, None)


def changed(
    recipe: Recipe,
    *,
    name: str | None = None,
    models: Sequence[BackboneSpec] = (),
    methods: Sequence[AdapterSpec] = (),
    probe: ProbeSpec | None = None,
    data: DataSpec | None = None,
    target: DataSpec | Sequence[DataSpec] = (),
    scenarios: Sequence[str] = (),
    select_on: SelectOn | None = None,
    seeds: int | None = None,
    limit: int | None = None,
    latents: bool = False,
    reference: str | None = None,
    zero_shot: bool = False,
) -> Recipe:
    """`recipe` with the given fields replaced, as the command line does; with models, nothing is pretrained.

    A `probe` is that of every arm but those that finetune; where the recipe's own is of its kind, that one's
    settings stay.
    """
    fields: dict[str, Any] = {}
    if name:
        fields["name"] = name
    if models:
        fields |= {"models": tuple(models), "backbones": {}, "arms": (), "note": None,
                   "methods": tuple(methods) or recipe.methods or (AdapterSpec(method="sae"),)}  # fmt: skip
    elif methods and recipe.models:
        fields["methods"] = tuple(methods)
    elif methods:
        fields["arms"] = _with_methods(recipe, tuple(methods))
    if probe is not None:
        fields["probe"] = recipe.probe if recipe.probe.kind == probe.kind else probe
        arms = fields.get("arms", recipe.arms)
        fields["arms"] = tuple(_probed(arm, fields["probe"]) for arm in arms)
    fields["data"] = _limited(recipe.data, data or recipe.data, limit)
    targets = (target,) if isinstance(target, DataSpec) else tuple(target)
    fields["scenarios"] = tuple(_scenarios(recipe, fields["data"], targets, scenarios))
    if data is not None and data.label != recipe.data.label and fields.get("note", recipe.note):
        fields["note"] = f"This recipe is of {recipe.data.label}, and was run on {data.label}. {recipe.note}"
    if targets and not {"ood", "ood-detection"} & {s.name for s in fields["scenarios"]}:
        raise UsageError("--target is of the ood scenario: add --scenario ood.")
    if select_on is not None:
        fields["scenarios"] = _selected_on(fields["scenarios"], select_on)
    kept = [c for c in recipe.family if c.scenario in [s.name for s in fields["scenarios"]]]
    if models or methods:
        kept = [c for c in kept if c.arm is None]  # those arms are no longer there
    if len(kept) < len(recipe.family):
        log.warning("The recipe's family loses what it says of arms and scenarios that are left out.")
        fields["family"] = tuple(kept)
    if seeds is not None:
        fields["seeds"] = seeds
    if latents:
        fields["latents"] = True
    if reference is not None:
        fields["reference"] = BackboneSpec(model=reference)
    if zero_shot:
        fields["zero_shot"] = recipe.zero_shot or TextArms()
    return parse({**_fields(recipe), **{k: _plain(v) for k, v in fields.items()}}, COMMAND, None)


def _limited(own: DataSpec, data: DataSpec, limit: int | None) -> DataSpec:
    """`data` with the limit that is given, or else with that of the recipe's own data."""
    if limit is None and data.limit is None and own.limit is not None:
        log.warning(
            "At most %d images a split of %s, as the recipe says: change that with --limit.", own.limit, data.label
        )
        limit = own.limit
    return data if limit is None else data.model_copy(update={"limit": limit})


def _selected_on(scenarios: tuple[AnyScenario, ...], select_on: SelectOn) -> tuple[AnyScenario, ...]:
    if not any(isinstance(s, LabelNoiseScenario) for s in scenarios):
        raise UsageError("--select-on is of the label-noise scenario: add --scenario label-noise.")
    return tuple(
        s.model_copy(update={"select_on": select_on}) if isinstance(s, LabelNoiseScenario) else s
        for s in scenarios
    )


def _probed(arm: Arm, probe: ProbeSpec) -> Arm:
    """`arm` with the recipe's probe; one that reads class names or finetunes goes on doing so."""
    if isinstance(arm.probe, WiSE):
        return arm.model_copy(update={"probe": arm.probe.model_copy(update={"probe": probe})})
    return arm.model_copy(update={"probe": None}) if arm.learner == "frozen" else arm


def _plain(value: Any) -> Any:
    return (
        [_plain(v) for v in value]
        if isinstance(value, tuple)
        else _fields(value)
        if isinstance(value, Spec)
        else value
    )


def _fields(spec: Spec) -> dict[str, Any]:
    return spec.model_dump(mode="json")


def _with_methods(recipe: Recipe, methods: tuple[AdapterSpec, ...]) -> tuple[Arm, ...]:
    """The recipe's raw arms, and the given methods with their controls on each of its backbones."""
    arms = {arm.name: arm for arm in recipe.arms if arm.method == "identity" or arm.learner == "zero-shot"}
    raw = [arm for arm in arms.values() if arm.is_raw]
    if not raw:
        raise UsageError(
            "--method adds arms beside raw features, and no arm of the recipe has them: name a --model too."
        )
    for arm in raw:
        arms |= {new.name: new for new in expand(arm, methods) if new.name not in arms}
    return tuple(
        arm.model_copy(update={"controls": tuple(c for c in arm.controls if c in arms)}) for arm in arms.values()
    )


def _scenarios(
    recipe: Recipe, data: DataSpec, targets: tuple[DataSpec, ...], names: Sequence[str]
) -> Iterator[AnyScenario]:
    listed: dict[str, AnyScenario] = {s.name: s for s in recipe.scenarios}
    for name in names or listed:
        if name not in SCENARIOS:
            raise unknown("scenario", name, SCENARIOS)
        scenario = listed[name] if name in listed else SCENARIOS[name]()
        if isinstance(scenario, OutOfDomain):
            if targets:
                labels = [target.label for target in targets]
                same = {name: pairs for name, pairs in scenario.standard.items() if name in labels}
                scenario = OutOfDomain(target=targets, standard=same if data.name == recipe.data.name else {})
            elif data.name != recipe.data.name:  # what the target and the standard models were for
                scenario = OutOfDomain(leave_one_out=scenario.leave_one_out)
        elif isinstance(scenario, OODDetection) and (targets or data.name != recipe.data.name):
            if len(targets) > 1:
                raise UsageError("The ood-detection scenario takes one --target: run it once for each.")
            scenario = scenario.model_copy(update={"target": targets[0] if targets else None})
        if isinstance(scenario, OutOfDomain | OODDetection) and not names:
            domains = isinstance(scenario, OutOfDomain) and (scenario.leave_one_out or _has_domains(data))
            if scenario.target is None and data.name not in DEFAULT_TARGETS and not domains:
                log.warning("The %s scenario is left out: name the other set with --target DATA.", scenario.name)
                continue
        if isinstance(scenario, Subpopulation) and not names and not _fits(scenario, data, recipe.data):
            log.warning(
                "The subpopulation scenario is left out: its hierarchy is of the classes of %s.", recipe.data.label
            )
            continue
        yield scenario


def _fits(scenario: Subpopulation, data: DataSpec, own: DataSpec) -> bool:
    """Whether the hierarchy is of the classes of the data; other data is not looked up on the hub for that."""
    if source_of(data) == source_of(own):
        return True
    local = Path(data.name).expanduser().exists()
    return local and set(loaded(data).train.class_names) == superclass_of(scenario.hierarchy).keys()


def _has_domains(data: DataSpec) -> bool:
    """Whether the data has domains to hold out; not looked up where that may mean to download it."""
    return Path(data.name).expanduser().exists() and len(loaded(data).domains) > 1
