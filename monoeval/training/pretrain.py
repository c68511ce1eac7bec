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
import psutil
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from monoeval import bundles, progress
from monoeval.backbones.preprocess import Preprocess
from monoeval.backbones.spec import PretrainSpec
from monoeval.data.images import ImageSet, Ints
from monoeval.errors import MonoevalError, UsageError, enough_memory
from monoeval.files import locked
from monoeval.keys import draw_seed
from monoeval.products import has_bfloat16
from monoeval.training import networks, resume
from monoeval.training.augment import Augmentation, SimCLRAugmentation
from monoeval.training.contrastive import NON_NEGATIVE, OBJECTIVES, SUPERVISED, density, rep_relu
from monoeval.training.distributed import Processes
from monoeval.training.keys import FORMAT, STEM, pretrained_folder
from monoeval.training.optimisers import optimiser

CROP_PCT = 1.0  # the whole central square: these images are small already
FEW_ALIVE = 0.05
NO_GAIN = 0.01
"""Nats below the loss of features that are all alike."""
SECONDS_BETWEEN_CHECKPOINTS = 120.0
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
    checkpoint_seconds: float = SECONDS_BETWEEN_CHECKPOINTS,
) -> Path:
    """Train `spec.network` on `images`, and return the folder that holds it; simclr and ncl ignore labels.

    The folder is in the cache, named by everything that decides the weights; a whole one is returned at once.
    It holds `backbone.safetensors` (the network of `networks.build`) and `backbone.json`: network, width, hidden,
    stem, image_size, crop_pct, non_negative, mean and std (of RGB in [0, 1]), and how the training went. The same
    seed on the same machine gives the same bits, also where the training was interrupted: its state is kept
    beside the folder at the end of an epoch, `checkpoint_seconds` after the last time, and removed when all is
    done. The rate warms up and falls as a cosine; the last, smaller batch of an epoch is left out. All images are
    held in memory, as uint8. With `watched`, how the training goes is logged ten times (`watch.watch`).

    All of several `processes` call this with the same arguments, but for the device. Each holds all images and
    trains on its share of every batch; the first alone reads and writes the cache. The weights are those of one
    process up to rounding, and those of networks with dropout up to its masks.

    Raises MonoevalError where the loss is not finite (the last checkpoint stays) or memory runs out, UsageError
    where there are fewer than two images, less than two classes for a supervised objective,
    and for several processes a batch of less than one image each, or batch norm on a CPU.

    What the quickstart's six networks gave (seeds 0-2, 1,157 digits, the defaults): the recipe's clean probe
    reaches 97.5-98.1 % (simclr) and 95.6-98.1 % (ncl, with 91-92 % of the features alive).
    """
    if len(images) < 2:
        raise UsageError(f"Pretraining needs at least two images, and {images.name} has {len(images)}.")
    if spec.objective in SUPERVISED and len(np.unique(images.labels)) < 2:
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
    folder = pretrained_folder(spec, images.fingerprint, seed)
    if processes.from_first(lambda: _is_whole(folder)):  # a read-only cache has no lock to give
        return folder
    with locked(folder) if processes.rank == 0 else nullcontext():
        if processes.from_first(lambda: _is_whole(folder)):
            return folder
        if folder.exists():
            log.warning("The pretrained network in %s is damaged and is trained again.", folder)
        with enough_memory(f"batches of {batch} images", f"try --batch-size {max(2, batch // 2)}"):
            training = _Training(spec, images, seed, device, processes)
            about = training.run(resume.checkpoint_of(folder), checkpoint_seconds, watched)
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
        self, spec: PretrainSpec, images: ImageSet, seed: int, device: torch.device, processes: Processes
    ) -> None:
        self.spec, self.images, self.seed, self.device, self.processes = spec, images, seed, device, processes
        pixels = _pixels(spec.image_size, images, processes.here)
        self.mean, self.std = _moments(pixels)
        self.data = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
        self.centre = torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        self.spread = torch.tensor(self.std, device=device).view(1, 3, 1, 1)
        self.classes = torch.from_numpy(images.labels).to(device)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed("pretrain", "weights", seed))
            network = networks.build(
                spec.network,
                spec.width,
                spec.image_size,
                non_negative=spec.objective in NON_NEGATIVE,
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
        self.steps = spec.epochs * self.steps_an_epoch
        self.epoch = 0
        self.losses: list[float] = []  # the mean of each epoch
        self.seconds = 0.0

    def run(self, checkpoint: Path, checkpoint_seconds: float, watched: bool) -> dict[str, Any]:
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
                if watched and self.epoch % max(1, self.spec.epochs // TIMES_WATCHED) == 0:
                    self._say()
                due = self.processes.rank == 0 and self.epoch < self.spec.epochs
                if due and time.monotonic() - saved >= checkpoint_seconds:
                    resume.save(checkpoint, self._state(), environment)
                    saved = time.monotonic()
        self.network.eval()
        alive = self._alive()
        if alive < FEW_ALIVE:
            log.warning(
                "Only %.0f %% of the pretrained features vary over the training images (%s, seed %d): "
                "the training collapsed, and its scores say little.",
                100 * alive, self.spec.objective, self.seed,
            )  # fmt: skip
        elif self.losses and self.losses[-1] > self._alike() - NO_GAIN:
            log.warning(
                "The loss ended at %.3f, and features that are alike for all images have %.3f (%s, seed %d): "
                "nothing was learned, so lower learning_rate, choose optimiser=adamw or augmentation=gentle, or "
                "train longer.",
                self.losses[-1], self._alike(), self.spec.objective, self.seed,
            )  # fmt: skip
        return {
            "mean": self.mean,
            "std": self.std,
            "steps": self.steps,
            "final_loss": self.losses[-1] if self.losses else None,
            "alive": alive,
            "losses": self.losses,
            "precision": self.precision,
            "processes": self.processes.count,
            "images_per_second": self.steps * self.batch / self.seconds if self.seconds else None,
            "timm": version("timm"),
        }

    def _one_epoch(self, advance: progress.Advance, checkpoint: Path) -> float:
        """Its mean loss. Raises MonoevalError where a loss is not finite."""
        every = 1 if self.device.type == "cpu" else STEPS_UNSEEN
        losses: list[float] = []
        unseen: list[Tensor] = []
        for step, rows in enumerate(self._batches(), self.epoch * self.steps_an_epoch):
            loss = self._loss(rows)
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

    def _batches(self) -> Iterator[Tensor]:
        """Rows of the images, each at most once."""
        shuffled = torch.randperm(len(self.data), generator=self.order).to(self.device)
        for rows in torch.split(shuffled, self.batch):
            if len(rows) == self.batch:
                yield rows

    def _loss(self, rows: Tensor) -> Tensor:
        seen, spec, mine = self.data[rows], self.spec, self.processes.share(len(rows))
        views = [self.augment(seen, self.views, mine) for _ in range(2)]
        pair = (torch.cat(views) - self.centre) / self.spread
        with self._autocast():
            projected = self.network.project(pair.contiguous(memory_format=torch.channels_last))
        projected = self.processes.gathered(projected.float(), len(rows))
        if spec.normalise_first:
            projected = F.normalize(projected, dim=1)
        first, second = projected.chunk(2)
        if spec.objective in SUPERVISED:
            loss = SUPERVISED[spec.objective](first, second, spec.temperature, self.classes[rows])
        else:
            loss = OBJECTIVES[spec.objective](first, second, spec.temperature)
        if spec.density:
            loss = loss - spec.density * density(rep_relu(projected) if self.network.non_negative else projected)
        return loss

    def _alike(self) -> float:
        """The loss where all rows of a batch are one direction, and the density as large as it can be."""
        return math.log(2 * self.batch - 1) - self.spec.density / math.sqrt(self.spec.width)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _check(self, losses: list[float], checkpoint: Path) -> None:
        wrong = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if wrong is not None:
            kept = f" What was good is kept in {checkpoint}." if checkpoint.exists() else ""
            raise MonoevalError(
                f"The {self.spec.objective} loss became {losses[wrong]} at step "
                f"{self.epoch * self.steps_an_epoch + wrong + 1} of {self.steps}: "
                f"lower learning_rate (now {self.spec.learning_rate:g}) or raise temperature.{kept}"
            )

    def _say(self) -> None:
        from monoeval.training.watch import watch, watched_rows

        said = f"epoch {self.epoch} of {self.spec.epochs}: loss {self.losses[-1]:.3f}"
        fitted, scored = watched_rows(len(self.images), self.seed)
        labels, n_classes = self.images.labels, len(self.images.class_names)
        if len(np.unique(labels[fitted])) > 1:
            self.network.eval()
            found = watch(self._features, fitted, scored, labels, n_classes)
            self.network.train()
            said += f", nearest class mean {100 * found['probe']:.1f} % (on training images), "
            if math.isfinite(found["consistency"]):  # no latent may fire on 20 of few rows
                said += (
                    f"top-20 consistency {found['consistency']:.2f} (chance {found['consistency_chance']:.2f}), "
                )
            said += f"{found['l0']:.0f} of {self.spec.width} latents active"
        log.info("%s", said)

    @torch.no_grad()
    def _features(self, rows: Ints) -> Tensor:
        """The features float32 [n, width] of training images, unchanged, on the CPU; in evaluation mode."""
        parts = [
            self.network((self.data[part].float() / 255 - self.centre) / self.spread).cpu()
            for part in torch.split(torch.from_numpy(rows).to(self.device), self.batch)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def _alive(self) -> float:
        """The share of features that vary over the training images."""
        low = torch.full((1,), math.inf, device=self.device)
        high = -low
        for rows in torch.split(self.data, self.batch):
            features = self.network((rows.float() / 255 - self.centre) / self.spread)
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


def _pixels(size: int, images: ImageSet, copies: int) -> NDArray[np.uint8]:
    """The squares uint8 [N, S, S, 3] that the network will see, whole in memory; `copies` processes hold them."""
    squares = Preprocess(image_size=size, crop_pct=CROP_PCT)
    needed, free = 2 * copies * len(images) * size * size * 3, psutil.virtual_memory().available
    if needed > free:  # two copies are held while they are put in order
        raise MonoevalError(
            f"Pretraining holds all images in memory: {len(images):,} of {size} pixels need {needed / 1e9:.1f} GB "
            f"and {free / 1e9:.1f} GB are free, so give a smaller --limit or --image-size."
        )
    pixels = np.empty((len(images), size, size, 3), np.uint8)
    for row in range(len(images)):
        pixels[row] = squares.image(images.read(row))
    return pixels


def _moments(pixels: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of uint8 [N, S, S, 3], as floats in [0, 1]; a flat channel has 1."""
    counts = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(3)])
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    std = np.sqrt(np.maximum(counts @ levels**2 / counts.sum(axis=1) - mean**2, 0))
    return mean.tolist(), np.where(std > 1e-6, std, 1.0).tolist()
