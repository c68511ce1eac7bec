"""Recipes: what a study compares, on which data, under which scenarios. Reading one never imports torch."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from monoeval.adapters.registry import METHODS, controls_for, spec_of
from monoeval.adapters.settings import DictionarySettings
from monoeval.adapters.spec import AdapterSpec, Params
from monoeval.backbones.resolve import check_text_tower, has_text_tower
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.images import DataSpec, named_data
from monoeval.data.load import loaded
from monoeval.data.prompts import TEMPLATES
from monoeval.errors import UsageError, nearest, unknown
from monoeval.keys import key
from monoeval.probes.spec import (
    KNN,
    PROBES,
    TEXT_PROBES,
    ArmProbe,
    Logistic,
    Paper,
    PaperCached,
    ProbeSpec,
    Templates,
    WiSE,
    ZeroShot,
)
from monoeval.scenarios import AnyScenario
from monoeval.scenarios.label_noise import LabelNoiseScenario
from monoeval.scenarios.ood import DEFAULT_TARGETS, OutOfDomain
from monoeval.scenarios.ood_detection import OODDetection
from monoeval.scenarios.registry import REFUSED, SCENARIOS, Listed
from monoeval.scenarios.trial import SelectOn
from monoeval.spec import Spec
from monoeval.training.settings import FinetuneSpec

log = logging.getLogger("monoeval")


def _named(field: str) -> BeforeValidator:
    """Accept a bare name where a recipe holds a specification with one telling field."""
    return BeforeValidator(lambda value: {field: value} if isinstance(value, str) else value)


Named = Annotated[Listed, Field(discriminator="name"), _named("name")]


class Arm(Spec):
    """One line of every table: a backbone, an adapter, and what it is held against."""

    name: str
    backbone: str
    """A name under `backbones`."""
    method: str = "identity"
    params: Params = {}  # noqa: RUF012 (pydantic copies defaults)
    """Settings of the method. Where some are lists, an adapter is fitted for each combination, and for each fit of
    a probe the one with the best validation loss is used; controls that the tool adds get the same lists."""
    probe: ArmProbe | None = None
    """None: the recipe's. Arms of unlike probes may share a table, but are not judged against each other."""
    latents: Literal["most", "least", "random"] | None = None
    """Probe only the most, the least or random monosemantic latents, matched in number, firing rate and energy and
    ranked on clean training rows; None: all of them."""
    match: str | None = None
    """An arm whose width and measured L0 this one takes, where sparsity emerges from training as in NCL."""
    baseline: str | None = None
    controls: tuple[str, ...] = ()

    @property
    def adapter(self) -> AdapterSpec:
        return AdapterSpec(method=self.method, params=self.params)

    @property
    def learner(self) -> Literal["frozen", "zero-shot", "finetune"]:
        """What turns its trials into scores: a name in `suite.run.LEARNERS`."""
        if isinstance(self.probe, FinetuneSpec):
            return "finetune"
        return "zero-shot" if isinstance(self.probe, ZeroShot) else "frozen"

    @property
    def is_raw(self) -> bool:
        """Whether a probe reads the features of its backbone as they are."""
        return self.learner == "frozen" and self.method == "identity"

    @property
    def seeded(self) -> bool:
        """Whether an adapter or a finetuning is drawn anew for each seed."""
        return METHODS[self.method].seeded or self.learner == "finetune"


class TextArms(Spec):
    """What stands beside each image-text model: its zero-shot classifier, and averages of it with the probe."""

    templates: Templates = TEMPLATES
    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.5,)
    """The share of the probe in each average (WiSE)."""


def _switched(value: object) -> object:
    return TextArms() if value is True else None if value is False else value


class Claim(Spec):
    """Comparisons whose p values are adjusted for one another: gains in the primary summary of a scenario."""

    scenario: str
    arm: str | None = None
    """None: every arm that is nobody's control."""
    against: str | None = None
    """One of the arm's controls; None: its baseline."""


