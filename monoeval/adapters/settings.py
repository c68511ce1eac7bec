"""What each method's `params` may say, checked without torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from monoeval.errors import UsageError
from monoeval.spec import Spec

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class NoSettings(Spec):
    """A method with nothing to set."""


class PCASettings(Spec):
    """`pca`: the leading `components`, all that carry variance where None."""

    components: Count | None = None


class ICASettings(PCASettings):
    """`ica`: a rotation of the leading `components`, found in `max_steps` at most."""

    max_steps: Count = 200


class PretrainedSettings(Spec):
    """`pretrained`: the autoencoder in a folder or file, or on the hub as `hf-hub:owner/name[/folder]`."""

    path: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    """Branch, tag or commit of a hub id; None: its main branch."""
    k: Annotated[int, Field(ge=0)] | None = None
    """Active latents a row, 0 for any number; only for files of overcomplete, which do not say it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.revision is not None and not self.path.startswith("hf-hub:"):
            raise ValueError("revision belongs to a hub id, and path is a local one: leave it out")
        return self


class SizeSettings(Spec):
    """A dictionary of `width` latents, or of `width_factor` times the features' width."""

    width: Count | None = None
    width_factor: Positive = 8.0

    def latents(self, features: int) -> int:
        """The width of the dictionary on so many features; raises UsageError where that is none."""
        width = self.width or round(self.width_factor * features)
        if width < 1:
            raise UsageError(
                f"width_factor {self.width_factor:g} of {features} features is not one latent: give a larger one."
            )
        return width

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if self.width is not None and "width_factor" in self.model_fields_set:
            raise ValueError("give either width or width_factor")
        return self


class DictionarySettings(SizeSettings):
    """A dictionary with `k` active latents a row."""

    k: Count | None = None
    """None: 32, or a quarter of the width where that is less."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width is not None and self.k is not None and self.k > self.width:
            raise ValueError(f"k is {self.k}, more than the width of {self.width}: choose a smaller k")
        return self


class ScheduleSettings(SizeSettings):
    """A dictionary's training; what is None follows the number of rows (`dictionary.Schedule`)."""

    steps: Annotated[int, Field(ge=0)] | None = None
    batch_size: Count | None = None
    learning_rate: Positive | None = None


class TrainingSettings(ScheduleSettings, DictionarySettings):
    """A dictionary with `k` active latents a row, and its training."""


class TrainedDictionarySettings(TrainingSettings):
    """A dictionary whose dead latents are taught by AuxK."""

    aux_weight: Weight = 1 / 32
    """Weight of AuxK, which teaches dead latents; 0 turns it off."""
    dead_epochs: Positive = 1.0
    """A latent that has not fired for this many passes over the training rows is dead."""


class CSRSettings(TrainedDictionarySettings):
    """`csr`: a dictionary trained on views, whose codes are alike for views of one image."""

    n_views: Count = 4
    """Augmented views of each training row; every step sees its images as they are and in one of these."""
    contrast_weight: Weight = 0.1
    temperature: Positive = 0.2


class MatryoshkaSettings(TrainedDictionarySettings):
    """`sae-matryoshka`: nested dictionaries, each twice as wide as the one before, up to the whole width."""

    prefixes: Count = 4


class ArchetypalSettings(TrainedDictionarySettings):
    """`sae-archetypal`: latents that are nearly convex combinations of training rows."""

    candidates: Count | None = None
    """Centroids that span the hull, at most one a training row; None: as many as latents, at most 1,024."""
    relaxation: Weight = 0.1
    """How far a latent may lie from the hull, in root-mean-square lengths of a centred training row."""


class JumpReLUSettings(TrainingSettings):
    """`sae-jumprelu`: thresholds that are trained towards k active latents."""

    sparsity_weight: Positive = 10.0
    """Weight of the squared relative distance of L0 from k, once warmed up."""
    bandwidth: Positive = 2.0
    """Width of the window around a threshold whose rows move it; a feature's mean variance is 1."""


class HeadSettings(Spec):
    """A projector of `hidden` units (twice the features' width where None) to `width` codes, and its training."""

    width: Count = 2048
    width_factor: Positive | None = None
    """Instead of `width`: so many times the features' width."""
    hidden: Count | None = None
    n_views: Annotated[int, Field(ge=2)] = 4
    """Augmented views of each training row; every step compares two of them."""
    temperature: Positive = 0.2
    steps: Annotated[int, Field(ge=0)] | None = None
    """None: 20 passes over the rows, at least 300 steps and at most 20,000."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    learning_rate: Positive = 1e-3

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width_factor is not None and "width" in self.model_fields_set:
            raise ValueError("give either width or width_factor")
        return self


class NonNegativeHeadSettings(HeadSettings):
    """`ncl-head`: ReLU with the gradient of GELU (`rep-relu`) or with its own."""

    rectifier: Literal["relu", "rep-relu"] = "rep-relu"
