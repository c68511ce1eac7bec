"""What all sparse autoencoders share: one scaling, one start, one training loop, one way to measure a fit."""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monoeval import progress
from monoeval.adapters.base import Adapter, SparseRows
from monoeval.adapters.rows import Batches, TrainingRows, shuffled
from monoeval.adapters.settings import DictionarySettings, ScheduleSettings, SizeSettings
from monoeval.errors import MonoevalError, UsageError
from monoeval.keys import draw_seed

log = logging.getLogger("monoeval")

GAUGED = 4096
"""Rows that the encoder's length is set on."""

Encode = Callable[[Tensor], Tensor | SparseRows]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a dictionary is trained on a number of rows.

    By measurement on features of small SimCLR networks (CIFAR-100, 128 features, width 1,024, k = 32; means of
    two seeds, `tests/studies/RESULTS.md`): from 1,500 rows, 375, 750, 1,500 and 3,000 steps of 128 rows explain
    0.892, 0.881, 0.860 and 0.838 of the variance of 10,000 other images, from 5,000 rows 0.930, 0.934, 0.934 and
    0.932, and from 40,000 rows as many steps of 625 explain 0.949, 0.953, 0.955 and 0.957; a ridge probe reads
    as many of them, to half a point. Digits want more: from 926, 188, 375, 750 and 1,500 steps explain 0.965,
    0.973, 0.976 and 0.976 of 231 others. Half as many steps as rows lies between. From 5,000 and 40,000 rows
    half the rate explains 0.003 and 0.002 less, with 1 and 3 % of the latents dead in place of 27 and 22; twice
    the rate leaves nearly half dead.
    """

    steps: int
    batch_size: int
    learning_rate: float

    @classmethod
    def of(cls, settings: ScheduleSettings, rows: int, width: int) -> Self:
        batch = min(rows, settings.batch_size or max(128, min(4096, rows // 64)))
        least = min(1500, max(300, rows // 2))  # a handful of rows is learned by heart long before 1,500
        steps = max(least, math.ceil(10 * rows / batch)) if settings.steps is None else settings.steps
        rate = settings.learning_rate or 4e-3 * math.sqrt(1024 / max(width, 1024))
        return cls(steps, batch, rate)

    def rate(self, step: int) -> float:
        """The learning rate at `step`: a short linear warm-up, then level, then linear to 0 in the last third."""
        warm, decay = max(1, self.steps // 20), max(1, self.steps // 3)
        return self.learning_rate * min(1.0, (step + 1) / warm, (self.steps - step) / decay)


class Dictionary(Adapter):
    """A dictionary over features that are centred and divided by one scalar, in fitting and encoding alike.

    With x the scaled features: h = (x − b_d) W_eᵀ + b_e, z = ReLU(TopK_k(h)), x̂ = z W_d + b_d. The scalar makes
    the variance of x one per feature on average, so a mean squared error is a share of the variance. Subclasses
    with another activation say so in `activate`.
    """

    mean: Tensor  # [D]
    scale: Tensor  # scalar
    encoder: Tensor  # [M, D], W_e
    encoder_bias: Tensor  # [M], b_e
    decoder: Tensor  # [M, D], W_d
    decoder_bias: Tensor  # [D], b_d
    k: int

    def __init__(self, settings: SizeSettings) -> None:
        self.size = settings

    def check_width(self, features: int) -> None:
        self._active(self.size.latents(features))

    def _active(self, width: int) -> int:
        """How many of `width` latents a row may use, `k`; raises UsageError where that is more than there are."""
        assert isinstance(self.size, DictionarySettings)
        k = self.size.k or min(32, max(1, width // 4))
        if k > width:
            raise UsageError(f"k is {k} and the dictionary has {width} latents: choose a smaller k.")
        return k

    def _start(self, rows: TrainingRows, seed: int) -> None:
        """Set centre and scale from the training rows, then `_draw`.

        Raises UsageError where k is more than the width, MonoevalError where the features cannot be fitted.
        """
        self.width = self.size.latents(rows.width)
        self.k = self._active(self.width)
        self.mean = rows.mean.float()
        self.scale = rows.variance.mean().sqrt().float()
        self._draw(rows, seed)

    def _draw(self, rows: TrainingRows, seed: int) -> None:
        """Draw unit rows, the same for every dictionary, and fit the encoder's length to `rows`."""
        generator = torch.Generator().manual_seed(draw_seed("sae", "dictionary", seed))
        drawn = torch.randn(self.width, rows.width, generator=generator)
        self.decoder = F.normalize(drawn, dim=1).to(rows.device)
        self.encoder = self.decoder.clone()
        self.encoder_bias = torch.zeros(self.width, device=rows.device)
        self.decoder_bias = torch.zeros(rows.width, device=rows.device)
        self.encoder *= self._best_gain(rows, generator)

    @torch.no_grad()
    def _best_gain(self, rows: TrainingRows, generator: torch.Generator) -> float:
        """The factor on W_e that fits x̂ to x best, Σ⟨x, x̂⟩ / Σ‖x̂‖² over rows that are drawn.

        Latents overlap, so that without it k of them overshoot: training would first have to shrink them.
        """
        drawn = rows.batch(torch.randperm(len(rows), generator=generator)[:GAUGED])
        x, rebuilt = self.scaled(drawn), self.reconstruct(self._untrained(drawn))
        own = float(rebuilt.square().sum())
        return float((x * rebuilt).sum()) / own if own > 0 else 1.0

    def _untrained(self, features_nd: Tensor) -> Tensor | SparseRows:
        """Codes of the dictionary before training: TopK for every sparse method, so that L0 is equal."""
        return self.top_k(self.pre_activations(self.scaled(features_nd)))

    def scaled(self, features_nd: Tensor) -> Tensor:
        return (features_nd - self.mean) / self.scale

    def pre_activations(self, scaled_nd: Tensor) -> Tensor:
        """h [n, M]; the bias b_d is folded into b_e, which saves a pass over the rows."""
        return F.linear(scaled_nd, self.encoder, self.encoder_bias - self.encoder @ self.decoder_bias)

    def top_k(self, h_nm: Tensor) -> SparseRows:
        values, indices = h_nm.topk(self.k, dim=1, sorted=False)
        return SparseRows(values.relu(), indices, self.width)

    def activate(self, h_nm: Tensor) -> Tensor | SparseRows:
        """The codes of pre-activations."""
        return self.top_k(h_nm)

    def reconstruct(self, codes: Tensor | SparseRows) -> Tensor:
        """x̂ [n, D] in scaled units; of sparse codes only the k rows of W_d that are active are read."""
        return decoded(codes, self.decoder) + self.decoder_bias

    def encode(self, features_nd: Tensor) -> Tensor | SparseRows:
        return self.activate(self.pre_activations(self.scaled(features_nd)))

    def decode(self, codes: Tensor | SparseRows) -> Tensor:
        return self.reconstruct(codes) * self.scale + self.mean

    @property
    def directions(self) -> Tensor:
        return self.decoder * self.scale

    def state(self) -> dict[str, Tensor]:
        return {
            "mean": self.mean,
            "scale": self.scale,
            "encoder": self.encoder,
            "encoder_bias": self.encoder_bias,
            "decoder": self.decoder,
            "decoder_bias": self.decoder_bias,
            "k": torch.tensor(self.k),
        }

    def restore(self, state: dict[str, Tensor]) -> Self:
        self.mean, self.scale = state["mean"], state["scale"]
        self.encoder, self.encoder_bias = state["encoder"], state["encoder_bias"]
        self.decoder, self.decoder_bias = state["decoder"], state["decoder_bias"]
        self.k, self.width = int(state["k"]), len(self.encoder)
        return self

    @torch.no_grad()
    def _measure(self, rows: TrainingRows, encode: Encode) -> dict[str, float]:
        """Explained variance 1 − Σ‖x − x̂‖² / Σ‖x − x̄‖² in float64, mean and largest L0, share of dead latents."""
        missed, active, most = 0.0, 0, 0
        fired = torch.zeros(self.width, dtype=torch.bool, device=self.encoder.device)
        for chunk_nd in rows.chunks():
            codes = encode(chunk_nd)
            missed += float((chunk_nd.double() - self.decode(codes).double()).square().sum())
            firing = (codes if isinstance(codes, Tensor) else codes.values) > 0
            active += int(firing.sum())
            most = max(most, int(firing.sum(dim=1).max()))
            _mark(fired, codes)
        return {
            "explained_variance": 1 - missed / (float(rows.variance.sum()) * len(rows)),
            "l0": active / len(rows),
            "l0_max": most,
            "dead_share": 1 - float(fired.float().mean()),
        }


