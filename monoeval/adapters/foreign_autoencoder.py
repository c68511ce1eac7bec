"""The one form that autoencoders of other libraries are brought to: it encodes as they do when they evaluate."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from monoeval.adapters.base import SparseRows
from monoeval.adapters.dictionary import decoded

Activation = Literal["threshold", "gate", "topk", "groupmax"]
RowNorm = Literal["none", "layer_norm", "constant_norm_rescale"]


@dataclass(frozen=True)
class Autoencoder:
    """z = activation((n(x) − c) W_eᵀ + b_e) and x̂ = n⁻¹(z W_d + b_d), with n a normalisation of single rows.

    With a = (n(x) − c) W_eᵀ and h = a + b_e the activations are: "threshold", h where h > θ and else 0 (θ ≥ 0;
    ReLU where it is 0); "gate", ReLU(a · g + m) where h > 0 and else 0; "topk", the k largest h of a row, those
    above 0; "groupmax", the largest h of each of k groups of neighbouring latents, those above 0.
    """

    encoder: Tensor  # [M, D], W_e
    encoder_bias: Tensor  # [M], b_e
    decoder: Tensor  # [M, D], W_d
    decoder_bias: Tensor  # [D], b_d
    centre: Tensor  # [D], c
    activation: Activation = "threshold"
    k: int = 0
    row_norm: RowNorm = "none"
    threshold: Tensor | None = None  # [M], θ
    gain: Tensor | None = None  # [M], g
    gain_bias: Tensor | None = None  # [M], m

    @property
    def width(self) -> int:
        return len(self.encoder)

    @property
    def directions(self) -> Tensor:
        return self.decoder

    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def on(self, device: torch.device) -> Self:
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def _normalised(self, x_nd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """n(x) [n, D], and the shift [n, 1] and scale [n, 1] of each row that undo it."""
        if self.row_norm == "layer_norm":
            shift = x_nd.mean(dim=1, keepdim=True)
            scale = x_nd.std(dim=1, keepdim=True)
            return (x_nd - shift) / (scale + 1e-5), shift, scale
        shift = x_nd.new_zeros(len(x_nd), 1)
        if self.row_norm == "constant_norm_rescale":
            scale = x_nd.norm(dim=1, keepdim=True) / x_nd.shape[1] ** 0.5
            return x_nd / scale.clamp_min(torch.finfo(scale.dtype).tiny), shift, scale
        return x_nd, shift, torch.ones_like(shift)

    def encode(self, x_nd: Tensor) -> Tensor | SparseRows:
        centred = self._normalised(x_nd)[0] - self.centre
        if self.activation == "gate":
            assert self.gain is not None
            assert self.gain_bias is not None
            a_nm = F.linear(centred, self.encoder)
            return torch.where(a_nm + self.encoder_bias > 0, (a_nm * self.gain + self.gain_bias).relu(), 0.0)
        h_nm = F.linear(centred, self.encoder, self.encoder_bias)
        if self.activation == "threshold":
            assert self.threshold is not None
            return torch.where(h_nm > self.threshold, h_nm, 0.0)
        if self.activation == "topk":
            values, indices = h_nm.topk(self.k, dim=1, sorted=False)
        else:
            size = self.width // self.k
            values, places = h_nm.view(len(h_nm), self.k, size).max(dim=2)
            indices = places + torch.arange(0, self.width, size, device=h_nm.device)
        return SparseRows(values.relu(), indices, self.width)

    def decode(self, codes: Tensor | SparseRows) -> Tensor | None:
        """x̂ [n, D]; None where a row's shift and scale are needed too, which its codes do not hold."""
        return decoded(codes, self.decoder) + self.decoder_bias if self.row_norm == "none" else None

    def reconstruct(self, x_nd: Tensor, codes: Tensor | SparseRows) -> Tensor:
        """x̂ [n, D] of rows that are known with their codes."""
        _, shift, scale = self._normalised(x_nd)
        return (decoded(codes, self.decoder) + self.decoder_bias) * scale + shift
