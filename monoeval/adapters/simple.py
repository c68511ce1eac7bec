"""Adapters in closed form: raw features and the controls that ask what the simplest change already gives."""

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from monoeval.adapters.base import Adapter, SparseRows
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.settings import NoSettings, PCASettings


class _Unfitted(Adapter):
    """A fixed function that keeps the width."""

    def __init__(self, _settings: NoSettings) -> None:
        pass

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:  # noqa: ARG002
        self.width = rows.width
        return self

    def state(self) -> dict[str, Tensor]:
        return {"width": torch.tensor(self.width)}

    def restore(self, state: dict[str, Tensor]) -> Self:
        self.width = int(state["width"])
        return self


class Identity(_Unfitted):
    """The features as they are."""

    method: ClassVar[str] = "identity"

    def encode(self, features_nd: Tensor) -> Tensor:
        return features_nd


class Rectified(_Unfitted):
    """ReLU of the features as they come, not centred: that is what NCL adds to its projector, so on features
    that were not trained for it this shows what the rectifier gives by itself."""

    method: ClassVar[str] = "relu"

    def encode(self, features_nd: Tensor) -> Tensor:
        return features_nd.relu()


class UnitLength(_Unfitted):
    """Each row divided by its Euclidean length; a row of zeros stays."""

    method: ClassVar[str] = "l2norm"

    def encode(self, features_nd: Tensor) -> Tensor:
        return F.normalize(features_nd, dim=1)


class _Affine(Adapter):
    """(x − mean) · weight, where the weight is one factor a feature or a matrix [D, M]."""

    mean: Tensor
    weight: Tensor

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "weight": self.weight}

    def restore(self, state: dict[str, Tensor]) -> Self:
        self.mean, self.weight = state["mean"], state["weight"]
        self.width = self.weight.shape[-1]
        return self


class Standardised(_Affine):
    """Each feature with mean zero and variance one on the training rows; constant features become zero."""

    method: ClassVar[str] = "standardize"

    def __init__(self, _settings: NoSettings) -> None:
        pass

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:  # noqa: ARG002
        varies = rows.variance > 0
        weight = torch.where(varies, rows.variance, 1.0).rsqrt() * varies
        self.measures = {"constant_features": int((~varies).sum())}
        return self.restore({"mean": rows.mean.float(), "weight": weight.float()})

    def encode(self, features_nd: Tensor) -> Tensor:
        return (features_nd - self.mean) * self.weight

    def decode(self, codes: Tensor | SparseRows) -> Tensor:
        assert isinstance(codes, Tensor)
        return torch.where(self.weight > 0, codes / self.weight, 0) + self.mean


class PCA(_Affine):
    """The leading principal components of the training rows, each with variance one (divided by N).

    Directions whose variance is below 1e-6 of the first one's are rounding noise in stored features and are left
    out, so fewer components may come back than were asked for.
    """

    method: ClassVar[str] = "pca"

    def __init__(self, settings: PCASettings) -> None:
        self.settings = settings

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:  # noqa: ARG002
        total = float(rows.variance.sum())
        covariance = torch.zeros(rows.width, rows.width, dtype=torch.float64, device=rows.device)
        for chunk_nd in rows.chunks():
            centred = chunk_nd - rows.mean
            covariance += centred.T @ centred
        values, vectors = torch.linalg.eigh(covariance / len(rows))
        values, vectors = values.flip(0), vectors.flip(1)
        kept = int((values > 1e-6 * values[0]).sum())
        kept = min(kept, self.settings.components or kept)
        self.measures = {"components": kept, "explained_variance": float(values[:kept].sum()) / total}
        weight = vectors[:, :kept] * values[:kept].rsqrt()
        return self.restore({"mean": rows.mean.float(), "weight": weight.float().contiguous()})

    def encode(self, features_nd: Tensor) -> Tensor:
        return (features_nd - self.mean) @ self.weight

    def decode(self, codes: Tensor | SparseRows) -> Tensor:
        assert isinstance(codes, Tensor)
        return codes @ self.directions + self.mean

    @property
    def directions(self) -> Tensor:
        # the columns of the whitening are orthogonal: divided by their squared lengths they are its inverse
        return (self.weight / self.weight.square().sum(dim=0)).T
