"""The steps of TopK training, with the backward pass written out: gradients only where latents are active.

With x' = x − b_d, h = x' W_eᵀ + b_e, z = ReLU(TopK_k(h)), x̂ = z W_d + b_d, the loss mean (x − x̂)² + α·AuxK gives
g = ∂/∂x̂ = −2 (x − x̂) / (B·D), and for the active pairs (i, j) alone
    ∂/∂z_ij = g_i·d_j,  ∂/∂d_j = Σ_i z_ij g_i,  ∂/∂w_j = Σ_i ∂z_ij x'_i,  ∂/∂b_e,j = Σ_i ∂z_ij,
    ∂/∂b_d = Σ_i g_i − Σ_j ∂b_e,j w_j.
Pairs are sorted by latent, so each sum over rows is one bag. But for h there is no array of B × M, and none of
M × D but the parameters and Adam's moments: blocks of latents get their gradients, take their step and are
normalised while they lie in the cache. A dead latent has no active pair, so AuxK alone moves it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from monoeval.products import has_bfloat16

GROUP = 8
"""Latents a group in the search for the k largest: of 4, 8 and 16 the fastest at 4,096 and at 16,384 latents."""
BLOCK = 1024
"""Latents whose gradients and moments stay in the cache of a CPU."""
BETAS = (0.5, 0.99)
"""Of Adam. After 120 steps at 512 features and 4,096 latents they explain 0.908 of the variance of unseen
rows, the usual (0.9, 0.999) 0.869, and (0, 0.99) 0.888. After 1,500 steps on digits the first two explain 0.997 of
their training rows alike."""
REDUCED_WORK = 1e9
"""Multiplications of the encoder's product below which its speed does not matter."""