@dataclass
class Training:
    """Where the training of one dictionary stands."""

    schedule: Schedule
    rows: int
    idle_m: Tensor
    """Training rows seen since each latent fired, each counted once however many views of it a batch holds."""
    step: int = 0

    def fired(self, codes: Tensor | SparseRows) -> None:
        """Take note of which latents fired on a batch."""
        _mark(self.idle_m, codes, 0)


class TrainedDictionary(Dictionary):
    """A dictionary and the loop that trains it with Adam on a loss that each method states."""

    trained: ClassVar[tuple[str, ...]] = ("encoder", "encoder_bias", "decoder", "decoder_bias")
    """The tensors that are trained; the others stay where `_start` put them."""
    unit_rows: ClassVar[bool] = True
    """Decoder rows are kept at length one, and their gradient has no part along them."""
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)
    """Of Adam."""

    def __init__(self, settings: ScheduleSettings) -> None:
        super().__init__(settings)
        self.settings = settings

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:
        schedule = self._begin(rows, seed)
        self._train(rows, schedule, order_of(seed))
        self._end(rows, schedule)
        return self

    def _begin(self, rows: TrainingRows, seed: int) -> Schedule:
        """All that comes before the first step."""
        self._start(rows, seed)
        untrained = self._measure(rows, self._untrained)["explained_variance"]
        self.measures = {"explained_variance_untrained": untrained}
        self._prepare(rows)
        return Schedule.of(self.settings, len(rows), self.width)

    def _end(self, rows: TrainingRows, schedule: Schedule) -> None:
        """All that comes after the last step.

        Raises MonoevalError where training diverged: a loss that was not finite once leaves such parameters.
        """
        diverged = MonoevalError(
            f"The training of {self.method} diverged within {schedule.steps} steps: set learning_rate lower than "
            f"{schedule.learning_rate:g}."
        )
        if not all(bool(torch.isfinite(getattr(self, name)).all()) for name in self.trained):
            raise diverged
        self._finish(rows)
        sizes = {"width": self.width, "k": self.k, "steps": schedule.steps}
        self.measures = {**self._measure(rows, self.encode), **self.measures, **sizes}
        if not math.isfinite(self.measures["explained_variance"]):
            raise diverged

    def untrained(self, rows: TrainingRows, *, seed: int) -> Adapter:
        """The same start with TopK codes, as many active as this one has on average, so that L0 is equal."""
        start = type(self)(self.settings)
        start.mean, start.scale, start.width = self.mean, self.scale, self.width
        start.k = max(1, min(self.width, round(self._active_untrained())))
        start._draw(rows, seed)
        return _Start(start)

    def _active_untrained(self) -> float:
        return self.k

    def _prepare(self, rows: TrainingRows) -> None:
        """What a method adds to the start that all share."""

    def _train(self, rows: Batches, schedule: Schedule, order: torch.Generator) -> None:
        for name in self.trained:
            setattr(self, name, nn.Parameter(getattr(self, name)))
        step = self._stepper()
        training = Training(schedule, len(rows), torch.zeros(self.width, device=self.mean.device))
        batches = shuffled(len(rows), schedule.batch_size, order)
        with progress.bar(f"training {self.method} {self.width}", schedule.steps, "steps") as advance:
            for training.step in range(schedule.steps):
                positions = next(batches)
                training.idle_m += len(positions)
                step(self.scaled(rows.batch(positions)), training)
                advance(1)
        for name in self.trained:
            setattr(self, name, getattr(self, name).detach())

    def _stepper(self) -> Callable[[Tensor, Training], None]:
        """What takes a step on a batch of scaled rows [B, D]: Adam on the gradient of `_loss`."""
        parameters = [getattr(self, name) for name in self.trained]
        optimiser = torch.optim.Adam(parameters, betas=self.betas, fused=True)

        def step(x: Tensor, training: Training) -> None:
            loss = self._loss(x, training)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                if self.unit_rows:
                    remove_parallel(self.decoder)
                optimiser.param_groups[0]["lr"] = training.schedule.rate(training.step)
                optimiser.step()
                self._constrain()

        return step

    @abstractmethod
    def _loss(self, x: Tensor, training: Training) -> Tensor:
        """The loss of a batch of scaled rows [B, D], a scalar."""

    def _constrain(self) -> None:
        """Bring parameters back to where the method keeps them, after each step."""
        if self.unit_rows:
            self.decoder.copy_(F.normalize(self.decoder, dim=1))

    def _finish(self, rows: TrainingRows) -> None:
        """What is set once the parameters are trained."""