class Recipe(Spec):
    """A study. Either `backbones` and `arms` are listed outright, or `models` × `methods` expand to them."""

    name: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")] = "suite"
    """Begins the run folder's name, so it has no slash."""
    note: str | None = None
    """Shown above the report."""
    data: Annotated[DataSpec, BeforeValidator(named_data)] = DataSpec(name="digits")
    seeds: Annotated[int, Field(ge=1)] = 3
    """Seeds 0 … seeds − 1 redraw noise and shots, refit adapters, and pretrain the recipe's backbones again."""
    models: tuple[Annotated[BackboneSpec, _named("model")], ...] = ()
    methods: tuple[Annotated[AdapterSpec, _named("method")], ...] = ()
    backbones: dict[str, BackboneSpec] = {}  # noqa: RUF012 (pydantic copies defaults)
    arms: tuple[Arm, ...] = ()
    probe: ProbeSpec = Logistic()
    latents: bool = False
    """Beside each arm with a monosemantic adapter, three more: its most, least and random monosemantic latents."""
    zero_shot: Annotated[TextArms | None, BeforeValidator(_switched)] = None
    """`true`, or settings: beside each image-text model, arms that read class names."""
    scenarios: Annotated[tuple[Named, ...], Field(min_length=1)]
    family: tuple[Annotated[Claim, _named("scenario")], ...] = ()
    """What Holm's adjustment is over, named before running; if empty, each gain over a baseline with a verdict."""
    margin: Annotated[float, Field(gt=0, lt=100)] = 1.0
    """Differences within ± so many points count as none: what "no gain" and "explained by controls" mean."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.models) == bool(self.arms):
            raise ValueError("give either models (with methods) or arms (with backbones)")
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError("two arms have the same name")
        for arm in self.arms:
            if arm.backbone not in self.backbones:
                raise ValueError(str(unknown("backbone", arm.backbone, self.backbones)))
            for other in filter(None, (arm.baseline, arm.match, *arm.controls)):
                if other not in names:
                    raise ValueError(str(unknown("arm", other, names)))
            sizes = sorted({"k", "width", "width_factor"} & arm.params.keys())
            if arm.match is not None and sizes:
                raise ValueError(
                    f"{arm.name} takes its {sizes[0]} from the arm it matches: leave out one of the two"
                )
            if arm.match in [other.name for other in self.arms if other.match is not None]:
                raise ValueError(f"{arm.name} matches {arm.match}, which matches another arm: name that one")
            if arm.learner == "zero-shot" and arm.adapter != AdapterSpec(method="l2norm"):
                raise ValueError(
                    f"{arm.name} compares class names with the codes of {arm.method}: give it method l2norm, the "
                    "unit-length features that such models are trained on"
                )
            if arm.learner == "finetune" and (arm.method != "identity" or arm.latents or arm.match):
                raise ValueError(f"{arm.name} finetunes its backbone and so has no adapter: leave out method")
        for backbone in (*self.models, *self.backbones.values()):
            if (backbone.model is None) == (backbone.pretrain is None):
                raise ValueError("a backbone needs either model or pretrain")
        repeated = [s.name for s in self.scenarios]
        if claimed := next((REFUSED[name] for name in repeated if name in REFUSED), None):
            raise ValueError(f"{claimed}: uninstall one of the two packages")
        if len(set(repeated)) < len(repeated):
            raise ValueError("a scenario is listed twice; give one entry several levels instead")
        for claim in self.family:
            if claim.scenario not in repeated:
                raise ValueError(f"the family names {claim.scenario}, which is no scenario of this recipe")
            if claim.against is not None and claim.arm is None:
                raise ValueError(f"the family holds something against {claim.against}: name the arm, too")
        return self

    def resolved(self) -> "Recipe":
        """The same study with every arm and backbone written out."""
        if self.arms:
            for arm in self.arms:
                if arm.match is not None and not issubclass(spec_of(arm.adapter).settings, DictionarySettings):
                    raise UsageError(f"{arm.name} has no k to match with: leave out match, or use random-topk.")
                spec_of(arm.adapter)
                if arm.learner == "zero-shot":
                    check_text_tower(self.backbones[arm.backbone])
            return self._with_latents()._with_text()._checked_sweeps()._with_known_family()
        backbones, arms = {}, []
        for model in self.models:
            label = str(model.model)
            if label in backbones:
                raise UsageError(f"The model {label} is listed twice: name each once.")
            backbones[label] = model
            arms += _expand(Arm(name=label, backbone=label), self.methods)
        fields = {"models": (), "methods": (), "backbones": backbones, "arms": tuple(arms)}
        return self.model_copy(update=fields)._with_latents()._with_text()._checked_sweeps()._with_known_family()

    def _checked_sweeps(self) -> "Recipe":
        """Itself, once nothing is chosen where there is nothing to choose by, or where one adapter is meant."""
        for arm in self.arms:
            count, probe = self.tried(arm), arm.probe or self.probe
            if count > 1 and isinstance(probe, PaperCached | Paper):
                raise UsageError(
                    f"{arm.name} has {count} adapters to choose from, and the {probe.kind} probe holds out no "
                    "rows to choose by: give each setting one value, or choose another probe."
                )
            if count > 1 and arm.latents is not None:
                raise UsageError(
                    f"{arm.name} has {count} adapters to choose from, and the most, least and random latents must "
                    "be of one adapter: give each setting one value."
                )
        return self

    def tried(self, arm: Arm) -> int:
        """How many adapters a fit of `arm` chooses from: as many for each of those of the arm that it matches."""
        matched = next((other for other in self.arms if other.name == arm.match), None)
        return len(arm.adapter.candidates) * (len(matched.adapter.candidates) if matched else 1)

    def _with_latents(self) -> "Recipe":
        """With the arms that `latents` asks for: most and least are held against random ones."""
        arms = list(self.arms)
        for arm in self.arms if self.latents else ():
            if arm.method == "identity" or arm.latents is not None or spec_of(arm.adapter).is_control:
                continue
            if f"{arm.name}, random latents" in [other.name for other in self.arms]:
                continue  # a resolved recipe has them already
            drawn = f"{arm.name}, random latents"
            for name, which, baseline in (
                (drawn, "random", None),
                (f"{arm.name}, most monosemantic", "most", drawn),
                (f"{arm.name}, least monosemantic", "least", drawn),
            ):
                fields = {"name": name, "latents": which, "baseline": baseline, "controls": ()}
                arms.append(arm.model_copy(update=fields))
        return self.model_copy(update={"arms": tuple(arms), "latents": False})

    def _with_text(self) -> "Recipe":
        """With the arms that `zero_shot` asks for, beside the raw features of each backbone with a text tower."""
        if self.zero_shot is None:
            return self
        if not any(map(has_text_tower, self.backbones.values())):
            check_text_tower(next(iter(self.backbones.values())))
        arms = {arm.name: arm for arm in self.arms}
        raw = [arm for arm in self.arms if arm.is_raw]
        if not raw:
            raise UsageError("zero_shot stands beside raw features, which no arm has: add one of method identity.")
        for arm in raw:
            if not has_text_tower(self.backbones[arm.backbone]):
                log.warning("%s has no text tower and so no zero-shot arm.", arm.name)
                continue
            templates, fitted = self.zero_shot.templates, arm.probe or self.probe
            if self.zero_shot.alphas and isinstance(fitted, KNN | Paper):
                raise UsageError(
                    f"WiSE averages weights with a linear probe, which {fitted.kind} is not: choose another "
                    "probe, or write zero_shot: {alphas: []}."
                )
            added: dict[str, ZeroShot] = {f"{arm.name} zero-shot": ZeroShot(templates=templates)}
            for alpha in self.zero_shot.alphas:
                added[f"{arm.name} wise {alpha:g}"] = WiSE.model_validate(
                    {"templates": templates, "alpha": alpha, "probe": fitted}
                )
            for name, probe in added.items():
                fields = {"name": name, "method": "l2norm", "params": {}, "probe": probe, "baseline": arm.name}
                arms.setdefault(name, arm.model_copy(update={**fields, "controls": ()}))
        return self.model_copy(update={"arms": tuple(arms.values()), "zero_shot": None})

    def _with_known_family(self) -> "Recipe":
        """Itself, once every comparison of the family is known to be one of the report's."""
        arms = {arm.name: arm for arm in self.arms}
        for claim in self.family:
            if claim.arm is None:
                continue
            if claim.arm not in arms:
                raise unknown("arm", claim.arm, arms)
            held = [other for other in (arms[claim.arm].baseline, *arms[claim.arm].controls) if other]
            if not held:
                raise UsageError(f"{claim.arm} has no baseline, so the family can say nothing of it.")
            if claim.against not in (None, *held):
                raise UsageError(
                    f"The family holds {claim.arm} against {claim.against}, which is neither its baseline nor one "
                    f"of its controls: name one of {', '.join(held)}."
                )
        return self

    def key(self) -> str:
        """Names the run folder; the note does not count."""
        return key(self.resolved().model_dump(mode="json", exclude={"note"}))