def aux_k(h: Tensor, error: Tensor, decoder: Tensor, dead: Tensor) -> Tensor:
    """AuxK: how well the strongest dead latents explain what the living ones missed; a scalar.

    h [n, M] are pre-activations, `error` [n, D] is x − x̂ (taken as a constant), `dead` [m] are indices.
    ê = ReLU(TopK(h over the dead)) W_d without b_d, with as many latents as half the features at most; the loss
    is mean (e − ê)² / mean (e − mean_batch e)², and 0 where that is not a number. Selecting among the
    pre-activations, rather than masking codes, is what lets a gradient reach the encoder rows of dead latents.
    """
    error = error.detach()
    k = min(max(1, error.shape[1] // 2), len(dead))
    among = h.index_select(1, dead)
    values, places = among.topk(k, dim=1, sorted=False)
    sparse = torch.zeros_like(among).scatter(1, places, values.relu())
    missed = (error - sparse @ decoder.index_select(0, dead)).square().mean()
    spread = (error - error.mean(dim=0)).square().mean()
    # not nan_to_num: it mends the value of 0/0 and leaves its gradient NaN
    return torch.where(spread > 0, missed / spread.clamp_min(torch.finfo(spread.dtype).tiny), 0.0)


def aux_share(dead: int, width: int) -> float:
    """What AuxK is multiplied by where fewer latents are dead than it may use."""
    return min(1.0, dead / (width / 2))


def largest(h_nm: Tensor, k: int) -> Tensor:
    """Positions int64 [n, k] of the k largest of each row, in no order.

    They lie in the k groups with the largest maxima, so nearly all numbers are read once and never sorted.
    """
    n, m = h_nm.shape
    groups = m // GROUP
    if m % GROUP or groups < 4 * k:
        return h_nm.topk(k, dim=1, sorted=False).indices
    maxima = h_nm.view(n, GROUP, groups).amax(dim=1)  # a group is j, j + M/8, …: maxima of whole cache lines
    chosen = maxima.topk(k, dim=1, sorted=False).indices
    offsets = torch.arange(0, m, groups, device=h_nm.device)
    among = (chosen[:, None] + offsets[:, None]).view(n, -1)
    return among.gather(1, h_nm.gather(1, among).topk(k, dim=1, sorted=False).indices)


@dataclass(frozen=True)
class Pairs:
    """The active pairs (row, latent) of a batch, sorted by latent."""

    row: Tensor  # int64 [n·k]
    start: Tensor  # int64 [M + 1], where each latent's pairs start
    z: Tensor  # [n·k]
    dz: Tensor  # [n·k], 0 where z is

    @classmethod
    def of(cls, chosen_nk: Tensor, z_nk: Tensor, dz_nk: Tensor, width: int) -> "Pairs":
        latent, order = chosen_nk.flatten().int().sort()
        edges = torch.arange(width + 1, dtype=torch.int32, device=latent.device)
        z, dz = z_nk.flatten()[order], (dz_nk * (z_nk > 0)).flatten()[order]
        return cls(order // chosen_nk.shape[1], torch.searchsorted(latent, edges), z, dz)

    def sums(self, weights: Tensor, rows_nd: Tensor, latents: slice, pairs: slice) -> Tensor:
        """Σ_i weight_ij rows_i for each of `latents`, whose pairs are `pairs`."""
        starts = self.start[latents] - pairs.start
        return F.embedding_bag(self.row[pairs], rows_nd, starts, mode="sum", per_sample_weights=weights[pairs])

    def by_latent(self, values: Tensor) -> Tensor:
        """Sums [M] of values of the pairs."""
        latent = torch.repeat_interleave(self.start.diff())
        return values.new_zeros(len(self.start) - 1).index_add_(0, latent, values)


@dataclass
class Aux:
    """Gradients of α·AuxK by what belongs to the `dead` latents, and by nothing else."""

    dead: Tensor
    encoder: Tensor
    bias: Tensor
    decoder: Tensor


class TopKSteps:
    """Trains the four tensors of a TopK dictionary in place; decoder rows stay at length one.

    Products of the encoder are bfloat16 where that is worth it; all sums are float32.
    """

    def __init__(
        self,
        encoder: Tensor,
        encoder_bias: Tensor,
        decoder: Tensor,
        decoder_bias: Tensor,
        *,
        k: int,
        aux_weight: float,
    ) -> None:
        self.encoder, self.encoder_bias = encoder.detach(), encoder_bias.detach()
        self.decoder, self.decoder_bias = decoder.detach(), decoder_bias.detach()
        self.k, self.aux_weight, self.width = k, aux_weight, len(encoder)
        block = BLOCK if encoder.device.type == "cpu" else self.width
        self.blocks = [slice(s, min(s + block, self.width)) for s in range(0, self.width, block)]
        self.parts = [(self.encoder[b], self.decoder[b]) for b in self.blocks]
        self.optimisers = [torch.optim.Adam(part, betas=BETAS, fused=True) for part in self.parts]
        self.biases = torch.optim.Adam([self.encoder_bias, self.decoder_bias], betas=BETAS, fused=True)
        self._low: Tensor | None = None
        self._h: Tensor | None = None

    @torch.no_grad()
    def step(self, x_nd: Tensor, idle_m: Tensor, patience: float, rate: float) -> None:
        """One step of Adam at `rate`; `idle_m`, the rows since each latent fired, is kept up to date."""
        n, d = x_nd.shape
        centred = x_nd - self.decoder_bias
        chosen, z_nk = self._codes(centred)
        idle_m += n
        idle_m[chosen[z_nk > 0]] = 0
        with torch.enable_grad():
            z_nk.requires_grad_()
            error = centred - F.embedding_bag(chosen, self.decoder, per_sample_weights=z_nk, mode="sum")
            (dz_nk,) = torch.autograd.grad(error.square().mean(), z_nk)
        z_nk, error = z_nk.detach(), error.detach()
        dead = (idle_m >= patience).nonzero().squeeze(1)
        aux = self._aux(centred, error, dead) if self.aux_weight and len(dead) else None
        self._descend(centred, error * (-2 / (n * d)), Pairs.of(chosen, z_nk, dz_nk, self.width), aux, rate)

    def _codes(self, centred: Tensor) -> tuple[Tensor, Tensor]:
        """Which latents are active, int64 [n, k], and their codes [n, k]."""
        reduce = centred.numel() * self.width >= REDUCED_WORK and has_bfloat16(centred.device.type)
        dtype = torch.bfloat16 if reduce else torch.float32
        if self._h is None or len(self._h) != len(centred):
            self._h = torch.empty(len(centred), self.width, dtype=dtype, device=centred.device)
            self._low = torch.empty_like(self.encoder, dtype=dtype) if reduce else None
        encoder = self.encoder if self._low is None else self._low.copy_(self.encoder)
        h = torch.addmm(self.encoder_bias.to(dtype), centred.to(dtype), encoder.T, out=self._h)
        chosen = largest(h, self.k)
        return chosen, h.gather(1, chosen).float().relu_()

    def _aux(self, centred: Tensor, error: Tensor, dead: Tensor) -> Aux:
        with torch.enable_grad():
            parts = [t[dead].requires_grad_() for t in (self.encoder, self.encoder_bias, self.decoder)]
            encoder, bias, decoder = parts
            every = torch.arange(len(dead), device=dead.device)
            loss = aux_k(F.linear(centred, encoder, bias), error, decoder, every)
            weight = self.aux_weight * aux_share(len(dead), error.shape[1])
            return Aux(dead, *torch.autograd.grad(weight * loss, parts))

    def _descend(self, centred: Tensor, g: Tensor, pairs: Pairs, aux: Aux | None, rate: float) -> None:
        """Block by block: gradients, Adam's step, unit rows; then the biases."""
        into_encoder_bias = pairs.by_latent(pairs.dz)
        along = pairs.by_latent(pairs.z * pairs.dz)  # ∂d_j·d_j, as g_i·d_j is ∂z_ij
        into_decoder_bias = g.sum(dim=0)
        # on one block the host need not know where its pairs begin
        edges = pairs.start[:: len(self.parts[0][0])].tolist() if len(self.blocks) > 1 else [0]
        places = None
        if aux is not None:
            into_encoder_bias[aux.dead] = aux.bias
            along[aux.dead] = torch.linalg.vecdot(aux.decoder, self.decoder[aux.dead])
            firsts = torch.tensor([b.start for b in self.blocks[1:]], device=aux.dead.device)
            places = [0, *torch.searchsorted(aux.dead, firsts).tolist(), len(aux.dead)]
        for i, (latents, (encoder, decoder)) in enumerate(zip(self.blocks, self.parts, strict=True)):
            some = slice(edges[i], edges[i + 1] if i + 1 < len(self.blocks) else len(pairs.row))
            encoder.grad = pairs.sums(pairs.dz, centred, latents, some)
            decoder.grad = pairs.sums(pairs.z, g, latents, some)
            if aux is not None and places is not None:
                of_dead = slice(places[i], places[i + 1])
                here = aux.dead[of_dead] - latents.start
                encoder.grad[here], decoder.grad[here] = aux.encoder[of_dead], aux.decoder[of_dead]
            decoder.grad.addcmul_(along[latents, None], decoder, value=-1)
            into_decoder_bias -= into_encoder_bias[latents] @ encoder
            self._take(self.optimisers[i], rate)
            encoder.grad = decoder.grad = None
            decoder.div_(torch.linalg.vector_norm(decoder, dim=1, keepdim=True))
        self.encoder_bias.grad, self.decoder_bias.grad = into_encoder_bias, into_decoder_bias
        self._take(self.biases, rate)

    @staticmethod
    def _take(optimiser: torch.optim.Adam, rate: float) -> None:
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()
