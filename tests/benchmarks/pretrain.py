"""Images a second of pretraining, beside the loop that people write (as solo-learn's).

resnet18 with the CIFAR stem, random squares of 32 pixels, SimCLR with SGD. The other loop draws its views with
torchvision's transforms on Pillow images in a DataLoader of two workers, and trains in fp32. Ours is `pretrain`
itself, in fp32 and, where the hardware has it, bf16. All begin from weights of the same seed and take the same
number of steps. Compared is what the epochs take; beside it stand what the whole call takes, with all that is
done once however many epochs there are, and what the network alone takes, which no loop can beat. That they train
alike is told by a small network that learns to tell 32 gratings apart: all losses must fall, and ours may be no
further from the usual loop's, epoch by epoch, than 1.5 times what two seeds of that are from each other. Exits
with 1 where a goal is missed. A busy machine makes the times useless, so its load is printed.

    python tests/benchmarks/pretrain.py [--quick] [--json FILE]
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as T
from measure import Goal, busy, show_goals, timed
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

from monoeval import bundles
from monoeval.backbones.spec import PretrainSpec
from monoeval.data.images import ImageSet
from monoeval.hardware import has_bfloat16
from monoeval.keys import draw_seed
from monoeval.training import networks
from monoeval.training.contrastive import info_nce
from monoeval.training.pretrain import pretrain, warm_cosine

GOALS = {"fp32": 1.5, "bf16": 2.5}
WORKERS = 2
SIDE = 32
LEARNING = PretrainSpec(
    objective="simclr",
    network="test_resnet",
    epochs=60,
    batch_size=32,
    optimiser="sgd",
    learning_rate=0.03,
    precision="fp32",
    crop=0.4,
    width=64,
    hidden=128,
)
"""Of one step an epoch, and what few steps can learn."""
LEAST_FALL = 0.4
"""Nats, from the first tenth of the epochs to the last."""
SEEDS_APART = 1.5
"""How far ours may be from the usual loop, where two seeds of that are 1 apart in the mean over epochs."""


def squares(n: int) -> ImageSet:
    """Smooth images of random colours."""
    coarse = np.random.default_rng(0).integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    return image_set("squares", np.stack([np.asarray(Image.fromarray(c).resize((SIDE, SIDE))) for c in coarse]))


def gratings() -> ImageSet:
    """Grey waves of eight directions and four lengths: a crop in other colours has both of them still."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [
        np.sin(2 * np.pi * often * (x * np.cos(turn) + y * np.sin(turn)) + rng.uniform(0, 2 * np.pi))
        for often in 2.5 * 1.7 ** np.arange(4)
        for turn in np.pi * np.arange(8) / 8
    ]
    return image_set("gratings", np.repeat((127 + 100 * np.stack(waves))[..., None], 3, axis=3).astype(np.uint8))


def image_set(name: str, pixels: NDArray[np.uint8]) -> ImageSet:
    n = len(pixels)
    ids = np.arange(n).astype(str)
    return ImageSet(name, np.zeros(n, np.int64), ("any",), ids, None, f"{name} {n}", pixels.__getitem__)