def _expand(raw: Arm, methods: tuple[AdapterSpec, ...]) -> list[Arm]:
    """Raw features, each method, and the controls that match it in width and sparsity, all with the same probe."""
    arms = {raw.name: raw}

    def add(spec: AdapterSpec, **held_against: Any) -> str:
        name = f"{raw.name} + {spec.method}"
        fields = {"name": name, "method": spec.method, "params": spec.params, "baseline": raw.name}
        same = raw.model_copy(update={**fields, "controls": (), **held_against})
        if same.match is not None:
            name = f"{name} as {same.match.removeprefix(f'{raw.name} + ')}"
            same = same.model_copy(update={"name": name})
        elif name in arms and arms[name].params != spec.params:
            settings = ", ".join(
                f"{k} {'/'.join(map(str, v)) if isinstance(v, tuple) else v}"
                for k, v in sorted(spec.params.items())
            )
            name, same = f"{name} ({settings})", same.model_copy(update={"name": f"{name} ({settings})"})
        if name not in arms or held_against.get("controls"):
            arms[name] = same
        return name

    for method in methods:
        if spec_of(method).name == "identity":
            continue
        controls = [add(control) for control in controls_for(method)]
        name = add(method, controls=tuple(controls))
        if spec_of(method).emergent:
            controls.append(add(AdapterSpec(method="random-topk"), match=name))
            arms[name] = arms[name].model_copy(update={"controls": tuple(controls)})
    return list(arms.values())


