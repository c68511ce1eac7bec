"""Contrastive pretraining of a network on the training images."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from monoeval import bundles, progress
from monoeval.backbones.spec import PretrainSpec
from monoeval.data.images import ImageSet
from monoeval.errors import MonoevalError, UsageError, enough_memory, smaller_batch
from monoeval.files import CannotWriteError, locked
from monoeval.hardware import has_bfloat16
from monoeval.keys import draw_seed
from monoeval.training import networks, resume
from monoeval.training.augment import Augmentation, SimCLRAugmentation
from monoeval.training.contrastive import RECTIFIERS, density, info_nce, sup_con
from monoeval.training.distributed import Processes
from monoeval.training.keys import FORMAT, STEM, is_short, pretrained_folder, steps
from monoeval.training.optimisers import optimiser
from monoeval.training.squares import CROP_PCT, Squares, fit_into_memory, squares_of
from monoeval.training.watch import Watch

FEW_ALIVE = 0.05
NO_GAIN = 0.01
"""Nats below the loss of features that are all alike."""
SECONDS_BETWEEN_CHECKPOINTS = 30.0
SETTLED_ON = 1024
"""Images, of two views each, that statistics of batch norm are taken anew from after a short training."""
STEPS_UNSEEN = 50
"""Steps of an accelerator whose losses are read at once: reading one waits for it."""
TIMES_WATCHED = 10

ALONE = Processes()

log = logging.getLogger("monoeval")


def pretrain(
    spec: PretrainSpec,
    images: ImageSet,
    *,
    seed: int,
    device: torch.device,
    processes: Processes = ALONE,
    watched: bool = False,
    unseen: ImageSet | None = None,
    checkpoint_seconds: float = SECONDS_BETWEEN_CHECKPOINTS,
    on_disk: bool | None = None,
    batch_option: str = "--batch-size {}",
) -> Path:
    """Train `spec.network` on `images`, and return the folder that holds it; simclr and ncl ignore labels.

    The folder is in the cache, named by everything that decides the weights; a whole one is returned at once.
    It holds `backbone.safetensors` (the network of `networks.build`) and `backbone.json`: network, width, hidden,
    stem, image_size, crop_pct, non_negative, mean and std (of RGB in [0, 1]), and how the training went. The same
    seed on the same machine gives the same bits, also where the training was interrupted: its state is kept
    beside the folder at the end of an epoch, `checkpoint_seconds` after the last time, and removed when all is
    done. The rate warms up and falls as a cosine; the last, smaller batch of an epoch is left out. After fewer
    than `keys.SETTLED_AFTER` steps the running statistics of batch norm are taken anew.

    Images are decoded once and held as uint8: in memory where they take at most half of what is free, else
    (or as `on_disk` says) in a file of the cache that later pretrainings find (`squares`). The weights are the
    same to the bit. With `watched`, how the training goes is logged ten times (`watch.watch`): classifiers fitted
    on some of the images are scored on `unseen` ones of the same classes, or without these on others of the
    images. That changes no bit of the weights either.

    All of several `processes` call this with the same arguments, but for the device. Each holds all images, or
    maps the one file, and trains on its share of every batch; the first alone reads and writes networks. The
    weights are those of one process up to rounding, and those of networks with dropout up to its masks.

    `batch_option` is how errors ask for a smaller batch: of a recipe by its setting, which is no option there.

    Raises MonoevalError where the loss or the weights are not finite (the last checkpoint stays; what is not
    finite is never written) or memory or disk run out, UsageError where there are fewer than two images, less
    than two classes for a supervised objective, and for several processes a batch of less than one image each, or
    batch norm on a CPU.

    What the quickstart's six networks gave (seeds 0-2, 1,157 digits, the defaults): the recipe's clean probe
    reaches 97.5-98.1 % (simclr) and 95.6-98.1 % (ncl, with 91-92 % of the features alive).
    """
    if len(images) < 2:
        raise UsageError(f"Pretraining needs at least two images, and {images.name} has {len(images)}.")
    if spec.supervised and len(np.unique(images.labels)) < 2:
        raise UsageError(
            f"{spec.objective} tells classes apart, and the training images of {images.name} have labels of only "
            "one: choose --objective simclr or ncl, which need none."
        )
    batch = min(spec.batch_size, len(images))
    if batch < processes.count:
        raise UsageError(
            f"A batch of {batch} images cannot be shared by {processes.count} processes: start fewer, or give "
            "more images and a larger --batch-size."
        )
    folder = pretrained_folder(spec, images.fingerprint, len(images), seed)
    if processes.from_first(lambda: _is_whole(folder)):  # a read-only cache has no lock to give
        return folder
    with locked(folder) if processes.rank == 0 else nullcontext():
        if processes.from_first(lambda: _is_whole(folder)):
            return folder
        if folder.exists():
            log.warning("The pretrained network in %s is damaged and is trained again.", folder)
        size, smaller = (
            spec.image_size,
            smaller_batch(batch, batch_option, "lower image_size or choose --device cpu"),
        )
        with enough_memory(f"batches of {batch} images of {size} pixels", smaller):
            if on_disk is None:
                on_disk = processes.from_first(
                    lambda: not fit_into_memory(images, spec.image_size, processes.here)
                )
            squares = squares_of(images, spec.image_size, device, on_disk=on_disk)
            training = _Training(spec, images, squares, seed, processes)
            watching = Watch(training, unseen) if watched and processes.rank == 0 else None
            about = training.run(resume.checkpoint_of(folder), checkpoint_seconds, watching)
        processes.from_first(lambda: _write(folder, training, about))
    return folder


def _is_whole(folder: Path) -> bool:
    try:
        bundles.describe(folder, STEM)
    except bundles.Damaged:  # or absent
        return False
    return True


def _write(folder: Path, training: "_Training", about: dict[str, Any]) -> None:
    spec, images = training.spec, training.images
    bundles.write(
        folder,
        STEM,
        training.network.state_dict(),
        {
            "format": FORMAT,
            "network": spec.network,
            "width": spec.width,
            "hidden": spec.hidden,
            "stem": spec.stem,
            "image_size": spec.image_size,
            "crop_pct": CROP_PCT,
            "non_negative": training.network.non_negative,
            "objective": spec.objective,
            "seed": training.seed,
            "spec": spec.model_dump(mode="json"),
            "data": {"name": images.name, "fingerprint": images.fingerprint, "rows": len(images)},
            **about,
        },
    )
    resume.checkpoint_of(folder).unlink(missing_ok=True)


class _Training:
    """One pretraining: what it reads, what it changes, and how far it has come."""

    def __init__(
        self, spec: PretrainSpec, images: ImageSet, squares: Squares, seed: int, processes: Processes
    ) -> None:
        self.spec, self.images, self.squares, self.seed, self.processes = spec, images, squares, seed, processes
        self.device = device = squares.device
        self.centre = torch.tensor(squares.mean, device=device).view(1, 3, 1, 1)
        self.spread = torch.tensor(squares.std, device=device).view(1, 3, 1, 1)
        self.classes = torch.from_numpy(images.labels).to(device)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed("pretrain", "weights", seed))
            network = networks.build(
                spec.network,
                spec.width,
                spec.image_size,
                non_negative=spec.non_negative,
                hidden=spec.hidden,
                stem=spec.stem,
            )
        network.load_state_dict(processes.from_first(network.state_dict))
        processes.synchronise(network, spec.network, device)
        self.network: networks.Projected = network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.order = torch.Generator().manual_seed(draw_seed("pretrain", "order", seed))
        self.views = torch.Generator().manual_seed(draw_seed("pretrain", "views", seed))
        self.parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimiser = optimiser(spec.optimiser, self.parameters, spec.weight_decay)
        self.augment = (
            Augmentation(crop=spec.crop, flip=spec.flip)
            if spec.augmentation == "gentle"
            else SimCLRAugmentation(crop=spec.crop, flip=spec.flip)
        )
        reduced = spec.precision == "bf16" or (spec.precision == "auto" and has_bfloat16(device.type))
        self.precision = "bf16" if reduced else "fp32"
        self.batch = min(spec.batch_size, len(images))
        self.steps_an_epoch = len(images) // self.batch
        self.steps = steps(spec, len(images))
        self.epoch = 0
        self.losses: list[float] = []  # the mean of each epoch
        self.seconds = 0.0

    def run(self, checkpoint: Path, checkpoint_seconds: float, watching: Watch | None) -> dict[str, Any]:
        """Train what is left of the epochs, and describe the network."""
        environment = {
            "torch": str(torch.__version__),
            "device": self.device.type,
            "precision": self.precision,
            "processes": str(self.processes.count),
        }
        kept = self.processes.from_first(lambda: resume.load(checkpoint, environment))
        if kept is not None:
            self._restore(kept)
            log.info("Pretraining goes on after epoch %d of %d.", self.epoch, self.spec.epochs)
        name = f"pretraining {self.spec.network} ({self.spec.objective}, seed {self.seed})"
        saved = time.monotonic()
        with (
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
            torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
            progress.bar(name, self.steps, "steps") as advance,
        ):
            advance(self.epoch * self.steps_an_epoch)
            while self.epoch < self.spec.epochs:
                own = [self.processes.rank] if self.processes.rank else []  # its images have masks of their own
                torch.manual_seed(draw_seed("pretrain", "dropout", self.seed, self.epoch, *own))
                started = time.monotonic()
                self.losses.append(self._one_epoch(advance, checkpoint))
                self.epoch += 1
                self.seconds += time.monotonic() - started
                if watching is not None and self.epoch % max(1, self.spec.epochs // TIMES_WATCHED) == 0:
                    self._say(watching)
                due = self.processes.rank == 0 and self.epoch < self.spec.epochs
                if due and time.monotonic() - saved >= checkpoint_seconds:
                    self._check_weights(checkpoint)
                    self._keep(checkpoint, environment)
                    saved = time.monotonic()
            if is_short(self.spec, len(self.images)):
                self._settle()
        self.network.eval()
        self._check_weights(checkpoint)
        alive = self._alive()
        if alive < FEW_ALIVE:
            log.warning(
                "Only %.0f %% of the pretrained features vary over the training images (%s, seed %d): "
                "the training collapsed, and its scores say little.",
                100 * alive, self.spec.objective, self.seed,
            )  # fmt: skip
        elif self.losses and self.losses[-1] > self._alike() - NO_GAIN:
            easy = {"optimiser": "adamw", "augmentation": "gentle"}
            easier = [
                f", choose {name}={value}" for name, value in easy.items() if getattr(self.spec, name) != value
            ]
            log.warning(
                "The loss ended at %.3f, and features that are alike for all images have %.3f (%s, seed %d): "
                "nothing was learned, so lower learning_rate%s, or train longer.",
                self.losses[-1], self._alike(), self.spec.objective, self.seed, "".join(easier),
            )  # fmt: skip
        return {
            "mean": self.squares.mean,
            "std": self.squares.std,
            "steps": self.steps,
            "final_loss": self.losses[-1] if self.losses else None,
            "alive": alive,
            "losses": self.losses,
            "precision": self.precision,
            "processes": self.processes.count,
            "images_per_second": self.steps * self.batch / self.seconds if self.seconds else None,
            "timm": version("timm"),
        }

    def _keep(self, checkpoint: Path, environment: dict[str, str]) -> None:
        """Write a checkpoint. A disk that refuses it does not end the training, which needs none."""
        try:
            resume.save(checkpoint, self._state(), environment)
        except CannotWriteError as error:
            log.warning("%s The training goes on without a checkpoint of now.", error)

    def _say(self, watching: Watch) -> None:
        """Log how it goes. Nothing that fails here ends the training, which needs none of it."""
        try:
            log.info("%s", watching.said())
        except Exception as error:
            reason = getattr(error, "strerror", None) or error or type(error).__name__
            log.warning("How the training goes could not be measured (%s); it goes on.", reason)
        finally:
            self.network.train()

    def _one_epoch(self, advance: progress.Advance, checkpoint: Path) -> float:
        """Its mean loss. Raises MonoevalError where a loss is not finite."""
        every = 1 if self.device.type == "cpu" else STEPS_UNSEEN
        losses: list[float] = []
        unseen: list[Tensor] = []
        order = torch.randperm(len(self.squares), generator=self.order)[: self.steps_an_epoch * self.batch]
        batches = self.squares.batches(order, self.batch)
        for step, batch in enumerate(batches, self.epoch * self.steps_an_epoch):
            loss = self._loss(batch)
            unseen.append(loss.detach())
            if len(unseen) == every or len(losses) + len(unseen) == self.steps_an_epoch:
                losses += torch.stack(unseen).tolist()
                unseen = []
                self._check(losses, checkpoint)
            self.network.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            rate = self.spec.learning_rate * warm_cosine(step, self.steps, self.spec.warm_up)
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
            self.processes.add_up(gradients)
            self.optimiser.step(gradients, rate)
            advance(1)
        return float(np.mean(losses))

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of two views each of a batch: its rows [B] and their squares uint8 [B, 3, S, S]."""
        (rows, seen), spec = batch, self.spec
        projected = self.processes.gathered(self._projected(seen).float(), len(rows))
        if spec.normalise_first:
            projected = F.normalize(projected, dim=1)
        if spec.non_negative:
            projected = RECTIFIERS[spec.rectifier](projected)
        first, second = projected.chunk(2)
        if spec.supervised:
            loss = sup_con(first, second, spec.temperature, self.classes[rows])
        else:
            loss = info_nce(first, second, spec.temperature)
        if spec.density:
            loss = loss - spec.density * density(projected)
        return loss

    def _projected(self, seen: Tensor) -> Tensor:
        """What the projector gives for two new views each [2b, width] of this process's share of `seen`."""
        mine = self.processes.share(len(seen))
        pair = self._normal(self.augment(seen, self.views, mine, views=2))
        with self._autocast():
            return self.network.project(pair.contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def _settle(self) -> None:
        """Take the running statistics of batch norm anew: their mean over batches that the last weights see.

        Running means of a few steps hold much of what they were drawn with, and of weights that are no more (Wu
        and Johnson 2021, arXiv 2105.07576). On digits, means of three seeds: SimCLR's features have under 1 % of
        the spread that training gave them after 4 steps, and 68 % after 40; a linear probe reads 83.4 and 96.1 %
        from them, 87.8 and 96.6 % with statistics taken anew. NCL gains nothing: 89.6 and 89.4 % after 8 steps,
        94.0 and 93.7 % after 20.
        """
        norms = [module for module in self.network.modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
        if norms:
            images = max(1, min(SETTLED_ON, len(self.squares)) // self.batch) * self.batch
            order = torch.randperm(len(self.squares), generator=self.order)[:images]
            for _, seen in self.squares.batches(order, self.batch):
                self._projected(seen)

    def _alike(self) -> float:
        """The loss where all rows of a batch are one direction, and the density as large as it can be."""
        return math.log(2 * self.batch - 1) - self.spec.density / math.sqrt(self.spec.width)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _check(self, losses: list[float], checkpoint: Path) -> None:
        wrong = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if wrong is not None:
            step = self.epoch * self.steps_an_epoch + wrong + 1
            raise self._diverged(f"loss became {losses[wrong]} at step {step}", checkpoint)

    @torch.no_grad()
    def _check_weights(self, checkpoint: Path) -> None:
        """Raise MonoevalError where the last step left weights, or a loss of them, that are not finite.

        A loss is checked before the step that it leads to, so nothing else has looked at these. Weights may also
        be finite and so large that what they give is not. Nothing is drawn for this, and no statistics are moved.
        """
        training = self.network.training
        self.network.eval()
        rows = torch.arange(self.batch)
        projected = self.network.project(self._normal(self.squares.take(rows).float() / 255)).float()
        self.network.train(training)
        # the loss divides by norms: of rows whose squares overflow it would be that of zeros
        norms = torch.linalg.vector_norm(projected, dim=1)
        tensors = [norms, *(t for t in self.network.state_dict().values() if t.is_floating_point())]
        if not bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all()):
            step = self.epoch * self.steps_an_epoch
            raise self._diverged(f"weights give no finite loss after step {step}", checkpoint)

    def _diverged(self, what: str, checkpoint: Path) -> MonoevalError:
        kept = ""
        if checkpoint.exists():
            kept = f" The last good weights are kept in {checkpoint}; with other settings it starts anew."
        return MonoevalError(
            f"The {self.spec.objective} {what} of {self.steps}: lower learning_rate (now "
            f"{self.spec.learning_rate:g}) or raise temperature.{kept}"
        )

    def _normal(self, images: Tensor) -> Tensor:
        return (images - self.centre) / self.spread

    @torch.no_grad()
    def features(self, squares: Squares, rows: Tensor) -> Iterator[Tensor]:
        """The features float32 [n, width] of a batch of `rows` at a time, unchanged; in evaluation mode."""
        for part in torch.split(rows, self.batch):
            yield self.network(self._normal(squares.take(part).float() / 255))

    def _alive(self) -> float:
        """The share of features that vary over the training images."""
        low = torch.full((1,), math.inf, device=self.device)
        high = -low
        for features in self.features(self.squares, torch.arange(len(self.squares))):
            low, high = torch.minimum(low, features.amin(0)), torch.maximum(high, features.amax(0))
        return float(((high - low) > 1e-5).float().mean())

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "order": self.order.get_state(),
            "views": self.views.get_state(),
            "epoch": self.epoch,
            "losses": self.losses,
            "seconds": self.seconds,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.order.set_state(state["order"])
        self.views.set_state(state["views"])
        self.epoch, self.losses, self.seconds = state["epoch"], state["losses"], state["seconds"]


def warm_cosine(step: int, steps: int, warm_up: float) -> float:
    """The share of the learning rate at `step`: linear over the first `warm_up` of `steps`, then a half cosine."""
    warm = max(1.0, warm_up * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1.0, steps - warm))))
