"""Recipes: what a study compares, on which data, under which scenarios. Reading one never imports torch."""

import logging
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from monoeval.adapters.registry import METHODS, controls_for, spec_of
from monoeval.adapters.settings import DictionarySettings
from monoeval.adapters.spec import AdapterSpec, Params
from monoeval.backbones.resolve import check_text_tower, has_text_tower, same_network
from monoeval.backbones.spec import BackboneSpec
from monoeval.data.images import DataSpec, named_data
from monoeval.data.prompts import TEMPLATES
from monoeval.errors import UsageError, unknown
from monoeval.keys import key
from monoeval.metrics.components import Levels
from monoeval.probes.spec import (
    KNN,
    ArmProbe,
    Logistic,
    Paper,
    PaperCached,
    ProbeSpec,
    Templates,
    WiSE,
    ZeroShot,
    tunes,
)
from monoeval.scenarios.label_noise import LabelNoiseScenario
from monoeval.scenarios.registry import REFUSED, Listed
from monoeval.spec import Spec
from monoeval.suite.units import Unit, units_of
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


class Crossed(Spec):
    """Seeds of each kind in every combination, so that the report can tell whose doing the uncertainty is.

    Adapter seeds are of each backbone, draw seeds are the same for all of these. A seed that an arm or a scenario
    has no use for is not repeated over.
    """

    backbones: Annotated[int, Field(ge=1)] = 1
    """Pretrainings of each backbone that the recipe pretrains."""
    adapters: Annotated[int, Field(ge=1)] = 1
    """Adapters of each backbone, or finetunings."""
    draws: Annotated[int, Field(ge=1)] = 1
    """Draws of noise and shots."""

    @model_validator(mode="after")
    def _crosses(self) -> Self:
        if max(self.backbones, self.adapters, self.draws) == 1:
            raise ValueError("give two or more of backbones, adapters or draws, or write seeds: 1")
        return self

    def __str__(self) -> str:
        return str(Levels(**self.model_dump()))


def _is_crossed(value: object) -> str:
    return "crossed" if isinstance(value, dict | Crossed) else ""


Seeds = Annotated[
    Annotated[int, Field(ge=1), Tag("")] | Annotated[Crossed, Tag("crossed")], Discriminator(_is_crossed)
]


class Recipe(Spec):
    """A study. Either `backbones` and `arms` are listed outright, or `models` × `methods` expand to them."""

    name: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")] = "suite"
    """Begins the run folder's name, so it has no slash."""
    note: str | None = None
    """Shown above the report."""
    data: Annotated[DataSpec, BeforeValidator(named_data)] = DataSpec(name="digits")
    seeds: Seeds = 3
    """Seeds 0 … seeds − 1 each redraw noise and shots, refit adapters, and pretrain the recipe's backbones again,
    all at once; `{backbones: 3, adapters: 2, draws: 2}` does these one by one, see `Crossed`."""
    models: tuple[Annotated[BackboneSpec, _named("model")], ...] = ()
    methods: tuple[Annotated[AdapterSpec, _named("method")], ...] = ()
    backbones: dict[str, BackboneSpec] = {}  # noqa: RUF012 (pydantic copies defaults)
    arms: tuple[Arm, ...] = ()
    probe: ProbeSpec = Logistic()
    latents: bool = False
    """Beside each arm with a monosemantic adapter, three more: its most, least and random monosemantic latents."""
    zero_shot: Annotated[TextArms | None, BeforeValidator(_switched)] = None
    """`true`, or settings: beside each image-text model, arms that read class names."""
    reference: Annotated[BackboneSpec | None, _named("model")] = None
    """Another model, by whose embeddings of the test images the monosemanticity score of each arm's codes goes."""
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
            raise ValueError("two arms have the same name: name each model and method once")
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
        if self.reference is not None and self.reference.model is None:
            raise ValueError("the reference is a model that is there: pretrain none for it")
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
            return self._completed()
        backbones, arms = {}, []
        for model in self.models:
            label = str(model.model)
            if label in backbones:
                raise UsageError(f"The model {label} is listed twice: name each once.")
            backbones[label] = model
            arms += expand(Arm(name=label, backbone=label), self.methods)
        fields = {"models": (), "methods": (), "backbones": backbones, "arms": tuple(arms)}
        return self.model_copy(update=fields)._completed()

    def _completed(self) -> "Recipe":
        return self._with_latents()._with_text()._checked_choices()._with_known_family()._with_other_reference()

    def _with_other_reference(self) -> "Recipe":
        """Itself, once its reference is none of the models that it judges."""
        for name, backbone in self.backbones.items():
            judge = self.reference if backbone.pretrain is None else None
            if judge is not None and same_network(judge, backbone):
                raise UsageError(f"The reference names {name}, which is evaluated: name another, e.g. dinov2_s14.")
        return self

    def _checked_choices(self) -> "Recipe":
        """Itself, once nothing is chosen where there is nothing to choose by, or where one adapter is meant.

        Nor are clean labels to choose by asked for where nothing is chosen: protocol ids would tell of an oracle
        that no score has seen.
        """
        probes = {arm.name: arm.probe or self.probe for arm in self.arms}
        oracle = any(isinstance(s, LabelNoiseScenario) and s.select_on == "clean-val" for s in self.scenarios)
        if oracle and not any(self.tried(arm) > 1 or tunes(probes[arm.name]) for arm in self.arms):
            kinds = ", ".join(dict.fromkeys(probe.kind for probe in probes.values()))
            raise UsageError(
                f"select_on: clean-val is of what is tuned on held-out rows, and {kinds} tunes nothing: leave "
                "out --select-on clean-val, or choose a probe that is tuned, such as logistic with several l2."
            )
        for arm in self.arms:
            count, probe = self.tried(arm), probes[arm.name]
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

    @property
    def units(self) -> tuple[Unit, ...]:
        """The seeds of each repetition of the study."""
        return units_of(self.seeds if isinstance(self.seeds, int) else self.seeds.model_dump())

    def key(self) -> str:
        """Names the run folder; the note does not count."""
        return key(self.resolved().model_dump(mode="json", exclude={"note"}))


def expand(raw: Arm, methods: tuple[AdapterSpec, ...]) -> list[Arm]:
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
