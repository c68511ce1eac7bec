"""How a recipe asks for a probe: one class a kind, told apart by `kind`. No torch."""

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from monoeval.data.prompts import TEMPLATES, check_template, read_templates
from monoeval.spec import Spec
from monoeval.training.settings import FinetuneSpec

Penalty = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Grid = Annotated[tuple[Penalty, ...], Field(min_length=1)]


class Tuned(Spec):
    """A linear probe whose L2 is chosen on validation rows, by one rule for every arm."""

    l2: Grid = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
    """Log-spaced; extended while the best value is at an edge."""
    rule: Literal["min", "one-se"] = "min"
    """`min` takes the smallest validation loss; `one-se` the largest L2 within one standard error of it.

    `one-se` is not the default: where labels are so noisy that no L2 differs from the best by a standard error, it
    prefers the probe that predicts one class always. On the quickstart's CL features at 80 % label noise, with
    values a decade apart, it gave 29, 10 and 57 % (three seeds) and `min` 64, 65 and 57 %, while on sparse codes
    both chose the same: a gap between arms that only tuning made.
    """
    folds: Annotated[int, Field(ge=2)] = 5
    """Cross-validation folds where there are fewer than 5,000 training rows; above, a fifth is held out."""


class Gradient(Tuned):
    """What is fitted by descent; `balanced` weighs each row by the inverse frequency of its class."""

    balanced: bool = False


class Logistic(Gradient):
    """Multinomial logistic regression."""

    kind: Literal["logistic"] = "logistic"


class LabelSmoothing(Gradient):
    """Logistic regression towards (1 - s)·one-hot + s/C (Szegedy et al. 2016)."""

    kind: Literal["label-smoothing"] = "label-smoothing"
    smoothing: Annotated[float, Field(gt=0, lt=1)] = 0.1


class GCE(Gradient):
    """Generalised cross-entropy (1 - p^q)/q, between cross-entropy and absolute error (Zhang and Sabuncu 2018)."""

    kind: Literal["gce"] = "gce"
    q: Annotated[float, Field(gt=0, le=1)] = 0.7


class SCE(Gradient):
    """Symmetric cross-entropy α·CE + β·reverse CE, log 0 taken as -4 (Wang et al. 2019)."""

    kind: Literal["sce"] = "sce"
    alpha: Annotated[float, Field(ge=0)] = 6.0
    beta: Annotated[float, Field(ge=0)] = 0.1

    @model_validator(mode="after")
    def _of_something(self) -> Self:
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0, which leaves nothing to minimise")
        return self


class Ridge(Tuned):
    """Least squares on one-hot labels, in closed form; scores are scaled to be log-odds on held-out rows."""

    kind: Literal["ridge"] = "ridge"


class NearestMean(Spec):
    """The class with the nearest mean; how much a distance counts is chosen on held-out rows."""

    kind: Literal["ncm"] = "ncm"
    folds: Annotated[int, Field(ge=2)] = 5


class KNN(Spec):
    """Votes of the k most similar training rows, weighted by exp(cosine / temperature) (Wu et al. 2018).

    k is chosen by the log-loss of training rows, each left out with its group, or of validation rows.
    """

    kind: Literal["knn"] = "knn"
    neighbours: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (5, 10, 20, 50, 100, 200)
    temperature: Annotated[float, Field(gt=0)] = 0.07


class _Paper(Spec):
    """The paper's linear probe: minibatches, a fixed number of epochs, nothing tuned for an arm.

    `lars` is what its public code does on CIFAR, `sgd` what it does on ImageNet-100: the choice of optimiser
    brings the other settings with it, where they are not given.
    """

    optimiser: Literal["lars", "sgd"] = "lars"
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.4
    """1.5 with `sgd`."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine`: linear warm-up over a fifth of the steps, then a half cosine to 0. `constant` with `sgd`."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    """0 with `sgd`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    epochs: Annotated[int, Field(ge=1)] = 50
    batch: Annotated[int, Field(ge=1)] = 256

    @model_validator(mode="before")
    @classmethod
    def _as_on_imagenet(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("optimiser") == "sgd":
            return {"rate": 1.5, "schedule": "constant", "weight_decay": 0.0, **value}
        return value


class PaperCached(_Paper):
    """The paper's probe on features of the images as they are: another protocol than the paper's."""

    kind: Literal["paper-cached"] = "paper-cached"


class Paper(_Paper):
    """The paper's probe on features of freshly cropped and flipped images in every epoch."""

    kind: Literal["paper"] = "paper"
    views: Annotated[int, Field(ge=1)] | None = None
    """Augmented views that are extracted, used in turns; None: one an epoch."""

    @property
    def n_views(self) -> int:
        """How many views of the training images are extracted."""
        return min(self.views or self.epochs, self.epochs)


PROBES: dict[str, type[Spec]] = {
    get_args(kind.model_fields["kind"].annotation)[0]: kind
    for kind in (Logistic, LabelSmoothing, GCE, SCE, Ridge, NearestMean, KNN, PaperCached, Paper)
}


def _named(value: object) -> object:
    """Accept a bare kind, and settings without one as those of the logistic probe."""
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "logistic", **value} if isinstance(value, dict) else value


ProbeSpec = Annotated[
    Logistic | LabelSmoothing | GCE | SCE | Ridge | NearestMean | KNN | PaperCached | Paper,
    Field(discriminator="kind"),
    BeforeValidator(_named),
]
"""Any probe, as a field of another specification."""


Templates = Annotated[
    tuple[Annotated[str, AfterValidator(check_template)], ...],
    Field(min_length=1),
    BeforeValidator(read_templates),
]


class ZeroShot(Spec):
    """The class whose name, in prompts, is most like the image to an image-text model; nothing is fitted."""

    kind: Literal["zero-shot"] = "zero-shot"
    templates: Templates = TEMPLATES
    """A list, or a YAML file with one; a class is the mean of its prompts' embeddings."""


class WiSE(ZeroShot):
    """(1 - α)·zero-shot + α·probe, in weights, of the last layer alone (after Wortsman et al. 2022)."""

    kind: Literal["wise"] = "wise"  # type: ignore[assignment]
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """0 is the zero-shot classifier, 1 the probe."""
    probe: ProbeSpec = Logistic()
    """A linear one."""

    @model_validator(mode="after")
    def _linear(self) -> Self:
        if isinstance(self.probe, KNN | Paper):
            raise ValueError(f"wise averages weights with a linear probe, which {self.probe.kind} is not here")
        return self


TEXT_PROBES: dict[str, type[ZeroShot]] = {"zero-shot": ZeroShot, "wise": WiSE}
"""Kinds that read class names: of arms whose codes are the unit-length features of an image-text model."""

ArmProbe = Annotated[
    Logistic
    | LabelSmoothing
    | GCE
    | SCE
    | Ridge
    | NearestMean
    | KNN
    | PaperCached
    | Paper
    | ZeroShot
    | WiSE
    | FinetuneSpec,
    Field(discriminator="kind"),
    BeforeValidator(_named),
]
"""What a single arm may have in place of the recipe's probe."""


def tunes(probe: Spec) -> bool:
    """Whether held-out rows decide anything of what a probe of this kind fits."""
    if isinstance(probe, WiSE):
        return tunes(probe.probe)
    if isinstance(probe, Gradient):
        return len(set(probe.l2)) > 1
    if isinstance(probe, KNN):
        return len(set(probe.neighbours)) > 1
    if isinstance(probe, FinetuneSpec):
        return len(set(probe.learning_rates)) > 1
    return not isinstance(probe, _Paper | ZeroShot)