class _Start(Adapter):
    """A dictionary as `_draw` leaves it, to be measured and not kept."""

    method: ClassVar[str] = "untrained"

    def __init__(self, start: TrainedDictionary) -> None:
        self._drawn, self.width = start, start.width

    def fit(self, rows: TrainingRows, *, seed: int) -> Self:
        raise NotImplementedError("it is what comes before a fit")

    def encode(self, features_nd: Tensor) -> Tensor | SparseRows:
        return self._drawn._untrained(features_nd)

    def decode(self, codes: Tensor | SparseRows) -> Tensor:
        return self._drawn.decode(codes)

    def state(self) -> dict[str, Tensor]:
        return self._drawn.state()

    def restore(self, state: dict[str, Tensor]) -> Self:
        self._drawn.restore(state)
        return self


def order_of(seed: int) -> torch.Generator:
    """What shuffles the training rows."""
    return torch.Generator().manual_seed(draw_seed("sae", "order", seed))


def decoded(codes: Tensor | SparseRows, decoder: Tensor) -> Tensor:
    """Σ_j z_j d_j for each row [n, D]."""
    if isinstance(codes, Tensor):
        return codes @ decoder
    return F.embedding_bag(codes.indices, decoder, per_sample_weights=codes.values, mode="sum")


def remove_parallel(decoder: Tensor) -> None:
    """Take from the gradient of each unit row its part along the row, which only the norm would feel."""
    assert decoder.grad is not None
    along = (decoder.grad * decoder).sum(dim=1, keepdim=True)
    decoder.grad.sub_(along * decoder)


def _mark(each_m: Tensor, codes: Tensor | SparseRows, value: float = 1) -> None:
    """Set `value` for each latent that fires in `codes`."""
    if isinstance(codes, Tensor):
        each_m[(codes > 0).any(dim=0)] = value
    else:
        each_m[codes.indices[codes.values > 0]] = value
