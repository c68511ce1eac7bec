"""Contrastive heads on a frozen backbone: a projector trained on augmented views, rectified or not."""

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monoeval import progress
from monoeval.adapters.base import Adapter
from monoeval.adapters.rows import Batches, TrainingRows, shuffled
from monoeval.adapters.settings import HeadSettings, NonNegativeHeadSettings
from monoeval.errors import MonoevalError, UsageError
from monoeval.keys import draw_seed
from monoeval.training.contrastive import RECTIFIERS, info_nce
from monoeval.training.pretrain import FEW_ALIVE, warm_cosine

SMALLEST = 1e-5
"""A code of at most this size is not active, and a latent whose codes span no more than this does not vary."""

WEIGHT_DECAY = 1e-4

WARM_UP = 0.2
"""Share of the steps; non-negative heads collapse without one."""

log = logging.getLogger("monoeval")


def checked_views(rows: TrainingRows, method: str, n_views: int) -> list[TrainingRows]:
    """The first `n_views` views of `rows`, fit to contrast.

    Raises UsageError for a single row or missing views, MonoevalError where a feature is not finite.
    """
    if len(rows) < 2:
        raise UsageError(f"{method} tells images apart: give it two training rows or more, not {len(rows)}.")
    if len(rows.views) < n_views:
        raise UsageError(
            f"{method} learns from {n_views} augmented views of each training row and was given "
            f"{len(rows.views)}: give it as many, or set n_views lower."
        )
    for view in rows.views[:n_views]:
        view.mean  # noqa: B018 (reading it checks every feature)
    return rows.views[:n_views]


class Pairs:
    """Batches of the same images seen twice: in two of `views` drawn anew each time, or in `always` and one."""

    def __init__(self, views: Sequence[Batches], draws: torch.Generator, always: Batches | None = None) -> None:
        self._views, self._draws, self._always = views, draws, [] if always is None else [always]

    def __len__(self) -> int:
        return len(self._views[0])

    def batch(self, positions: Tensor) -> Tensor:
        """Features [2B, D] of `positions` [B]: all of them seen one way, then all seen another."""
        drawn = torch.randperm(len(self._views), generator=self._draws).tolist()
        seen = [*self._always, *(self._views[view] for view in drawn)][:2]
        return torch.cat([rows.batch(positions) for rows in seen])


