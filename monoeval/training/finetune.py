"""Finetuning of a backbone with a linear classifier on labels that may be noisy or few."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monoeval.backbones.sources import Network
from monoeval.data.splits import folds
from monoeval.errors import MonoevalError, UsageError
from monoeval.hardware import free_bytes
from monoeval.keys import draw_seed
from monoeval.probes.problem import Problem
from monoeval.training.augment import Augmentation
from monoeval.training.contrastive import rep_relu
from monoeval.training.lora import activity, insert
from monoeval.training.networks import Projected
from monoeval.training.pretrain import warm_cosine
from monoeval.training.settings import FinetuneSpec
from monoeval.training.squares import Squares

WARM_UP = 0.1
HELD_OUT_FOLDS = 5
"""One of so many stratified parts chooses the learning rate where no validation rows are given."""
SCORED_AT_ONCE = 256
FEW = 16
"""Images that tell whether a trained network gives numbers."""


@dataclass(frozen=True)
class Training:
    """How a training went."""

    learning_rate: float
    at_edge: bool
    """The chosen rate is the least or the largest of several."""
    loss: float
    """Mean training loss of the last epoch."""
    active: float | None
    """Share of low-rank latents that are not zero on training images; None where there are none."""


class Classifier(nn.Module):
    """Features, their positive parts where `non_negative`, one scale, and a linear layer from zero.

    Of a projector the output is read with its sign, also where pretraining rectified it (NCL): whether a ReLU
    stands before the classifier is what tells NCE from cross-entropy, in the paper (arXiv 2410.21331) too, and a
    ReLU of the network's own would leave the two no difference but their gradient.
    """

    def __init__(self, network: Network, width: int, n_classes: int, non_negative: bool) -> None:
        super().__init__()
        module, read = network.module, network.features
        if isinstance(module, Projected) and read is module:
            read = module.project
        self.backbone, self.read, self.non_negative = module, read, non_negative
        self.head = nn.Linear(width, n_classes)
        self.register_buffer("scale", torch.ones(()))
        self.scale: Tensor

    def features(self, images: Tensor) -> Tensor:
        """What the linear layer sees, before the scale."""
        found = self.read(images)
        return rep_relu(found) if self.non_negative else found

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, C] of normalised images [B, 3, S, S]."""
        logits: Tensor = self.head(self.features(images) / self.scale)
        return logits


