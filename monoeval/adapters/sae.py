"""TopK and BatchTopK sparse autoencoders, and the controls that share their width, sparsity or training."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from monoeval import progress
from monoeval.adapters.base import SparseRows
from monoeval.adapters.dictionary import Dictionary, TrainedDictionary, Training, order_of
from monoeval.adapters.rows import TrainingRows, shuffled
from monoeval.adapters.settings import MatryoshkaSettings, TrainedDictionarySettings
from monoeval.adapters.topk import BETAS, TopKSteps, aux_k, aux_share
from monoeval.adapters.variable_l0 import VariableL0, packed
from monoeval.hardware import free_bytes

log = logging.getLogger("monoeval")

STACK_BYTES = 40
"""What training takes for each latent and feature: W_e and W_d as they start, as they are trained with two moments
each, and as they are kept."""


class RandomTopK(Dictionary):
    """The TopK autoencoder as it is before training: what width and sparsity give by themselves."""

    method: ClassVar[str] = "random-topk"

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:
        self._start(rows, seed)
        self.measures = {**self._measure(rows, self.encode), "width": self.width, "k": self.k}
        return self


class TopKDictionary(TrainedDictionary):
    """A dictionary of TopK codes with AuxK, by autograd: what variations of `TopKSAE` start from."""

    settings: TrainedDictionarySettings

    def __init__(self, settings: TrainedDictionarySettings) -> None:
        super().__init__(settings)
        self.settings = settings

    def _loss(self, x: Tensor, training: Training) -> Tensor:
        h = self.pre_activations(x)
        codes = self.select(h)
        training.fired(codes)
        error = x - self.reconstruct(codes)
        loss = self._missed(x, h, codes, error)
        dead = (training.idle_m >= self.settings.dead_epochs * training.rows).nonzero().squeeze(1)
        if self.settings.aux_weight and len(dead):
            weight = self.settings.aux_weight * aux_share(len(dead), x.shape[1])
            loss = loss + weight * aux_k(h, error, self.decoder, dead)
        return loss

    def select(self, h_nm: Tensor) -> SparseRows:
        """The codes of a training batch."""
        return self.top_k(h_nm)

    def _missed(self, x: Tensor, h: Tensor, codes: SparseRows, error: Tensor) -> Tensor:  # noqa: ARG002
        """The loss beside AuxK, of rows x, pre-activations h, their codes and the `error` x − x̂."""
        return error.square().mean()


class TopKSAE(TopKDictionary):
    """TopK sparse autoencoder with AuxK (Gao et al. 2024, arXiv 2406.04093), trained by steps written for it.

    Defaults by measurement on the pixels of 1,200 digits (width 1,024, k = 16, 1,500 steps): 0.997 of the variance
    is explained and 8 % of the latents are dead, 0.992 and 40 % without AuxK. Learning rates of 1e-3, 2e-3 and
    8e-3 explain 0.984, 0.994 and 0.992. On 597 other digits it is 0.875, and 0.873 to 0.885 with any of these:
    what is gained is the training rows' own.
    """

    method: ClassVar[str] = "sae"
    stacked: ClassVar[bool] = True

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:
        self.fit_together([self], rows, [seed])
        return self

    @classmethod
    def fit_together(cls, members: Sequence[Self], rows: TrainingRows, seeds: Sequence[int]) -> None:
        """Seeds, and settings that differ in `k` alone, train as one stack; as several where memory is short."""
        stacks: dict[str, list[tuple[Self, int]]] = defaultdict(list)
        for member, seed in zip(members, seeds, strict=True):
            stacks[member.settings.model_copy(update={"k": None}).model_dump_json()].append((member, seed))
        for stack in stacks.values():
            each = STACK_BYTES * stack[0][0].settings.latents(rows.width) * rows.width
            most = max(1, free_bytes(rows.device) // (2 * each))
            for start in range(0, len(stack), most):
                cls._fit_stack(stack[start : start + most], rows)

    @classmethod
    def _fit_stack(cls, stack: Sequence[tuple[Self, int]], rows: TrainingRows) -> None:
        """Train all of `stack`, (adapter, seed) pairs; those of one seed share each batch of features."""
        schedules = [member._begin(rows, seed) for member, seed in stack]
        schedule = schedules[0]  # of all, as they have the same rows and settings
        members, seeds = zip(*stack, strict=True)
        first: Self = members[0]
        tensors = [torch.stack([getattr(member, name) for member in members]) for name in cls.trained]
        steps = TopKSteps(*tensors, k=[member.k for member in members], aux_weight=first.settings.aux_weight)
        idle_sm, patience = torch.zeros_like(tensors[1]), first.settings.dead_epochs * len(rows)
        batches = {seed: shuffled(len(rows), schedule.batch_size, order_of(seed)) for seed in seeds}
        beside = f" × {len(stack)}" if len(stack) > 1 else ""
        with progress.bar(f"training {cls.method} {first.width}{beside}", schedule.steps, "steps") as advance:
            for step in range(schedule.steps):
                drawn = {seed: rows.batch(next(positions)) for seed, positions in batches.items()}
                of_each = drawn.values() if len(drawn) == 1 else [drawn[seed] for seed in seeds]
                steps.step(first.scaled(torch.stack(list(of_each))), idle_sm, patience, schedule.rate(step))
                advance(1)
        for s, member in enumerate(members):
            for name, tensor in zip(cls.trained, tensors, strict=True):
                setattr(member, name, tensor[s].clone())
            member._end(rows, schedule)


class FrozenDecoder(TopKDictionary):
    """The TopK autoencoder whose decoder stays random: what its encoder alone can learn (arXiv 2602.14111)."""

    method: ClassVar[str] = "frozen-decoder"
    trained: ClassVar[tuple[str, ...]] = ("encoder", "encoder_bias", "decoder_bias")
    unit_rows: ClassVar[bool] = False
    betas: ClassVar[tuple[float, float]] = BETAS  # as `sae`, which it is held against


class FrozenEncoder(TopKDictionary):
    """The TopK autoencoder whose encoder stays random: what its decoder alone can learn (arXiv 2602.14111).

    Its codes are those of `random-topk`, so probes cannot tell the two apart: it is the control for what is read
    off the decoder, such as explained variance and directions.
    """

    method: ClassVar[str] = "frozen-encoder"
    trained: ClassVar[tuple[str, ...]] = ("decoder", "decoder_bias")
    betas: ClassVar[tuple[float, float]] = BETAS  # as `sae`, which it is held against

    def pre_activations(self, scaled_nd: Tensor) -> Tensor:
        """h = x W_eᵀ: b_d, which is trained, would move it."""
        return F.linear(scaled_nd, self.encoder, self.encoder_bias)


class MatryoshkaSAE(TopKDictionary):
    """Nested prefixes of the latents, each of which reconstructs alone (Bussmann et al. 2025, arXiv 2503.17547).

    The loss is the average over prefixes of m_1 < … < m_G = M latents of mean (x − z_{:m} W_{d,:m} − b_d)², all
    from one z. The codes are TopK, where the paper has BatchTopK: each row then has k active latents, as those of
    `sae` and `random-topk` have, and the nesting is all that differs.
    """

    method: ClassVar[str] = "sae-matryoshka"
    settings: MatryoshkaSettings

    def prefixes(self) -> list[int]:
        """m_1 < … < m_G, each twice the one before."""
        halvings = range(self.settings.prefixes - 1, -1, -1)
        return sorted({max(1, round(self.width / 2**halving)) for halving in halvings})

    def _missed(self, x: Tensor, h: Tensor, codes: SparseRows, error: Tensor) -> Tensor:  # noqa: ARG002
        *shorter, _ = prefixes = self.prefixes()
        losses = [error.square().mean()]
        for m in shorter:
            nested = SparseRows(codes.values * (codes.indices < m), codes.indices, codes.width)
            losses.append((x - self.reconstruct(nested)).square().mean())
        return torch.stack(losses).sum() / len(prefixes)


class BatchTopKSAE(VariableL0, TopKDictionary):
    """BatchTopK sparse autoencoder with AuxK (Bussmann et al. 2024, arXiv 2412.06410).

    In training the k·B largest of ReLU(h) in a batch are kept. A code must not depend on the other rows of its
    batch, so afterwards one threshold θ replaces them: z = ReLU(h) where h > θ, with θ the (1 − k/M) quantile of
    ReLU(h) over the training rows, where the mean L0 is k.
    """

    method: ClassVar[str] = "sae-batchtopk"
    threshold: Tensor  # scalar

    def select(self, h_nm: Tensor) -> SparseRows:
        values, flat = h_nm.flatten().topk(self.k * len(h_nm), sorted=False)
        flat, order = flat.sort()
        return packed(flat // self.width, flat % self.width, values[order].relu(), h_nm.shape)

    def active(self, h_nm: Tensor) -> Tensor:
        return torch.where(h_nm <= self.threshold, 0, h_nm)  # NaN stays

    def _finish(self, rows: TrainingRows) -> None:
        theta = self._threshold(rows)
        if theta == 0:
            log.warning(
                "Fewer than k = %d of %d latents are positive on average, so %s keeps all that are.",
                self.k, self.width, self.method,
            )  # fmt: skip
        self.threshold = torch.tensor(theta, device=rows.device)

    def state(self) -> dict[str, Tensor]:
        return {**super().state(), "threshold": self.threshold}

    def restore(self, state: dict[str, Tensor]) -> Self:
        self.threshold = state["threshold"]
        return super().restore(state)


class DenseAutoencoder(TrainedDictionary):
    """z = ReLU(h) with nothing that makes it sparse: what width and training give without sparsity."""

    method: ClassVar[str] = "dense-ae"
    betas: ClassVar[tuple[float, float]] = BETAS  # as `sae`, which it is held against

    def _active(self, width: int) -> int:
        return width

    def activate(self, h_nm: Tensor) -> Tensor:
        return h_nm.relu()

    def _untrained(self, features_nd: Tensor) -> Tensor | SparseRows:
        return self.encode(features_nd)

    def _loss(self, x: Tensor, training: Training) -> Tensor:  # noqa: ARG002 (it has no dead latents to count)
        return (x - self.reconstruct(self.activate(self.pre_activations(x)))).square().mean()
