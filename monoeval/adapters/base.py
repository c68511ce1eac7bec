"""The contract of the adapter room: features go in, codes come out, dense or sparse."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Self

import torch
from torch import Tensor

from monoeval.adapters.rows import TrainingRows
from monoeval.backbones.features import FeatureSet
from monoeval.data.images import Ints
from monoeval.errors import UsageError


@dataclass(frozen=True)
class SparseRows:
    """Codes with at most k non-zeros a row: never made dense unless a consumer asks."""

    values: Tensor  # [n, k] float32; unused places are zero
    indices: Tensor  # [n, k] int64 in [0, width)
    width: int

    def dense(self) -> Tensor:
        """Scatter to [n, width] float32."""
        return self.values.new_zeros(len(self.values), self.width).scatter_add_(1, self.indices, self.values)


@dataclass(frozen=True)
class Origin:
    """The features that an adapter was fitted on."""

    features: str
    """Their key."""
    backbone: str = ""
    fingerprint: str = ""
    """Both as `FeatureSet` has them, empty where that is not known."""

    def check(self, features: FeatureSet, name: str = "The adapter") -> None:
        """Raise UsageError where `features` are known to be of another backbone; other rows of it are fine."""
        if self.fingerprint and features.fingerprint and self.fingerprint != features.fingerprint:
            other = "other weights, layer or size of " if self.backbone == features.backbone else ""
            raise UsageError(
                f"{name} was fitted on features of {self.backbone} and these are of {other}{features.backbone}: "
                "name the model, weights, layer and size that it was fitted on."
            )


class Adapter(ABC):
    """A map from features [n, D] to codes [n, M], fitted on training rows only.

    A method is built with its validated settings (`registry.Method.settings`). After `fit` or `restore`, `width`
    is M. `fit` may record `measures` of itself, which are stored with it.
    """

    method: ClassVar[str]
    stacked: ClassVar[bool] = False
    """Whether `fit_together` trains its members side by side, so that a study had better fit all seeds at once."""
    width: int
    measures: Mapping[str, float] = MappingProxyType({})
    origin: Origin | None = None
    """What it was fitted on, where `store` fitted or read it."""

    def check_width(self, features: int) -> None:  # noqa: B027 (most settings fit any number)
        """Raise UsageError where the settings do not fit so many features; asked before there is a row of them."""

    @abstractmethod
    def fit(self, rows: TrainingRows, *, seed: int) -> Self:
        """Fit on `rows`, and on their views where the method asks for some; one without draws ignores `seed`."""

    @classmethod
    def fit_together(cls, members: Sequence[Self], rows: TrainingRows, seeds: Sequence[int]) -> None:
        """Fit several on the same rows, each with its seed, to what each would be alone."""
        for member, seed in zip(members, seeds, strict=True):
            member.fit(rows, seed=seed)

    @abstractmethod
    def encode(self, features_nd: Tensor) -> Tensor | SparseRows:
        """Codes of float32 features [n, D]: float32 [n, M], or sparse rows."""

    def decode(self, codes: Tensor | SparseRows) -> Tensor | None:  # noqa: ARG002
        """Features [n, D] that `codes` stand for, in the features' units; None where there is no way back."""
        return None

    def untrained(self, rows: TrainingRows, *, seed: int) -> "Adapter | None":  # noqa: ARG002
        """This fitted adapter as it was before its training, which had `seed`; None where there is no such thing.

        Of `rows` little is needed: others of the same backbone give nearly the same.
        """
        return None

    @property
    def directions(self) -> Tensor | None:
        """What each latent adds to the features, [M, D]; None where the method has no decoder."""
        return None

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Every tensor needed to encode again; saved as safetensors."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> Self:
        """The inverse of `state`."""

    def report(self) -> dict[str, float]:
        """Measures of the fit for the ledger, for example explained variance; empty where there are none."""
        return dict(self.measures)


@dataclass(frozen=True)
class Codes:
    """A feature set seen through an adapter; computed when iterated.

    Raises UsageError where the adapter is known to be fitted on another backbone.
    """

    features: FeatureSet
    adapter: Adapter
    device: torch.device

    def __post_init__(self) -> None:
        if self.adapter.origin is not None:
            self.adapter.origin.check(self.features)

    @property
    def width(self) -> int:
        return self.adapter.width

    def __len__(self) -> int:
        return self.features.n

    @torch.no_grad()
    def chunks(self, rows: Ints | None = None, size: int = 4096) -> Iterator[Tensor | SparseRows]:
        """Codes of `rows` in order, at most `size` rows at a time."""
        for chunk_nd in self.features.chunks(rows, size):
            yield self.adapter.encode(chunk_nd.to(self.device))

    def dense(self, rows: Ints | None = None) -> Tensor:
        """Codes of `rows` as one float32 tensor [n, M]; only where that fits in memory."""
        parts = [c.dense() if isinstance(c, SparseRows) else c for c in self.chunks(rows)]
        return torch.cat(parts) if parts else torch.empty(0, self.width, device=self.device)