class ContrastiveHead(Adapter):
    """A projector on frozen features, trained by InfoNCE between two views of each image.

    With x the features, centred and divided by one scalar in fitting and encoding alike, the codes are
    z = W_2 ReLU(BN(W_1 x)) + b_2 with their sign, and `training.contrastive.info_nce` compares the z of two
    different views (SimCLR's head: Chen et al. 2020, arXiv 2002.05709). After training the running moments of
    batch norm are folded into the first layer, so a code depends on its own row alone.
    """

    method: ClassVar[str] = "cl-head"
    mean: Tensor  # [D]
    scale: Tensor  # scalar
    hidden: Tensor  # [H, D]
    hidden_bias: Tensor  # [H]
    output: Tensor  # [M, H]
    output_bias: Tensor  # [M]

    def __init__(self, settings: HeadSettings) -> None:
        self.settings = settings
        self.n_views = settings.n_views

    def compared(self, projected_nm: Tensor) -> Tensor:
        """What the loss compares, of the projector's output [n, M]."""
        return projected_nm

    def shown(self, projected_nm: Tensor) -> Tensor:
        """The codes, of the projector's output [n, M]."""
        return projected_nm

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:
        """Train on `n_views` views of `rows`.

        Raises UsageError for a single row or missing views, MonoevalError where features cannot be fitted or the
        loss is not finite.
        """
        pairs = Pairs(checked_views(rows, self.method, self.n_views), _generator("views", seed))
        self.mean, self.scale = rows.mean.float(), rows.variance.mean().sqrt().float()
        factor = self.settings.width_factor
        self.width = self.settings.width if factor is None else max(1, round(factor * rows.width))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed("head", "weights", seed))
            network = projector(rows.width, self.settings.hidden or 2 * rows.width, self.width)
        network.to(rows.device).train()
        batch = min(len(rows), self.settings.batch_size)
        epoch = len(rows) // batch
        steps = min(20_000, max(300, 20 * epoch)) if self.settings.steps is None else self.settings.steps
        losses = self._train(network, pairs, shuffled(len(rows), batch, _generator("order", seed)), steps)
        self._fold(network)
        self.measures = {
            **self._measure(rows),
            "width": self.width,
            "steps": steps,
            "chance_loss": math.log(2 * batch - 1),
            **({"final_loss": math.fsum(losses[-epoch:]) / len(losses[-epoch:])} if losses else {}),
        }
        if self.measures["alive"] < FEW_ALIVE:
            log.warning(
                "Only %.0f %% of the codes of %s vary over the training rows: the training collapsed, and its "
                "scores say little.", 100 * self.measures["alive"], self.method,
            )  # fmt: skip
        return self

    def _train(self, network: nn.Sequential, pairs: Pairs, batches: Iterator[Tensor], steps: int) -> list[float]:
        """Train `network` in place and return the loss of each step."""
        rate, losses = self.settings.learning_rate, list[float]()
        optimiser = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=WEIGHT_DECAY, fused=True)
        with progress.bar(f"training {self.method} {self.width}", steps, "steps") as advance:
            for step, positions in enumerate(islice(batches, steps)):
                for group in optimiser.param_groups:
                    group["lr"] = rate * warm_cosine(step, steps, WARM_UP)
                first, second = self.compared(network(self.scaled(pairs.batch(positions)))).chunk(2)
                loss = info_nce(first, second, self.settings.temperature)
                losses.append(loss.item())
                if not math.isfinite(losses[-1]):
                    raise MonoevalError(
                        f"The loss of {self.method} became {losses[-1]} at step {step + 1} of {steps}: "
                        f"set learning_rate lower than {rate:g}."
                    )
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                advance(1)
        return losses

    def _fold(self, network: nn.Sequential) -> None:
        """Take over the weights, with batch norm's running moments in the first layer."""
        hidden, norm, _, output = network
        assert isinstance(hidden, nn.Linear)
        assert isinstance(norm, nn.BatchNorm1d)
        assert isinstance(output, nn.Linear)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        gain = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
        self.restore({
            **{"mean": self.mean, "scale": self.scale},
            "hidden": hidden.weight.detach() * gain[:, None],
            "hidden_bias": norm.bias.detach() - norm.running_mean * gain,
            "output": output.weight.detach(),
            "output_bias": output.bias.detach(),
        })  # fmt: skip

    def scaled(self, features_nd: Tensor) -> Tensor:
        return (features_nd - self.mean) / self.scale

    def encode(self, features_nd: Tensor) -> Tensor:
        hidden = F.linear(self.scaled(features_nd), self.hidden, self.hidden_bias).relu()
        return self.shown(F.linear(hidden, self.output, self.output_bias))

    def state(self) -> dict[str, Tensor]:
        return {
            "mean": self.mean,
            "scale": self.scale,
            "hidden": self.hidden,
            "hidden_bias": self.hidden_bias,
            "output": self.output,
            "output_bias": self.output_bias,
        }

    def restore(self, state: dict[str, Tensor]) -> Self:
        self.mean, self.scale = state["mean"], state["scale"]
        self.hidden, self.hidden_bias = state["hidden"], state["hidden_bias"]
        self.output, self.output_bias = state["output"], state["output_bias"]
        self.width = len(self.output)
        return self

    @torch.no_grad()
    def _measure(self, rows: TrainingRows) -> dict[str, float]:
        """Mean L0, the share of latents that are never active, and the share that vary over the training rows."""
        active, low, high = 0, self.mean.new_tensor(math.inf), self.mean.new_tensor(-math.inf)
        fired = torch.zeros(self.width, dtype=torch.bool, device=self.mean.device)
        for chunk_nd in rows.chunks():
            codes_nm = self.encode(chunk_nd)
            active_nm = codes_nm.abs() > SMALLEST
            active += int(active_nm.sum())
            fired |= active_nm.any(dim=0)
            low, high = torch.minimum(low, codes_nm.amin(0)), torch.maximum(high, codes_nm.amax(0))
        return {
            "l0": active / len(rows),
            "dead_share": 1 - float(fired.float().mean()),
            "alive": float((high - low > SMALLEST).float().mean()),
        }


class NonNegativeHead(ContrastiveHead):
    """The same projector with rectified output (NCL: Wang et al. 2024, arXiv 2403.12459).

    The codes are ReLU(z) and the loss compares them. With `rectifier` rep-relu the gradient is that of GELU and
    reaches negative rows too, as long as the latent fires in the batch: one that does not has no part in any
    product of codes, and no gradient under either. Measured on made features with a power-law spectrum (200 steps
    at learning rate 1e-3, width 512, one run each): rep-relu leaves 96 % of the latents alive with batch norm and
    62 % without, ReLU 70 % and 38 %; the losses are 3.3, 4.6, 3.2 and 3.3, chance being 6.2. On for many passes
    over few rows, rep-relu's loss rises again, as its gradient is not that of its value.
    """

    method: ClassVar[str] = "ncl-head"
    settings: NonNegativeHeadSettings

    def __init__(self, settings: NonNegativeHeadSettings) -> None:
        super().__init__(settings)
        self.settings = settings

    def compared(self, projected_nm: Tensor) -> Tensor:
        return RECTIFIERS[self.settings.rectifier](projected_nm)

    def shown(self, projected_nm: Tensor) -> Tensor:
        return projected_nm.relu()


def projector(features: int, hidden: int, width: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear; drawn from torch's global generator."""
    return nn.Sequential(
        nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, width)
    )


def _generator(purpose: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(draw_seed("head", purpose, seed))
