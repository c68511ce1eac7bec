"""What each method's `params` may say, checked without torch."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from monoeval.spec import Spec

Count = Annotated[int, Field(ge=1)]


class NoSettings(Spec):
    """A method with nothing to set."""


class PCASettings(Spec):
    """`pca`: the leading `components`, all that carry variance where None."""

    components: Count | None = None


class DictionarySettings(Spec):
    """A dictionary of `width` latents, or of `width_factor` times the features' width, with `k` active."""

    width: Count | None = None
    width_factor: Annotated[float, Field(gt=0)] = 8.0
    k: Count | None = None
    """None: 32, or a quarter of the width where that is less."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.width is not None:
            if "width_factor" in self.model_fields_set:
                raise ValueError("give either width or width_factor")
            if self.k is not None and self.k > self.width:
                raise ValueError(f"k is {self.k}, more than the width of {self.width}: choose a smaller k")
        return self


class TrainedDictionarySettings(DictionarySettings):
    """A dictionary and its training; what is None follows the number of rows (`sae.Schedule`)."""

    steps: Annotated[int, Field(ge=0)] | None = None
    batch_size: Count | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    aux_weight: Annotated[float, Field(ge=0)] = 1 / 32
    """Weight of AuxK, which teaches dead latents; 0 turns it off."""
    dead_epochs: Annotated[float, Field(gt=0)] = 1.0
    """A latent that has not fired for this many passes over the training rows is dead."""
