"""Sparse autoencoders whose sparsity is a term of the loss: JumpReLU, L1 and gated.

`k` means the same for them as for TopK, active latents a training row: JumpReLU has it in its penalty, and the
coefficient of an L1 penalty is steered towards it while training.
"""

from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from monoeval.adapters.dictionary import Training
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.settings import JumpReLUSettings
from monoeval.adapters.variable_l0 import VariableL0

LEAST = 1e-3  # of a threshold at the start: it is multiplied from then on, and 0 would stay 0


class JumpReLUSAE(VariableL0):
    """JumpReLU sparse autoencoder (Rajamanoharan et al. 2024, arXiv 2407.14435).

    z = h·1[h > θ] with one θ a latent, positive because log θ is what is trained. The loss is mean (x − x̂)² +
    λ (L0/k − 1)², with λ rising linearly to `sparsity_weight` over the first half. Training starts at the one θ
    for which the untrained dictionary has an L0 of k.

    Defaults by measurement on 1,200 digits, width 1,024, k = 16, 1,500 steps: a weight of 10 and a bandwidth of 2
    end at an L0 of 15.8, 0.988 of the variance explained and 32 % of the latents dead; a weight of 1 at 14.5 and
    0.983, and with a bandwidth of 0.5 at 14.0, 0.972 and 63 %.
    """

    method: ClassVar[str] = "sae-jumprelu"
    trained: ClassVar[tuple[str, ...]] = (*VariableL0.trained, "log_threshold")
    settings: JumpReLUSettings
    log_threshold: Tensor  # [M]

    def __init__(self, settings: JumpReLUSettings) -> None:
        super().__init__(settings)
        self.settings = settings

    def _prepare(self, rows: TrainingRows) -> None:
        theta = max(LEAST, self._threshold(rows))
        self.log_threshold = torch.full((self.width,), theta, device=rows.device).log()

    def active(self, h_nm: Tensor) -> Tensor:
        return torch.where(h_nm <= self.log_threshold.exp(), 0, h_nm)  # NaN stays

    def _loss(self, x: Tensor, training: Training) -> Tensor:
        z, l0 = jump(self.pre_activations(x), self.log_threshold.exp(), self.settings.bandwidth)
        warm = min(1.0, 2 * (training.step + 1) / training.schedule.steps)
        penalty = (l0 / self.k - 1).square()
        return (x - self.reconstruct(z)).square().mean() + self.settings.sparsity_weight * warm * penalty

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "log_threshold": self.log_threshold}

    def restore(self, state: dict[str, Tensor]) -> Self:
        self.log_threshold = state["log_threshold"]
        return super().restore(state)