def finetuning(
    models: Sequence[BackboneSpec],
    *,
    objectives: Sequence[str],
    adapts: Sequence[str],
    settings: Mapping[str, Any],
) -> Recipe:
    """A study that finetunes each model in every way asked for, under label noise and with few labels.

    An arm's baseline is the one that differs from it in one thing: LoRA for MonoLoRA, else CE for NCE. Raises
    UsageError for unknown names and settings out of range.
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
            probe = {"kind": "finetune", "objective": objective, "adapt": adapt, **settings}
            arms.append({"name": name, "backbone": label, "probe": probe, "baseline": baseline})
    fields = {
        "backbones": backbones,
        "arms": arms,
        "scenarios": [
            {"name": "label-noise", "rates": [0, 0.2, 0.4, 0.6, 0.8]},
            {"name": "few-shot", "shots": [4, 8, 16], "repeats": 2},
        ],
    }
    return _parse(fields, "the command", None)


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
    if zero_shot:
        fields["zero_shot"] = recipe.zero_shot or TextArms()
    return _parse({**_fields(recipe), **{k: _plain(v) for k, v in fields.items()}}, "the command", None)


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
        arms |= {new.name: new for new in _expand(arm, methods) if new.name not in arms}
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
                scenario = OutOfDomain(target=targets)
            elif scenario.target is not None and data.name != recipe.data.name:
                scenario = OutOfDomain()  # the target was for the recipe's own data
        elif isinstance(scenario, OODDetection) and (targets or data.name != recipe.data.name):
            if len(targets) > 1:
                raise UsageError("The ood-detection scenario takes one --target: run it once for each.")
            scenario = scenario.model_copy(update={"target": targets[0] if targets else None})
        if isinstance(scenario, OutOfDomain | OODDetection) and not names:
            domains = isinstance(scenario, OutOfDomain) and (scenario.leave_one_out or _has_domains(data))
            if scenario.target is None and data.name not in DEFAULT_TARGETS and not domains:
                log.warning("The %s scenario is left out: name the other set with --target DATA.", scenario.name)
                continue
        yield scenario


def _has_domains(data: DataSpec) -> bool:
    """Whether the data has domains to hold out; not looked up where that may mean to download it."""
    return Path(data.name).expanduser().exists() and len(loaded(data).domains) > 1


def recipes() -> dict[str, Path]:
    """Name → file of the recipes that come with the tool (beside the package, or inside it once built)."""
    package = Path(__file__).parents[1]
    folder = next(
        (f for f in (package / "recipes", package.parent / "recipes") if f.is_dir()), package / "recipes"
    )
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does; YAML 1.1 takes it for text unless there is a dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(source: "str | Path | dict[str, Any] | Recipe") -> Recipe:
    """Read a recipe by name, by path, or from its fields.

    Raises UsageError that names the file, the line and the nearest valid key.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, dict):
        return _parse(source, "the recipe", None)
    if not isinstance(source, str | Path):
        raise UsageError(f"A recipe is a name, a file, or a dict of its fields, not {type(source).__name__}.")
    path = Path(source).expanduser()
    if not path.is_file():
        if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
            raise UsageError(
                f"There is no recipe file {path}: `monoeval list recipes` shows those that come with monoeval."
            )
        known = recipes()
        if str(source) not in known:
            raise unknown("recipe", str(source), known)
        path = known[str(source)]
    try:
        text = path.read_text(encoding="utf-8")
        fields, node = yaml.load(text, Loader=_Loader), yaml.compose(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Could not read the recipe {path} ({error}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path} is not valid YAML{where}: {getattr(error, 'problem', error)}.") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{path} is not a recipe: expected keys such as data, arms and scenarios.")
    fields.pop("environment", None)  # a resolved recipe from a run folder can be run again
    return _parse({"name": path.stem, **fields}, str(path), node)


