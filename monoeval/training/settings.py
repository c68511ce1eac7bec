"""How a network is finetuned, checked without torch."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from monoeval.spec import Spec

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FinetuneSpec(Spec):
    """One training a trial: the backbone, or low-rank changes to it, together with a linear classifier.

    `ce` is cross-entropy of a classifier on the features with their sign (of a backbone that NCL pretrained: what
    its projector gives before the ReLU), `nce` of one on their positive parts (non-negative cross-entropy: Zhang
    et al. 2025, arXiv 2410.21331).
    """

    kind: Literal["finetune"] = "finetune"
    objective: Literal["ce", "nce"] = "ce"
    adapt: Literal["full", "lora", "monolora"] = "full"
    """What is trained beside the classifier: all weights but a projector's, low-rank changes to the linear layers
    (LoRA: Hu et al. 2021, arXiv 2106.09685), or such changes with a ReLU between their two factors."""
    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (1e-4, 3e-4, 1e-3)
    """Of AdamW; where there are several, the one of least validation log-loss, chosen anew for every trial."""
    head_factor: Rate = 10.0
    """How much faster the classifier learns, which starts from zero."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-4
    rank: Annotated[int, Field(ge=1)] = 8
    """Latents between the two factors of a low-rank change; refused where there is none."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.7
    """The smallest share of an image's area that a training view keeps; 1 trains on the images as they are, but
    for the flip."""
    flip: bool = False
    """Mirror half of the training views; wrong for digits and letters."""

    @model_validator(mode="after")
    def _of_some_effect(self) -> Self:
        if self.adapt == "full" and self.rank != type(self).model_fields["rank"].default:
            raise ValueError("rank is of low-rank changes: leave it out, or choose adapt: lora or monolora")
        return self