class Views(Dataset):
    """Two views an image, as torchvision's transforms draw them on Pillow images."""

    def __init__(self, images: ImageSet, mean: list[float], std: list[float], crop: float) -> None:
        self.pictures = [Image.fromarray(images.read(row)) for row in range(len(images))]
        self.transform = T.Compose(
            [
                T.RandomResizedCrop(SIDE, (crop, 1.0), interpolation=T.InterpolationMode.BICUBIC),
                T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
                T.RandomGrayscale(0.2),
                T.RandomApply([T.GaussianBlur(13, (0.1, 2.0))], p=0.5),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.pictures[row]), self.transform(self.pictures[row])


def usual_loop(
    spec: PretrainSpec, images: ImageSet, mean: list[float], std: list[float], seed: int = 0
) -> tuple[list[float], float]:
    """Train as `spec` says, and return each epoch's mean loss and the images a second of the epochs."""
    torch.manual_seed(draw_seed("pretrain", "weights", seed))
    network = networks.build(spec.network, spec.width, spec.image_size, hidden=spec.hidden).train()
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    sgd = torch.optim.SGD(groups, lr=spec.learning_rate, momentum=0.9)
    steps = spec.epochs * (len(images) // spec.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: warm_cosine(step, steps, spec.warm_up))
    loader = DataLoader(
        Views(images, mean, std, spec.crop),
        spec.batch_size,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
        persistent_workers=True,
    )
    means: list[float] = []
    started = time.perf_counter()
    for _ in range(spec.epochs):
        losses = []
        for first, second in loader:
            loss = info_nce(*network.project(torch.cat([first, second])).chunk(2), spec.temperature)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            schedule.step()
            losses.append(loss.item())
        means.append(float(np.mean(losses)))
    return means, steps * spec.batch_size / (time.perf_counter() - started)


def network_alone(spec: PretrainSpec, steps: int, precision: str) -> float:
    """Images a second of forward and backward passes of the network, on views that are there already."""
    network = networks.build(spec.network, spec.width, spec.image_size, hidden=spec.hidden).train()
    network.to(memory_format=torch.channels_last)
    views = torch.randn(2 * spec.batch_size, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            projected = network.project(views)
        info_nce(*projected.float().chunk(2), spec.temperature).backward()

    step()
    seconds, _ = timed(lambda: [step() for _ in range(steps)])
    return steps * spec.batch_size / seconds


def ours(spec: PretrainSpec, images: ImageSet) -> dict[str, object]:
    """What `pretrain` writes of a training that no cache holds."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["MONOEVAL_CACHE"] = place
        return bundles.describe(pretrain(spec, images, seed=0, device=torch.device("cpu")), "backbone")


def fall(losses: list[float]) -> float:
    """From the mean of the first tenth of the epochs to that of the last."""
    some = max(1, len(losses) // 10)
    return float(np.mean(losses[:some]) - np.mean(losses[-some:]))


def apart(losses: list[float], others: list[float]) -> float:
    """The mean distance of two curves, epoch by epoch."""
    return float(np.abs(np.subtract(losses, others)).mean())


def agreement(precisions: list[str]) -> tuple[list[Goal], dict[str, list[float]]]:
    """Whether ours learns as the usual loop does, and the curves."""
    images, made = gratings(), {}
    for precision in precisions:
        made[precision] = ours(LEARNING.model_copy(update={"precision": precision}), images)
    mean, std = made["fp32"]["mean"], made["fp32"]["std"]
    usual, other = (usual_loop(LEARNING, images, mean, std, seed)[0] for seed in (0, 1))
    curves = {name: list(about["losses"]) for name, about in made.items()}
    most = SEEDS_APART * apart(usual, other)
    goals = [
        Goal(name, "fall of the loss", fall(losses), LEAST_FALL, True, answer=True)
        for name, losses in {**curves, "usual loop": usual}.items()
    ]
    goals += [
        Goal(name, "loss, apart from the usual loop's by", apart(losses, usual), most, answer=True)
        for name, losses in curves.items()
    ]
    return goals, {**curves, "usual loop": usual, "usual loop, seed 1": other}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a few small steps of a small network, which judge no speed"
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    options = parser.parse_args()
    n, batch, epochs = (64, 32, 2) if options.quick else (1024, 128, 4)
    images, load = squares(n), busy()
    spec = PretrainSpec(
        objective="simclr",
        network="test_resnet" if options.quick else "resnet18",
        epochs=epochs,
        batch_size=batch,
        optimiser="sgd",
        learning_rate=0.03,
        precision="fp32",
    )
    ours(spec.model_copy(update={"epochs": 1}), images.take(np.arange(batch)))  # warms up
    seconds, made = {}, {}
    precisions = ["fp32", *(["bf16"] if has_bfloat16("cpu") else [])]
    for precision in precisions:
        seconds[precision], made[precision] = timed(ours, spec.model_copy(update={"precision": precision}), images)
    mean, std = made["fp32"]["mean"], made["fp32"]["std"]
    seconds["usual loop"], (losses, rate) = timed(usual_loop, spec, images, mean, std)
    last = {name: float(about["final_loss"]) for name, about in made.items()} | {"usual loop": losses[-1]}
    rates = {name: float(about["images_per_second"]) for name, about in made.items()} | {"usual loop": rate}
    bounds = {name: network_alone(spec, epochs * (n // batch) // 4, name) for name in precisions}
    goals = [
        Goal(name, "times the usual loop", rates[name] / rates["usual loop"], GOALS[name], True) for name in made
    ]
    agree, curves = agreement(precisions)
    console = Console()
    for name in seconds:
        whole = n * epochs / seconds[name]
        console.print(
            f"{name:12} {rates[name]:.1f} images/s, whole call {whole:.1f}; last mean loss {last[name]:.3f}"
        )
    for name, bound in bounds.items():
        times = bound / rates["usual loop"]
        console.print(f"network alone, {name}: {bound:.1f} images/s, {times:.2f} times the usual loop")
    if load > 0.5:
        console.print(f"load {load:.1f} before the start: other work makes the times unreliable")
    show_goals(console, [*goals, *agree])
    if options.json:
        facts = {"benchmark": "pretrain", "images": n, "batch": batch, "epochs": epochs, "seconds": seconds,
                 "images_per_second": rates,
                 "losses": last, "network_alone": bounds, "curves": curves, "load_before": load,
                 "threads": torch.get_num_threads(), "torch": torch.__version__}  # fmt: skip
        options.json.write_text(json.dumps(facts, indent=1))
    return int(not all(goal.met for goal in ([] if options.quick else goals) + agree))


if __name__ == "__main__":
    sys.exit(main())
