"""The steps of TopK training, with the backward pass written out: gradients only where latents are active.

With x' = x − b_d, h = x' W_eᵀ + b_e, z = ReLU(TopK_k(h)), x̂ = z W_d + b_d, the loss mean (x − x̂)² + α·AuxK gives
g = ∂/∂x̂ = −2 (x − x̂) / (B·D), and for the active pairs (i, j) alone
    ∂/∂z_ij = g_i·d_j,  ∂/∂d_j = Σ_i z_ij g_i,  ∂/∂w_j = Σ_i ∂z_ij x'_i,  ∂/∂b_e,j = Σ_i ∂z_ij,
    ∂/∂b_d = Σ_i g_i − Σ_j ∂b_e,j w_j.
Pairs are sorted by latent, so each sum over rows is one bag. But for h there is no array of B × M, and none of
M × D but the parameters and Adam's moments: blocks of latents get their gradients, take their step and are
normalised while they lie in the cache. A dead latent has no active pair, so AuxK alone moves it. AuxK chooses
among the same h, and its pairs are treated as the others, with ∂/∂ê in the place of g; but where it takes a good
part of few dead latents, products with all of these are quicker.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from monoeval.hardware import has_bfloat16

GROUP = 8
"""Latents a group in the search for the k largest: of 4, 8 and 16 the fastest at 4,096 and at 16,384 latents."""
BLOCK = 1024
"""Latents whose gradients and moments stay in the cache of a CPU."""
FEW = 4
"""Dead latents, as a multiple of those that AuxK takes, up to which products with all are quicker than pairs: with
236 of 4,096 dead, at 512 features in fp32, a step takes 62 ms, and 88 ms with pairs."""
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
    if m % GROUP or not 0 < 4 * k <= groups:
        return h_nm.topk(k, dim=1, sorted=False).indices
    maxima = h_nm.view(n, GROUP, groups).amax(dim=1)  # a group is j, j + M/8, …: maxima of whole cache lines
    chosen = maxima.topk(k, dim=1, sorted=False).indices
    offsets = torch.arange(0, m, groups, device=h_nm.device)
    among = (chosen[:, None] + offsets[:, None]).view(n, -1)
    return among.gather(1, h_nm.gather(1, among).topk(k, dim=1, sorted=False).indices)


@dataclass(frozen=True)
class Chosen:
    """Latents of the stack that are chosen for each row, and their codes: 0 in places without use."""

    latents: Tensor  # int64 [n, k]
    z: Tensor  # float32 [n, k], a leaf

    @classmethod
    def of(cls, each: Sequence[tuple[Tensor, Tensor]]) -> "Chosen":
        """From the latents and codes [n, k] of rows that follow each other, with the largest k."""
        most = max(z.shape[1] for _, z in each)
        wide = [[F.pad(part, (0, most - part.shape[1])) for part in parts] for parts in zip(*each, strict=True)]
        return cls(torch.cat(wide[0]), torch.cat(wide[1]).requires_grad_())

    def decoded(self, decoder: Tensor) -> Tensor:
        """Σ_j z_ij d_j [n, D], through which z has a gradient."""
        with torch.enable_grad():
            return F.embedding_bag(self.latents, decoder, per_sample_weights=self.z, mode="sum")


@dataclass(frozen=True)
class Pairs:
    """The active pairs (row, latent) of a batch, sorted by latent."""

    row: Tensor  # int64 [P]
    start: Tensor  # int64 [M + 1], where each latent's pairs start
    z: Tensor  # [P]
    dz: Tensor  # [P], 0 where z is

    @classmethod
    def of(cls, chosen: Sequence[Chosen], dz: Sequence[Tensor], width: int) -> "Pairs":
        """The rows of each of `chosen` are numbered after those of the one before."""
        latents = torch.cat([each.latents.flatten() for each in chosen]).int()
        # stable, so that the order of a sum does not depend on how many members a stack has
        latent, order = latents.sort(stable=True)
        edges = torch.arange(width + 1, dtype=torch.int32, device=latents.device)
        rows = torch.arange(sum(len(each.z) for each in chosen), device=latents.device).view(len(chosen), -1)
        row = torch.cat([own.repeat_interleave(each.z.shape[1]) for own, each in zip(rows, chosen, strict=True)])
        z = torch.cat([each.z.detach().flatten() for each in chosen])
        into_z = torch.cat([each.flatten() for each in dz]) * (z > 0)
        return cls(row[order], torch.searchsorted(latent, edges), z[order], into_z[order])

    def sums(self, weights: Tensor, rows_nd: Tensor, latents: slice, pairs: slice) -> Tensor:
        """Σ_i weight_ij rows_i for each of `latents`, whose pairs are `pairs`."""
        starts = self.start[latents] - pairs.start
        return F.embedding_bag(self.row[pairs], rows_nd, starts, mode="sum", per_sample_weights=weights[pairs])

    def by_latent(self, values: Tensor) -> Tensor:
        """Sums [M] of values of the pairs."""
        latent = torch.repeat_interleave(self.start.diff())
        return values.new_zeros(len(self.start) - 1).index_add_(0, latent, values)


@dataclass(frozen=True)
class Few:
    """The few dead latents of one member, and their codes: 0 where AuxK does not choose them."""

    member: int
    latents: Tensor  # int64 [m] of the stack, in rising order
    z: Tensor  # float32 [n, m]

    @classmethod
    def of(cls, member: int, h_nm: Tensor, dead: Tensor, k: int) -> "Few":
        """From the pre-activations of a member, where `dead` [m] are; k of them are chosen for each row."""
        z = h_nm.index_select(1, dead).float().relu_()
        if k < len(dead):
            chosen = z.topk(k, dim=1, sorted=False)
            z = torch.zeros_like(z).scatter_(1, chosen.indices, chosen.values)
        return cls(member, dead + member * h_nm.shape[1], z)


@dataclass(frozen=True)
class Gradients:
    """Gradients by what belongs to some latents of the stack, which come in rising order."""

    latents: Tensor  # int64 [m]
    encoder: Tensor  # [m, D]
    bias: Tensor  # [m]
    decoder: Tensor  # [m, D]
    along: Tensor  # [m], ∂d_j·d_j


class TopKSteps:
    """Trains S TopK dictionaries of one shape side by side, in place; decoder rows stay at length one.

    Member s has `k[s]` active latents a row and sees batches of its own, and what becomes of it does not depend on
    the others. The stack is treated as one dictionary of S·M latents, whose rows [S·n, D] each know the latents of
    their own member alone. Products of the encoder are bfloat16 where that is worth it; all sums are float32.
    """

    def __init__(
        self,
        encoder_smd: Tensor,
        encoder_bias_sm: Tensor,
        decoder_smd: Tensor,
        decoder_bias_sd: Tensor,
        *,
        k: Sequence[int],
        aux_weight: float,
    ) -> None:
        self.members, self.width, _ = encoder_smd.shape
        self.k, self.aux_weight = tuple(k), aux_weight
        self.encoder, self.decoder = encoder_smd.detach().flatten(0, 1), decoder_smd.detach().flatten(0, 1)
        self.encoder_bias, self.decoder_bias = encoder_bias_sm.detach(), decoder_bias_sd.detach()
        self._lay_out(on_cpu=encoder_smd.device.type == "cpu")
        self._low: Tensor | None = None
        self._h: Tensor | None = None

    def _lay_out(self, *, on_cpu: bool) -> None:
        """What is done at once: on a CPU what fits its cache, so members take turns, and blocks of each."""
        width, whole = self.width, len(self.encoder)
        self.alike = [slice(s, s + 1) for s in range(self.members)] if on_cpu else _runs(self.k)
        edges = [s + b for s in range(0, whole, width) for b in range(0, width, BLOCK)] if on_cpu else [0]
        self.blocks = [slice(*pair) for pair in pairwise([*edges, whole])]
        self.firsts = torch.tensor(edges[1:], dtype=torch.int64, device=self.encoder.device)
        self.parts = [(self.encoder[b], self.decoder[b]) for b in self.blocks]
        self.optimisers = [torch.optim.Adam(part, betas=BETAS, fused=True) for part in self.parts]
        # Adam rounds the last few numbers of a tensor otherwise than the rest: those of a member must end with it
        self.biases = [(members, self.encoder_bias[members], self.decoder_bias[members]) for members in self.alike]
        each = [bias for _, *pair in self.biases for bias in pair]
        self.bias_optimiser = torch.optim.Adam(each, betas=BETAS, fused=True)

    @torch.no_grad()
    def step(self, x_snd: Tensor, idle_sm: Tensor, patience: float, rate: float) -> None:
        """One step of Adam at `rate` on batches [S, n, D], or on one [1, n, D] that all members share.

        `idle_sm`, the rows since each latent fired, is kept up to date.
        """
        _, n, d = x_snd.shape
        centred_snd = x_snd - self.decoder_bias[:, None]
        idle_sm += n
        chosen, few = self._choose(centred_snd, idle_sm, patience)
        rebuilt = [each.decoded(self.decoder) for each in chosen]
        error = centred_snd.flatten(0, 1) - rebuilt[0].detach()
        g = [error * (-2 / (n * d))]
        into_decoder_bias = g[0].view(self.members, n, d).sum(dim=1)
        error_snd = error.view(self.members, n, d)
        if len(chosen) > 1:
            dead = (idle_sm >= patience).sum(dim=1).tolist()
            g.append(self._by_aux(error_snd, rebuilt[1].detach().view_as(error_snd), dead).flatten(0, 1))
        dz = torch.autograd.grad(rebuilt, [each.z for each in chosen], g)
        pairs = Pairs.of(chosen, dz, len(self.encoder))
        of_few = [self._through(each, centred_snd[each.member], error_snd) for each in few]
        x = centred_snd.flatten(0, 1)
        x, by_rebuilt = (x, g[0]) if len(g) == 1 else (x.repeat(len(g), 1), torch.cat(g))
        self._descend(x, by_rebuilt, pairs, of_few, into_decoder_bias, rate)

    def _choose(self, centred_snd: Tensor, idle_sm: Tensor, patience: float) -> tuple[list[Chosen], list[Few]]:
        """The active latents of each row, whose `idle_sm` becomes 0; and those of AuxK, where latents are dead."""
        _, n, d = centred_snd.shape
        reduce = n * d * self.width >= REDUCED_WORK and has_bfloat16(centred_snd.device.type)
        dtype = torch.bfloat16 if reduce else torch.float32
        active, aux, few = [], [], []
        for members in self.alike:
            latents = slice(members.start * self.width, members.stop * self.width)
            shape = (members.stop - members.start, n, self.width)
            encoder = self.encoder[latents].view(shape[0], self.width, d)
            if self._h is None or self._h.shape != shape:
                self._h = torch.empty(shape, dtype=dtype, device=centred_snd.device)
                self._low = torch.empty_like(encoder, dtype=dtype) if reduce else None
            encoder = encoder if self._low is None else self._low.copy_(encoder)
            bias = self.encoder_bias[members, None].to(dtype)
            h = torch.baddbmm(bias, centred_snd[members].to(dtype), encoder.mT, out=self._h)
            first = torch.arange(latents.start, latents.stop, self.width, device=h.device).repeat_interleave(n)
            active.append(_of_largest(h, self.k[members.start], first))
            fired, z = active[-1]
            idle_sm.view(-1)[fired[z > 0]] = 0
            dead = idle_sm[members] >= patience
            count = int(dead.sum(dim=1).max()) if self.aux_weight else 0
            most = min(max(1, d // 2), count)
            if len(dead) == 1 and 0 < count <= FEW * most:
                few.append(Few.of(members.start, h[0], dead[0].nonzero().squeeze(1), most))
                most = 0
            elif most:
                h += torch.where(dead, 0.0, -torch.inf)[:, None].to(dtype)
            aux.append(_of_largest(h, most, first))
        pairs = [active, aux] if any(z.shape[1] for _, z in aux) else [active]
        return [Chosen.of(each) for each in pairs], few

    def _by_aux(self, error_snd: Tensor, rebuilt_snd: Tensor, dead: Sequence[int]) -> Tensor:
        """The gradient [S, n, D] of α·AuxK by ê, which `rebuilt_snd` is; 0 where a member's errors do not vary."""
        _, n, d = error_snd.shape
        weights = [self.aux_weight * aux_share(count, d) for count in dead]
        spread = (error_snd - error_snd.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2))
        each = error_snd.new_tensor(weights) * 2 / (n * d) / spread
        return torch.where(spread > 0, each, 0.0)[:, None, None] * (rebuilt_snd - error_snd)

    def _through(self, few: Few, centred_nd: Tensor, error_snd: Tensor) -> Gradients:
        """The gradients of α·AuxK by all that belongs to the dead latents of a member."""
        decoder, own = self.decoder[few.latents], slice(few.member, few.member + 1)
        g = self._by_aux(error_snd[own], (few.z @ decoder)[None], [len(few.latents)])[0]
        dz = (g @ decoder.T) * (few.z > 0)
        return Gradients(few.latents, dz.T @ centred_nd, dz.sum(dim=0), few.z.T @ g, (few.z * dz).sum(dim=0))

    def _descend(
        self,
        x: Tensor,
        g: Tensor,
        pairs: Pairs,
        of_few: Sequence[Gradients],
        into_decoder_bias: Tensor,
        rate: float,
    ) -> None:
        """Block by block: gradients, Adam's step, unit rows; then the biases. `pairs` are of rows of x and g."""
        into_encoder_bias = pairs.by_latent(pairs.dz)
        along = pairs.by_latent(pairs.z * pairs.dz)  # ∂d_j·d_j, as g_i·d_j is ∂z_ij
        for few in of_few:
            into_encoder_bias[few.latents] += few.bias
            along[few.latents] += few.along
        edges = [0, *pairs.start[self.firsts].tolist(), len(pairs.row)]
        for i, (latents, (encoder, decoder)) in enumerate(zip(self.blocks, self.parts, strict=True)):
            some = slice(edges[i], edges[i + 1])
            encoder.grad = pairs.sums(pairs.dz, x, latents, some)
            decoder.grad = pairs.sums(pairs.z, g, latents, some)
            for few in of_few:
                ends = torch.tensor([latents.start, latents.stop], device=few.latents.device)
                first, last = torch.searchsorted(few.latents, ends).tolist()
                here = few.latents[first:last] - latents.start
                encoder.grad[here] += few.encoder[first:last]
                decoder.grad[here] += few.decoder[first:last]
            decoder.grad.addcmul_(along[latents, None], decoder, value=-1)
            for s in range(latents.start // self.width, -(-latents.stop // self.width)):
                own = slice(max(latents.start, s * self.width), min(latents.stop, (s + 1) * self.width))
                into_decoder_bias[s] -= into_encoder_bias[own] @ self.encoder[own]
            self._take(self.optimisers[i], rate)
            encoder.grad = decoder.grad = None
            decoder.div_(torch.linalg.vector_norm(decoder, dim=1, keepdim=True))
        for members, encoder_bias, decoder_bias in self.biases:
            encoder_bias.grad = into_encoder_bias.view_as(self.encoder_bias)[members]
            decoder_bias.grad = into_decoder_bias[members]
        self._take(self.bias_optimiser, rate)

    @staticmethod
    def _take(optimiser: torch.optim.Adam, rate: float) -> None:
        optimiser.param_groups[0]["lr"] = rate
        optimiser.step()


def _runs(k: Sequence[int]) -> list[slice]:
    """The members of a stack that follow each other with one k."""
    edges = [0, *(s for s in range(1, len(k)) if k[s] != k[s - 1]), len(k)]
    return [slice(*pair) for pair in pairwise(edges)]


def _of_largest(h_snm: Tensor, k: int, first: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest of each row, as latents [s·n, k] counted from `first` of the row, and their codes."""
    h = h_snm.flatten(0, 1)
    chosen = largest(h, k)
    return chosen + first[:, None], h.gather(1, chosen).float().relu_()