class Finetuner:
    """Trains one network again and again, each time from the weights it was given with."""

    def __init__(
        self,
        network: Network,
        spec: FinetuneSpec,
        pixels: Tensor,
        n_classes: int,
        *,
        name: str,
        device: torch.device,
        bfloat16: bool = False,
    ) -> None:
        """`pixels` are the training images, uint8 [N, 3, S, S]; `name` is what errors call the network.

        Raises UsageError where `spec` asks for low-rank changes and the network has no linear layers.
        """
        self.spec, self.device = spec, device
        fits = device.type == "cpu" or 2 * pixels.nbytes <= free_bytes(device)
        colours = list(network.preprocess.mean), list(network.preprocess.std)
        self.squares = Squares(pixels.to(device) if fits else pixels.numpy(), *colours, device)
        module = network.module
        self.layers = [] if spec.adapt == "full" else insert(module, spec.rank, spec.adapt, name)
        module.requires_grad_(spec.adapt == "full")
        for layer in self.layers:
            layer.down.requires_grad_()
            layer.up.requires_grad_()
        self.frozen = [m for m in (getattr(module, "projector", None),) if isinstance(m, nn.Module)]
        for part in self.frozen:
            part.requires_grad_(False)
        self.mean, self.std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in colours)
        module.to(device).eval()
        with torch.no_grad():
            width = network.features(self._seen(torch.arange(min(2, len(pixels))))).shape[1]
        self.model = Classifier(network, width, n_classes, spec.objective == "nce").to(device)
        self.start = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self.autocast: Callable[[], AbstractContextManager[object]] = (
            (lambda: torch.autocast(device.type, torch.bfloat16)) if bfloat16 else nullcontext
        )

    def fit(self, problem: Problem, *, seed: int) -> Training:
        """Train on `problem`, at the rate that held-out rows choose; afterwards `logits` are of this training.

        The same problem and seed give the same weights on the same machine, whatever was trained before. Raises
        MonoevalError where the loss is not finite.
        """
        rates = self.spec.learning_rates
        chosen = rates[0]
        if len(rates) > 1:
            kept, held = self._held_out(problem)
            chosen = rates[int(np.argmin([self._held_out_loss(kept, held, rate, seed) for rate in rates]))]
        loss = self._train(problem, chosen, seed)
        seen = self._seen(torch.from_numpy(problem.rows[:SCORED_AT_ONCE]))
        return Training(
            learning_rate=chosen,
            at_edge=len(rates) > 1 and chosen in (min(rates), max(rates)),
            loss=loss,
            active=activity(self.layers, self.model, seen) if self.layers else None,
        )

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """float32 [n, C] on the CPU, of uint8 [n, 3, S, S] or of normalised float32 of that shape."""
        parts = []
        for batch in torch.split(pixels, SCORED_AT_ONCE):
            moved = batch.to(self.device)
            images = self._normal(moved.float() / 255) if moved.dtype == torch.uint8 else moved
            with self.autocast():
                parts.append(self.model(images).float().cpu())
        return torch.cat(parts) if parts else torch.empty(0, self.model.head.out_features)

    def _held_out_loss(self, kept: Problem, held: Problem, rate: float, seed: int) -> float:
        """Log-loss of the rows that are held out; infinite where a training at this rate diverges."""
        try:
            self._train(kept, rate, seed)
        except MonoevalError:
            return math.inf
        batches = torch.split(torch.from_numpy(held.rows), SCORED_AT_ONCE)
        logits = torch.cat([self.logits(self.squares.take(rows)) for rows in batches])
        loss = float(F.cross_entropy(logits.double(), torch.from_numpy(held.labels)))
        return loss if math.isfinite(loss) else math.inf

    def _train(self, problem: Problem, rate: float, seed: int) -> float:
        """Train from the start; the mean loss of the last epoch."""
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
        ):
            torch.manual_seed(draw_seed("finetune", "weights", seed))  # of low-rank factors, and of any dropout
            return self._trained(problem, rate, seed)

    def _trained(self, problem: Problem, rate: float, seed: int) -> float:
        spec, model = self.spec, self.model
        model.backbone.load_state_dict(self.start)
        for layer in self.layers:
            layer.draw()
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
        rows = torch.from_numpy(problem.rows)
        labels = torch.from_numpy(problem.labels).to(self.device)
        model.scale.copy_(self._feature_scale(rows))
        inner = [p for p in model.backbone.parameters() if p.requires_grad]
        parameters = [
            {"params": inner, "lr": rate},
            {"params": list(model.head.parameters()), "lr": rate * spec.head_factor},
        ]
        optimiser = torch.optim.AdamW(parameters, weight_decay=spec.weight_decay)
        batch = min(spec.batch_size, len(rows))
        steps = spec.epochs * -(-len(rows) // batch)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warm_cosine(step, steps, WARM_UP))
        augment = Augmentation(crop=spec.crop, rotation=0.0, jitter=0.0, flip=spec.flip)
        order = torch.Generator().manual_seed(draw_seed("finetune", "order", seed))
        views = torch.Generator().manual_seed(draw_seed("finetune", "views", seed))
        if spec.adapt == "full":  # else the statistics of its norms stay those of pretraining too
            model.train()
            for part in self.frozen:
                part.eval()
        losses: list[float] = []
        for epoch in range(spec.epochs):
            unseen: list[Tensor] = []  # of this epoch: reading a loss would wait for an accelerator
            for picked in torch.split(torch.randperm(len(rows), generator=order), batch):
                if len(picked) > 1 or len(rows) == 1:  # batch norm knows nothing of a single image
                    seen = self.squares.take(rows[picked])
                    images = augment(seen, views) if spec.crop < 1 else self._whole(seen, views)
                    with self.autocast():
                        loss = F.cross_entropy(model(self._normal(images)).float(), labels[picked.to(self.device)])
                    unseen.append(loss.detach())
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                schedule.step()
            losses = torch.stack(unseen).tolist()
            wrong = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
            if wrong is not None:
                step = epoch * -(-len(rows) // batch) + wrong + 1
                raise self._diverged(f"loss became {losses[wrong]} at step {step} of {steps}", rate)
        model.eval()
        if not bool(self.logits(self.squares.take(rows[:FEW])).isfinite().all()):  # of what the last step left
            raise self._diverged(f"weights give no finite loss after step {steps} of {steps}", rate)
        return float(np.mean(losses))

    def _diverged(self, what: str, rate: float) -> MonoevalError:
        return MonoevalError(
            f"Finetuning by {self.spec.objective} failed, as its {what}: give lower learning_rates than {rate:g}."
        )

    def _seen(self, rows: Tensor) -> Tensor:
        """Normalised training images [n, 3, S, S] of int64 rows [n], which are on the CPU."""
        return self._normal(self.squares.take(rows).float() / 255)

    def _whole(self, seen: Tensor, views: torch.Generator) -> Tensor:
        """Images uint8 [B, 3, S, S] as they are, in [0, 1]; half of them mirrored where that is asked for."""
        images = seen.float() / 255
        if not self.spec.flip:
            return images
        mirrored = (torch.rand(len(seen), generator=views) < 0.5).to(self.device)
        return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)

    @torch.no_grad()
    def _feature_scale(self, rows: Tensor) -> Tensor:
        """The root-mean-square norm of the centred features of some training rows, as codes are scaled by."""
        picked = rows[:: max(1, len(rows) // SCORED_AT_ONCE)]
        features = self.model.features(self._seen(picked)).float()
        scale = (features - features.mean(0)).square().sum(1).mean().sqrt()
        return torch.where(scale > 0, scale, torch.ones_like(scale))

    def _held_out(self, problem: Problem) -> tuple[Problem, Problem]:
        """What is trained on and what is scored while the rate is chosen."""
        if problem.validation_rows is not None:
            assert problem.validation_labels is not None
            return problem, Problem(problem.validation_rows, problem.validation_labels)
        if len(problem.rows) < HELD_OUT_FOLDS:
            raise UsageError(
                f"{len(problem.rows)} training rows are too few to choose a learning rate on: give learning_rates "
                "one value."
            )
        held = folds(problem.labels, HELD_OUT_FOLDS, problem.groups, 0) == 0
        judged = problem.labels if problem.selection_labels is None else problem.selection_labels
        return Problem(problem.rows[~held], problem.labels[~held]), Problem(problem.rows[held], judged[held])

    def _normal(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std