def jump(h: Tensor, theta: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """z = h·1[h > θ] [n, M] and the mean L0 of its rows, with gradients for θ [M] by the straight-through rule.

    ∂z/∂θ = −(θ/ε)·1[|h − θ| < ε/2] and ∂1[h > θ]/∂θ = −(1/ε)·1[|h − θ| < ε/2] (arXiv 2407.14435).
    """
    fires = (h > theta).to(h.dtype)
    window = ((h - theta).abs() < bandwidth / 2).to(h.dtype) / bandwidth
    slope = -window.detach() * (theta - theta.detach())  # 0, with the indicator's gradient
    return h * fires + theta.detach() * slope, (fires + slope).sum(dim=1).mean()


class _Steered(VariableL0):
    """An L1 penalty whose coefficient λ is steered to an L0 of k.

    Training starts at b_e = −θ, with θ the threshold that leaves the untrained dictionary k active latents a row,
    and at λ = 2θ/D, which shrinks by θ where latents do not overlap. After each batch log λ moves by 12 times the
    schedule's highest learning rate times log(L0/k), the logarithm held within ±1; that is as fast as Adam lets
    L0 follow. From a bias of zero, where half of the latents are active, λ overshoots: on 5,000 rows made of 6 out
    of 128 atoms in 64 dimensions (width 512, k = 8) 1,000 steps of L1 then explained 0.04 of the variance, and
    0.80 from −θ. Five times the speed lost a third of what 300 steps explain.
    """

    coefficient: Tensor  # scalar, λ

    def _prepare(self, rows: TrainingRows) -> None:
        theta = max(LEAST, self._threshold(rows))
        self.encoder_bias = self.encoder_bias - theta
        self.coefficient = torch.tensor(2 * theta / rows.width, device=rows.device)

    @torch.no_grad()
    def _steer(self, z: Tensor, training: Training) -> None:
        l0 = (z > 0).sum() / len(z)
        move = (l0 / self.k).log().clamp(-1, 1) * (12 * training.schedule.learning_rate)
        self.coefficient = self.coefficient * move.exp()  # not in place: the batch's gradient still needs it


class L1SAE(_Steered):
    """ReLU sparse autoencoder with an L1 penalty (Bricken et al. 2023; weighted as in Templeton et al. 2024).

    The loss is mean (x − x̂)² + λ Σ_j z_j ‖d_j‖, the sum averaged over rows. The weights make the length of a
    decoder row free; when training ends it is moved into the codes, so that they have the features' units.
    """

    method: ClassVar[str] = "sae-l1"
    unit_rows: ClassVar[bool] = False

    def active(self, h_nm: Tensor) -> Tensor:
        return h_nm.relu()

    def _loss(self, x: Tensor, training: Training) -> Tensor:
        z = self.active(self.pre_activations(x))
        length_m = self.decoder.square().sum(dim=1).sqrt()
        penalty = (z @ length_m).mean()
        loss = (x - self.reconstruct(z)).square().mean() + self.coefficient * penalty
        self._steer(z, training)
        return loss

    def _finish(self, rows: TrainingRows) -> None:  # noqa: ARG002
        length_m = self.decoder.norm(dim=1)
        self.encoder, self.encoder_bias = self.encoder * length_m[:, None], self.encoder_bias * length_m
        self.decoder = F.normalize(self.decoder, dim=1)


class GatedSAE(_Steered):
    """Gated sparse autoencoder (Rajamanoharan et al. 2024, arXiv 2404.16014).

    With u = (x − b_d) W_eᵀ: π = u + b_gate, z = 1[π > 0] ⊙ ReLU(exp(r) u + b_mag). The loss is mean (x − x̂)² +
    λ Σ_j ReLU(π_j), the sum averaged over rows, + mean (x − ReLU(π) sg(W_d) − sg(b_d))², the only term besides
    the penalty that moves the gates. b_gate is `encoder_bias`.
    """

    method: ClassVar[str] = "sae-gated"
    trained: ClassVar[tuple[str, ...]] = (*VariableL0.trained, "log_gain", "magnitude_bias")
    log_gain: Tensor  # [M], r
    magnitude_bias: Tensor  # [M], b_mag

    def _prepare(self, rows: TrainingRows) -> None:
        super()._prepare(rows)
        self.log_gain = torch.zeros_like(self.encoder_bias)
        self.magnitude_bias = torch.zeros_like(self.encoder_bias)

    def active(self, h_nm: Tensor) -> Tensor:
        magnitude = self.log_gain.exp() * (h_nm - self.encoder_bias) + self.magnitude_bias
        return torch.where(h_nm <= 0, 0, magnitude.relu())  # NaN stays

    def _loss(self, x: Tensor, training: Training) -> Tensor:
        gate = self.pre_activations(x)
        z = self.active(gate)
        gate = gate.relu()
        loss = (x - self.reconstruct(z)).square().mean() + gate_loss(x, gate, self.decoder, self.decoder_bias)
        loss = loss + self.coefficient * gate.sum(dim=1).mean()
        self._steer(z, training)
        return loss

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "log_gain": self.log_gain, "magnitude_bias": self.magnitude_bias}

    def restore(self, state: dict[str, Tensor]) -> Self:
        self.log_gain, self.magnitude_bias = state["log_gain"], state["magnitude_bias"]
        return super().restore(state)


def gate_loss(x: Tensor, gate: Tensor, decoder: Tensor, offset: Tensor) -> Tensor:
    """Mean (x − ReLU(π) W_d − b_d)² of rectified gates [n, M], with no gradient for the decoder."""
    rebuilt = gate @ decoder.detach() + offset.detach()
    return (x - rebuilt).square().mean()
