"""The methods by name, known without importing any of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError

from monoeval import plugins
from monoeval.adapters.settings import (
    ArchetypalSettings,
    CSRSettings,
    DictionarySettings,
    HeadSettings,
    ICASettings,
    JumpReLUSettings,
    MatryoshkaSettings,
    NonNegativeHeadSettings,
    NoSettings,
    PCASettings,
    PretrainedSettings,
    ScheduleSettings,
    TrainedDictionarySettings,
    TrainingSettings,
)
from monoeval.adapters.spec import AdapterSpec
from monoeval.errors import UsageError, unknown
from monoeval.spec import Spec

if TYPE_CHECKING:
    from monoeval.adapters.base import Adapter

GROUP = "monoeval.adapters"
"""The entry-point group of methods from other packages; each entry names a `Method` in a module without torch."""


@dataclass(frozen=True)
class Method:
    """A way to turn features into codes, as a recipe may name it."""

    name: str
    target: str
    """`module:Class` of an `Adapter` that takes `settings`, imported when it is built."""
    description: str
    settings: type[Spec] = NoSettings
    is_control: bool = False
    seeded: bool = True
    """Whether fitting draws random numbers; a method that draws none has no adapter seed."""
    emergent: bool = False
    """Whether width or sparsity are known only once it is fitted: a `random-topk` then takes them from it."""
    version: str = "1"
    """Raised whenever the same settings, rows and seed would give other codes."""
    content: str | None = None
    """`module:function` of the settings, without torch, that gives what stands for them in keys; for settings
    that name files, whose content decides."""


_SIMPLE = "monoeval.adapters.simple"
_SAE = "monoeval.adapters.sae"
_PENALISED = "monoeval.adapters.sae_penalised"
_HEADS = "monoeval.adapters.heads"
_BUILT_IN = (
    Method("identity", f"{_SIMPLE}:Identity", "the features as they are", seeded=False),
    Method(
        "sae", f"{_SAE}:TopKSAE", "TopK sparse autoencoder with AuxK", TrainedDictionarySettings, version="5"
    ),
    Method(
        "sae-batchtopk", f"{_SAE}:BatchTopKSAE", "TopK over a batch: k active latents a row on average",
        TrainedDictionarySettings, version="2",
    ),
    Method(
        "sae-matryoshka", f"{_SAE}:MatryoshkaSAE", "nested TopK dictionaries in one", MatryoshkaSettings,
        version="2",
    ),
    Method(
        "sae-archetypal", "monoeval.adapters.sae_archetypal:ArchetypalSAE",
        "TopK latents near the convex hull of training rows", ArchetypalSettings, version="2",
    ),
    Method(
        "sae-jumprelu", f"{_PENALISED}:JumpReLUSAE", "a trained threshold for each latent", JumpReLUSettings,
        emergent=True, version="2",
    ),
    Method(
        "sae-l1", f"{_PENALISED}:L1SAE", "ReLU latents under an L1 penalty", TrainingSettings, emergent=True,
        version="2",
    ),
    Method(
        "sae-gated", f"{_PENALISED}:GatedSAE", "gates under an L1 penalty, magnitudes free", TrainingSettings,
        emergent=True, version="2",
    ),
    Method(
        "pretrained", "monoeval.adapters.foreign:Pretrained", "a sparse autoencoder trained elsewhere",
        PretrainedSettings, seeded=False, emergent=True, content="monoeval.adapters.foreign_files:content",
    ),
    Method(
        "csr", "monoeval.adapters.csr:CSR", "TopK latents, contrasted between views of an image", CSRSettings,
        version="3",
    ),
    Method("cl-head", f"{_HEADS}:ContrastiveHead", "a contrastive projector with signed codes", HeadSettings),
    Method(
        "ncl-head", f"{_HEADS}:NonNegativeHead", "a contrastive projector with non-negative codes",
        NonNegativeHeadSettings, emergent=True,
    ),
    Method(
        "random-topk", f"{_SAE}:RandomTopK", "the TopK autoencoder untrained, of equal width and sparsity",
        DictionarySettings, is_control=True, version="2",
    ),
    Method(
        "frozen-decoder", f"{_SAE}:FrozenDecoder", "the TopK autoencoder with a random decoder",
        TrainedDictionarySettings, is_control=True, version="3",
    ),
    Method(
        "frozen-encoder", f"{_SAE}:FrozenEncoder", "the TopK autoencoder with a random encoder",
        TrainedDictionarySettings, is_control=True, version="3",
    ),
    Method(
        "dense-ae", f"{_SAE}:DenseAutoencoder", "an autoencoder of equal width without sparsity",
        ScheduleSettings, is_control=True, version="3",
    ),
    Method("relu", f"{_SIMPLE}:Rectified", "the features' positive parts", is_control=True, seeded=False),
    Method("l2norm", f"{_SIMPLE}:UnitLength", "each row divided by its length", is_control=True, seeded=False),
    Method(
        "standardize", f"{_SIMPLE}:Standardised", "each feature with mean zero and variance one",
        is_control=True, seeded=False,
    ),
    Method("pca", f"{_SIMPLE}:PCA", "whitened principal components", PCASettings, is_control=True, seeded=False),
    Method("ica", "monoeval.adapters.ica:ICA", "independent components", ICASettings, is_control=True),
)  # fmt: skip


def _method(found: object, name: str) -> Method:
    if isinstance(found, Method) and found.name == name:
        return found
    raise TypeError("a Method of that name")


def _collect(entries: "Iterable[EntryPoint]") -> tuple[dict[str, Method], dict[str, str]]:
    """All methods, and for each name that cannot be used the reason why."""
    return plugins.collect("method", entries, {method.name: method for method in _BUILT_IN}, _method)


METHODS, _REFUSED = _collect(entry_points(group=GROUP))


def spec_of(spec: AdapterSpec) -> Method:
    """The method that `spec` names, once the params of each of its candidates are known to be valid.

    Raises UsageError for an unknown method, a name that two packages claim, or wrong params.
    """
    for candidate in spec.candidates:
        _settings(candidate)
    return METHODS[spec.method]


def adapter_identity(spec: AdapterSpec) -> dict[str, object]:
    """All that decides what a method does to given features: its settings with their defaults, and its version.

    Raises UsageError as `spec_of` does, and MonoevalError where files that the settings name cannot be had.
    """
    settings, method = _settings(spec), METHODS[spec.method]
    return {
        "method": spec.method,
        "settings": _imported(method.content)(settings) if method.content else settings.model_dump(mode="json"),
        "target": method.target,
        "version": method.version,
    }


def n_views(spec: AdapterSpec) -> int:
    """How many augmented views of its rows `fit` needs: the setting `n_views` of methods that have one.

    Of several candidates, what the most demanding one needs.
    """
    return max(int(getattr(_settings(candidate), "n_views", 0)) for candidate in spec.candidates)


def build(spec: AdapterSpec) -> "Adapter":
    """An adapter ready to be fitted or restored; raises UsageError as `spec_of` does."""
    settings = _settings(spec)
    return cast("Adapter", _imported(METHODS[spec.method].target)(settings))


def controls_for(spec: AdapterSpec) -> list[AdapterSpec]:
    """The controls that match a method in width, sparsity and training; none for a control or for raw features.

    Lists of widths and sparsities are passed on, so that a control is chosen from as many as its method. Where
    sparsity is known only once the method is fitted (`Method.emergent`), `random-topk` is left to the recipe,
    which gives it as many active latents as were measured. What learns from views stands beside `cl-head`, which
    learns from the same ones without sparsity. `dense-ae`, which has the training of `sae` without its sparsity,
    is asked for by name: probes on its M dense codes cost M/D times those on raw features.
    """
    method = METHODS.get(spec.method)
    sized = method is not None and issubclass(method.settings, DictionarySettings)
    if method is None or method.is_control or not (sized or method.emergent):
        return []
    controls = []
    if not method.emergent:
        size = {name: value for name, value in spec.params.items() if name in DictionarySettings.model_fields}
        controls.append(AdapterSpec(method="random-topk", params=size))
    if issubclass(method.settings, HeadSettings):
        same = {name: value for name, value in spec.params.items() if name in HeadSettings.model_fields}
        controls.append(AdapterSpec(method="cl-head", params=same))
    if issubclass(method.settings, CSRSettings):
        same = {name: value for name, value in spec.params.items() if name in _OF_VIEWS}
        if "width" not in same:
            same.setdefault("width_factor", CSRSettings().width_factor)
        controls.append(AdapterSpec(method="cl-head", params=same))
    return [*controls, AdapterSpec(method="relu")]


_OF_VIEWS = ("width", "width_factor", "n_views", "temperature")
"""What `csr` and `cl-head` mean alike; steps and rates that suit one do not suit the other."""


def _imported(target: str) -> Callable[[Spec], object]:
    module, name = target.split(":")
    return cast("Callable[[Spec], object]", getattr(import_module(module), name))


def _settings(spec: AdapterSpec) -> Spec:
    if spec.method not in METHODS:
        raise unknown("method", spec.method, METHODS)
    if spec.method in _REFUSED:
        raise UsageError(f"{_REFUSED[spec.method]}: uninstall one of the two packages.")
    model = METHODS[spec.method].settings
    if spec.params and not model.model_fields:
        raise UsageError(f"{spec.method} takes no parameters: leave out {', '.join(spec.params)}.")
    for name in spec.params:
        if name not in model.model_fields:
            raise unknown(f"{spec.method} parameter", name, model.model_fields)
    try:
        return model.model_validate(spec.params, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:
            raise UsageError(f"{spec.method}: {first['msg'].removeprefix('Value error, ')}.") from None
        if first["type"] == "missing":
            written = f"{{method: {spec.method}, params: {{{first['loc'][0]}: …}}}}"
            raise UsageError(
                f"{spec.method} needs {first['loc'][0]}, which has no default: give it in a recipe, as {written}."
            ) from None
        wrong = f"{first['loc'][0]} cannot be {first['input']!r} ({first['msg'].lower()})"
        raise UsageError(f"{spec.method}: {wrong}; its parameters are {', '.join(model.model_fields)}.") from None
