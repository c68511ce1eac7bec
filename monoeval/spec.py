"""The base of every specification: what a recipe holds and what keys are made of."""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A frozen, strict piece of a recipe. It is picklable and free of arrays."""

    model_config = ConfigDict(extra="forbid", frozen=True)