def _parse(fields: dict[str, Any], source: str, node: yaml.Node | None) -> Recipe:
    try:
        return Recipe.model_validate(fields)
    except ValidationError as invalid:
        error = invalid.errors(include_url=False)[0]
        loc = error["loc"]
        field = str(error.get("ctx", {}).get("discriminator", "")).strip("'")  # by which a union is told apart
        line = _line(node, (*loc, field))
        where = f"{source}, line {line}" if line else source
        shown = ".".join(str(part) for part in loc) or "recipe"
        if error["type"] == "extra_forbidden":
            fields_here = _fields_at(Recipe, loc[:-1])
            near = nearest(str(loc[-1]), fields_here)
            advice = f"did you mean {near!r}?" if near else f"the keys here are {', '.join(fields_here)}."
            raise UsageError(f"{where}: there is no key {str(loc[-1])!r}: {advice}") from invalid
        if error["type"] == "union_tag_invalid":
            if error["ctx"]["tag"] in TEXT_PROBES:
                raise UsageError(
                    f"{where}: {error['ctx']['tag']} reads class names and is no probe of every arm: write "
                    "zero_shot: true, or give it to one arm."
                ) from invalid
            known = ("probe", PROBES) if field == "kind" else ("scenario", SCENARIOS)
            raise UsageError(f"{where}: {unknown(known[0], str(error['ctx']['tag']), known[1])}") from invalid
        if error["type"] == "union_tag_not_found":
            raise UsageError(f"{where}: a scenario needs a name, one of {', '.join(SCENARIOS)}.") from invalid
        message = (
            error["msg"]
            .removeprefix("Value error, ")
            .replace("tuple", "list")
            .replace(" after validation", "")
            .replace(" or object to extract fields from", "")
        )
        raise UsageError(f"{where}: {shown}: {message[:1].lower()}{message[1:].rstrip('.')}.") from invalid


def _line(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int | None:
    """The line of the deepest part of `loc` that the file itself holds (pydantic adds tags of its own)."""
    if node is None:
        return None
    line = int(node.start_mark.line) + 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(part)]
            if found:
                line, node = int(found[0][0].start_mark.line) + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = int(node.start_mark.line) + 1
    return line


def _fields_at(model: Any, loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are valid at `loc`."""
    models = [model]
    for part in loc:
        inner = [f.annotation for m in models for name, f in m.model_fields.items() if name == part]
        tagged = [m for m in models if part in _tags(m)]
        models = [m for annotation in inner for m in _models_in(annotation)] or tagged or models
    return sorted({name for m in models for name in m.model_fields})


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """What tells `model` from others of its union: the name of a scenario, the kind of a probe."""
    return tuple(
        tag
        for name in ("name", "kind")
        for tag in get_args(getattr(model.model_fields.get(name), "annotation", None))
    )


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
