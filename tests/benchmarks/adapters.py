"""What training a TopK sparse autoencoder costs here and elsewhere, up to the same explained variance.

Each training case gives the same rows, batch size, k, AuxK and learning rate to sparsify, dictionary_learning and
overcomplete, finds the fastest of them, and lets it train in turns with this package, which is trained from the
start for more and more steps. Compared is the time that either takes to the explained variance, on rows that
nobody has seen, at which the fastest peer ends. The case `stacked` trains eight seeds at once and one after the
other, in turns, and compares what comes out. The case `throughput` counts rows a second, eager and compiled. Both
are trained on a GPU where there is one. The case `codes` encodes and probes without the dense matrix, and `rows`
fits and measures more and more rows. `--rows N` does that for N rows alone, without a goal.
Exits with 1 where a goal is missed; with --quick, whose sizes are too small to judge speed and memory, only where
an answer is wrong. --fp32 hides bf16 from the products, and the goal is then that of hardware without it.

    uv run --with-requirements tests/benchmarks/peers.txt python tests/benchmarks/adapters.py
        [--quick] [--fp32] [--only NAME,...] [--rows N] [--json FILE]
"""

import argparse
import contextlib
import importlib
import io
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from made import Floats, Source, shards
from measure import Goal, Memory, busy, in_fresh_process, peak_gb, product_rates, show_goals, timed
from rich.console import Console
from rich.table import Table
from torch import Tensor

from monoeval import progress
from monoeval.adapters import topk
from monoeval.adapters.base import Codes
from monoeval.adapters.dictionary import Dictionary
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.sae import RandomTopK, TopKSAE
from monoeval.adapters.settings import DictionarySettings, TrainedDictionarySettings
from monoeval.backbones.extract import SHARD_ROWS
from monoeval.backbones.features import FeatureSet
from monoeval.data.images import Ints
from monoeval.metrics.latents import measure
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.problem import Problem
from monoeval.probes.spec import Logistic

CPU = torch.device("cpu")
AUX = 1 / 32


@dataclass(frozen=True)
class Size:
    """One training: N rows of D features, M latents of which k are active, and how long."""

    rows: int
    width: int
    latents: int
    k: int
    batch: int
    steps: int
    rate: float = 4e-3
    """The learning rate of all."""

    def schedule(self, step: int) -> float:
        """The share of the learning rate at `step`: a warm-up, level, linear to 0 in the last third."""
        warm, decay = max(1, self.steps // 20), max(1, self.steps // 3)
        return min(1.0, (step + 1) / warm, (self.steps - step) / decay)


SHARES = (0.4, 0.6, 0.8, 1.0, 1.2)
"""How many steps ours is trained for, turn by turn, as shares of the peer's; a turn is a fifth of the peer's."""

RATES = {(512, 4096): 2.8e-3, (768, 4096): 2e-3, (512, 16_384): 2.8e-3, (768, 16_384): 2.8e-3}
"""The best for sparsify, the fastest peer, of three, to what two runs differ by. Its explained variance after 500
steps at 4e-3, 2.8e-3 and 2e-3 is 0.9448, 0.9464 and 0.9457 at 512 × 4,096; 0.9335, 0.9433 and 0.9456 at 768 ×
4,096, and 0.9399 at 1.4e-3; 0.9456, 0.9465 and 0.9458 at 512 × 16,384; 0.9353, 0.9464 and 0.9469 at 768 × 16,384.
"""

SIZES = {f"{d}x{m}": Size(50_000, d, m, 32, 1024, 500, rate) for (d, m), rate in RATES.items()}
QUICK = Size(4_000, 32, 256, 8, 256, 50)


def sparse_features(size: Size, n: int, stream: int) -> Floats:
    """Rows [n, D]: a few of 2·D directions, used as often as 1/j, and 6 % of dense variance that falls as 1/j.

    A row has 16 active directions on average, of strength 1/2 and an exponential part. Streams are independent of
    each other and of the directions; numpy draws them, torch all that models draw.
    """
    rng = np.random.default_rng([6, size.width])
    directions = rng.standard_normal((2 * size.width, size.width)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    often = 1 / np.arange(1, len(directions) + 1)
    often = np.minimum(16 * often / often.sum(), 0.5)
    axes, _ = np.linalg.qr(rng.standard_normal((size.width, size.width)))
    spectrum = np.arange(1, size.width + 1) ** -0.5
    mix = (spectrum / np.linalg.norm(spectrum))[:, None] * axes.T
    rng = np.random.default_rng([6, size.width, stream, n])
    rows = np.empty((n, size.width), np.float32)
    for part in np.array_split(rows, max(1, n // 4096)):
        strength = 0.5 + rng.exponential(0.5, (len(part), len(directions)))
        strength[rng.random(strength.shape) >= often] = 0
        part[:] = strength.astype(np.float32) @ directions
        part += rng.standard_normal(part.shape, dtype=np.float32) @ mix.astype(np.float32)
    return rows


def explained(reconstruct: Callable[[Tensor], Tensor], rows_nd: Tensor) -> float:
    """1 − Σ‖x − x̂‖² / Σ‖x − x̄‖²."""
    with torch.no_grad():
        missed = sum(float((part - reconstruct(part)).square().sum()) for part in rows_nd.split(1024))
    return 1 - missed / float((rows_nd - rows_nd.mean(dim=0)).square().sum())


def principal(rows_nd: Tensor, k: int) -> Callable[[Tensor], Tensor]:
    """The k leading components: what sparsity has to beat."""
    mean = rows_nd.mean(dim=0)
    centred = rows_nd - mean
    leading = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -k:]
    return lambda x: (x - mean) @ leading @ leading.T + mean


# The peers: each takes steps on batches [B, D] of centred rows divided by one scalar, and reconstructs such rows.


class Peer(Protocol):
    def __init__(self, size: Size) -> None: ...

    def steps(self, batches: list[Tensor]) -> None: ...

    def reconstruct(self, rows_nd: Tensor) -> Tensor: ...


class Sparsify:
    """Its own module and loss in the order of its trainer, which trains on language models only; with its Adam."""

    def __init__(self, size: Size) -> None:
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read at import; without it a CPU cannot train
        with contextlib.redirect_stdout(io.StringIO()):
            sparsify = importlib.import_module("sparsify")
        torch.manual_seed(0)
        settings = sparsify.SparseCoderConfig(num_latents=size.latents, k=size.k)
        self.size, self.model, self.taken = (
            size,
            sparsify.SparseCoder(size.width, settings, dtype=torch.float32),
            0,
        )
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=size.rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, size.schedule)
        self.idle = torch.zeros(size.latents, dtype=torch.int64)

    def steps(self, batches: list[Tensor]) -> None:
        for batch in batches:
            if self.taken == 0:
                self.model.b_dec.data = batch.mean(0)
            self.model.set_decoder_norm_to_unit_norm()
            out = self.model(batch, dead_mask=self.idle > self.size.rows)
            (out.fvu + AUX * out.auxk_loss).backward()
            self.model.remove_gradient_parallel_to_decoder_directions()
            self.optimiser.step()
            self.optimiser.zero_grad()
            self.schedule.step()
            self.idle += len(batch)
            self.idle[out.latent_indices.flatten()] = 0
            self.taken += 1

    def reconstruct(self, rows_nd: Tensor) -> Tensor:
        reconstructed: Tensor = self.model(rows_nd).sae_out
        return reconstructed


class DictionaryLearning:
    """Its own trainer; a latent is dead after one pass over the rows, as 10 million rows are never seen."""

    def __init__(self, size: Size) -> None:
        trainers = importlib.import_module("dictionary_learning.trainers.top_k")
        self.trainer = trainers.TopKTrainer(
            steps=size.steps, activation_dim=size.width, dict_size=size.latents, k=size.k, layer=0, lm_name="",
            lr=size.rate, auxk_alpha=AUX, warmup_steps=size.steps // 20, decay_start=size.steps - size.steps // 3,
            seed=0, device="cpu",
        )  # fmt: skip
        self.trainer.dead_feature_threshold, self.taken = size.rows, 0

    def steps(self, batches: list[Tensor]) -> None:
        for batch in batches:
            self.trainer.update(self.taken, batch)
            self.taken += 1

    def reconstruct(self, rows_nd: Tensor) -> Tensor:
        reconstructed: Tensor = self.trainer.ae(rows_nd)
        return reconstructed


class Overcomplete:
    """Its own training loop and loss; its AuxK takes the best half of all latents that are not active."""

    def __init__(self, size: Size) -> None:
        sae, losses = (importlib.import_module(f"overcomplete.sae{name}") for name in ("", ".losses"))
        torch.manual_seed(0)
        self.train, self.loss = sae.train_sae, losses.top_k_auxiliary_loss
        self.model = sae.TopKSAE(size.width, size.latents, top_k=size.k, device="cpu")
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=size.rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, size.schedule)

    def steps(self, batches: list[Tensor]) -> None:
        self.train(self.model, batches, self.loss, self.optimiser, self.schedule, nb_epochs=1, monitoring=0)

    def reconstruct(self, rows_nd: Tensor) -> Tensor:
        reconstructed: Tensor = self.model.eval()(rows_nd)[2]
        return reconstructed


PEERS: dict[str, type[Peer]] = {
    "sparsify": Sparsify,
    "dictionary-learning": DictionaryLearning,
    "overcomplete": Overcomplete,
}

PACKAGES = ("eai-sparsify", "dictionary-learning", "overcomplete")


# Ours.


class Stopwatch:
    """The seconds inside the progress bar of training: without moments and measures, which peers do not take."""

    seconds = 0.0

    @contextlib.contextmanager
    def __call__(self, description: str, total: int | None, unit: str) -> Iterator[progress.Advance]:  # noqa: ARG002
        started = time.perf_counter()
        yield lambda _: None
        if description.startswith("training"):
            self.seconds += time.perf_counter() - started


def ours(rows: TrainingRows, size: Size, steps: int, seeds: Sequence[int] = (0,)) -> tuple[float, list[TopKSAE]]:
    """Seconds of training, and the adapters of all seeds, trained at once."""
    settings = TrainedDictionarySettings(
        width=size.latents, k=size.k, steps=steps, batch_size=size.batch, learning_rate=size.rate, aux_weight=AUX
    )
    watch, members = Stopwatch(), [TopKSAE(settings) for _ in seeds]
    progress.show_on(watch)
    TopKSAE.fit_together(members, rows, seeds)
    progress.show_on(None)
    return watch.seconds, members


def through(adapter: Dictionary) -> Callable[[Tensor], Tensor]:
    """What the adapter makes of features, as features."""
    return lambda features_nd: adapter.decode(adapter.encode(features_nd))


# The cases.


@dataclass(frozen=True)
class Setting:
    console: Console
    quick: bool
    bf16: bool  # whether products in bf16 are worth having here
    device: torch.device  # where the cases `stacked` and `throughput` train; the others are of CPUs
    rows: int | None = None  # instead of the sizes of the case `rows`


@dataclass(frozen=True)
class Case:
    facts: dict[str, Any]
    goals: list[Goal]


def training(setting: Setting, name: str) -> Case:
    """The time to the explained variance that the fastest peer reaches in all its steps."""
    size = QUICK if setting.quick else SIZES[name]
    seen, unseen = (sparse_features(size, n, stream) for n, stream in ((size.rows, 1), (4096, 2)))
    held_nd = torch.from_numpy(unseen)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/rows.npy", seen)
        rows = TrainingRows(FeatureSet("made", (Path(folder) / "rows.npy",)), None, CPU)
        mean, scale = rows.mean.float(), rows.variance.mean().sqrt().float()
        scaled = (torch.from_numpy(seen) - mean) / scale
        spread = rows.variance.sqrt().float()
    noise = np.random.default_rng([7, size.width]).standard_normal(unseen.shape, dtype=np.float32)
    noise_nd = torch.from_numpy(noise) * spread + mean

    heat = fastest(setting.console, size, scaled)
    best = min(heat, key=lambda peer: heat[peer])
    peer, batches = PEERS[best](size), shuffled(scaled, size)

    def theirs(features_nd: Tensor) -> Tensor:
        return peer.reconstruct((features_nd - mean) / scale) * scale + mean

    untrained = RandomTopK(DictionarySettings(width=size.latents, k=size.k)).fit(rows, seed=0)
    table = Table("", "steps", "seconds", "ms a step", "explained variance", "of noise", title=name)

    def show(who: str, steps: int, seconds: float, reconstruct: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        facts = {"who": who, "steps": steps, "seconds": seconds}
        facts |= {"explained": explained(reconstruct, held_nd), "of_noise": explained(reconstruct, noise_nd)}
        each = f"{1000 * seconds / steps:.0f}" if steps else ""
        variances = (f"{facts['explained']:.4f}", f"{facts['of_noise']:.4f}")
        table.add_row(who, str(steps), f"{seconds:.1f}", each, *variances)
        return facts

    starts = [
        show(f"PCA, {size.k} components", 0, 0.0, principal(torch.from_numpy(seen), size.k)),
        show(f"{best}, untrained", 0, 0.0, theirs),
        show("ours, untrained", 0, 0.0, through(untrained)),
    ]
    ours(rows, size, 2)  # loads what the first call loads
    spent, trained = 0.0, []
    for share in SHARES:
        seconds, _ = timed(peer.steps, list(itertools.islice(batches, size.steps // len(SHARES))))
        spent += seconds
        seconds, (adapter,) = ours(rows, size, steps := round(share * size.steps))
        trained.append(show("ours", steps, seconds, through(adapter)))
    reached = show(best, size.steps, spent, theirs)
    setting.console.print(table)

    enough = [run["seconds"] for run in trained if run["explained"] >= reached["explained"]]
    hardware, least = ("bf16", 2.0) if setting.bf16 else ("fp32", 1.3)
    ratio = spent / enough[0] if enough else 0.0
    missed = (1 - trained[-1]["explained"]) / (1 - starts[-1]["explained"])
    goals = [
        Goal(name, f"{best} / ours, asked of {hardware} hardware", ratio, least, at_least=True),
        Goal(name, "unexplained variance, trained / untrained", missed, 0.9, answer=True),
    ]
    return Case({**asdict(size), "ms_a_step": heat, "runs": [*starts, *trained, reached]}, goals)


def shuffled(scaled_nd: Tensor, size: Size) -> Iterator[Tensor]:
    """Batches without end, of whole size, each row once a pass."""
    order = torch.Generator().manual_seed(1)
    while True:
        for positions in torch.randperm(len(scaled_nd), generator=order).split(size.batch):
            if len(positions) == size.batch:
                yield scaled_nd[positions]


def fastest(console: Console, size: Size, scaled_nd: Tensor) -> dict[str, float]:
    """Milliseconds a step of each peer: medians of a few steps in turns, after one to warm up."""
    peers, batches = {name: peer(size) for name, peer in PEERS.items()}, shuffled(scaled_nd, size)
    taken: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(5):
        batch = next(batches)
        for name, peer in peers.items():
            taken[name].append(timed(peer.steps, [batch])[0])
    each = {name: 1000 * statistics.median(seconds[1:]) for name, seconds in taken.items()}
    console.print(", ".join(f"{name} {ms:.0f} ms a step" for name, ms in each.items()))
    return each


STACK = range(8)
STACKED = (Size(1_200, 128, 512, 16, 128, 200), Size(20_000, 512, 4096, 32, 1024, 40))
"""Features of a small backbone, where operations are too small for the machine, and of a usual one."""


def stacked(setting: Setting, name: str) -> Case:
    """Eight seeds at once beside eight trainings one after the other, in turns."""
    table = Table("stacked", "one, s", "eight in turn", "eight at once", "at once / in turn", "at once / one")
    facts, goals = [], []
    for size in [QUICK] if setting.quick else STACKED:
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/rows.npy", sparse_features(size, size.rows, 1))
            rows = TrainingRows(FeatureSet("made", (Path(folder) / "rows.npy",)), None, setting.device)
            ours(rows, size, 2)  # loads what the first call loads
            taken: dict[str, list[float]] = defaultdict(list)
            for _ in range(1 if setting.quick else 3):
                alone = [ours(rows, size, size.steps, [seed]) for seed in STACK]
                together, members = ours(rows, size, size.steps, STACK)
                taken["one"].append(alone[0][0])
                taken["in turn"].append(sum(seconds for seconds, _ in alone))
                taken["at once"].append(together)
        apart = max(
            float((tensor - by_itself.state()[key]).abs().max())
            for member, (_, (by_itself,)) in zip(members, alone, strict=True)
            for key, tensor in member.state().items()
        )
        median = {what: statistics.median(seconds) for what, seconds in taken.items()}
        to_turns, to_one = (median["at once"] / median[what] for what in ("in turn", "one"))
        shape = f"{size.width} × {size.latents:,}, batch {size.batch}"
        table.add_row(shape, *(f"{s:.2f}" for s in median.values()), f"{to_turns:.2f}", f"{to_one:.2f}")
        facts.append({**asdict(size), "seconds": taken, "apart": apart})
        goals.append(Goal(name, f"{shape}: furthest from what training alone gives", apart, 1e-3, answer=True))
        if setting.device.type == "cuda":
            goals.append(Goal(name, f"{shape}: eight at once / one", to_one, 3.0))
        else:
            goals.append(Goal(name, f"{shape}: eight at once / eight in turn", to_turns, 1.0))
    setting.console.print(table)
    return Case({"sizes": facts}, goals)


def throughput(setting: Setting, name: str) -> Case:
    """Rows a second of training, and the share of bf16's peak, eager and compiled but for Adam, in turns.

    Counted are the operations that a row needs, 2·D·M for its pre-activations and 10·k·D for the code, the
    reconstruction and the gradients by its active latents; not AuxK's, which depend on how many are dead.
    """
    kind = "bf16" if topk.has_bfloat16(setting.device.type) else "fp32"
    peak = product_rates(setting.device)[kind]
    table = Table(
        "throughput",
        "",
        "ms a step",
        "rows a second",
        f"share of {kind}'s {peak / 1e12:.3f} TF/s",
        "compiled in, s",
    )
    facts, goals = [], []
    # of Adam, which is one operation a block, the changing rate would have each step compiled anew
    take = topk.TopKSteps._take
    topk.TopKSteps._take = staticmethod(torch.compiler.disable(take))  # type: ignore[method-assign]
    ways: dict[str, Any] = {"eager": topk.TopKSteps.step, "compiled": torch.compile(topk.TopKSteps.step)}
    for size in [QUICK] if setting.quick else [SIZES["512x4096"], SIZES["768x16384"]]:
        steps = 20 if setting.quick else 300 if setting.device.type == "cuda" else 30
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/rows.npy", sparse_features(size, size.rows, 1))
            rows = TrainingRows(FeatureSet("made", (Path(folder) / "rows.npy",)), None, setting.device)
            taken: dict[str, list[float]] = defaultdict(list)
            first, missed = {}, {}
            for turn in range(2 if setting.quick else 4):
                for way, step in ways.items():
                    topk.TopKSteps.step = step  # type: ignore[method-assign]
                    seconds, (adapter,) = ours(rows, size, steps)
                    if turn == 0:  # loads and compiles
                        first[way] = seconds
                        continue
                    taken[way].append(seconds / steps)
                    missed[way] = 1 - adapter.measures["explained_variance"]
            topk.TopKSteps.step = ways["eager"]  # type: ignore[method-assign]
        shape = f"{size.width} × {size.latents:,}, batch {size.batch}"
        for way in ways:
            each = statistics.median(taken[way])
            a_second = size.batch / each
            operations = 2 * size.width * size.latents + 10 * size.k * size.width
            share = operations * a_second / peak
            to_compile = f"{first[way] - steps * each:.0f}" if way == "compiled" else ""
            table.add_row(shape, way, f"{1000 * each:.2f}", f"{a_second:,.0f}", f"{share:.1%}", to_compile)
            facts.append({**asdict(size), "way": way, "steps": steps, "seconds": taken[way], "share": share})
        apart = abs(missed["compiled"] / missed["eager"] - 1)
        goals.append(Goal(name, f"{shape}: unexplained, compiled and eager apart", apart, 0.02, answer=True))
    topk.TopKSteps._take = staticmethod(take)  # type: ignore[method-assign]
    setting.console.print(table)
    return Case({"device": str(setting.device), "peak": peak, "of": kind, "sizes": facts}, goals)


def codes(setting: Setting, name: str) -> Case:
    """Sparse codes, encoded and probed in a process of its own: memory beside that of the dense matrix."""
    shape = (2_000, 64, 1_024, 8, 10) if setting.quick else (50_000, 512, 16_384, 32, 100)
    facts = in_fresh_process(_codes, shape)
    n, _, width, k, _ = shape
    facts["dense_gb"] = 4e-9 * n * width
    table = Table(
        "codes", "k", "dense matrix, GB", "memory before, GB", "more at its peak", "whole peak", "seconds"
    )
    sizes = (f"{facts['dense_gb']:.3f}", *(f"{facts[key]:.3f}" for key in ("before_gb", "more_gb", "peak_gb")))
    table.add_row(f"{n:,} × {width:,}", str(k), *sizes, f"{facts['seconds']:.1f}")
    setting.console.print(table)
    goals = [
        Goal(name, "memory added, GB, less than the dense matrix alone", facts["more_gb"], facts["dense_gb"]),
        Goal(name, "training error of the probe, of 1 by chance", facts["error"], 0.9, answer=True),
    ]
    return Case({"shape": shape, **facts}, goals)


def _codes(shape: tuple[int, int, int, int, int]) -> dict[str, Any]:
    n, features, width, k, n_classes = shape
    rows_nd, labels = Source(features, n_classes, share=0.5).draw(n, stream=1)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/rows.npy", rows_nd.astype(np.float16))
        made = FeatureSet("made", (Path(folder) / "rows.npy",))
        del rows_nd

        def whole() -> float:
            """The share of some training rows that the probe gets wrong."""
            rows = TrainingRows(made, None, CPU)
            codes = Codes(made, RandomTopK(DictionarySettings(width=width, k=k)).fit(rows, seed=0), CPU)
            problem = Problem(np.arange(n), labels)
            probes = fit_probes(TrainingCodes.of(codes), [problem], n_classes, Logistic(l2=(1e-4,)))
            picked = np.arange(min(n, 1000))
            guessed = probes.logits(next(codes.chunks(picked)), (0,))[:, 0].argmax(dim=1)
            return float((guessed.numpy() != labels[picked]).mean())

        with Memory() as before:
            pass
        with Memory() as during:
            seconds, error = timed(whole)
    own = {"before_gb": before.own_gb, "more_gb": during.own_gb - before.own_gb, "peak_gb": peak_gb()}
    return {"seconds": seconds, "error": error, **own}


IMAGENET = 1_281_167


def rows(setting: Setting, name: str) -> Case:
    """An autoencoder fitted on shards, and all its codes measured, in a process of its own: memory as N grows."""
    sizes = (2_000, 8_000) if setting.quick else (32_500, 65_000, 130_000)
    sizes = (setting.rows,) if setting.rows else sizes
    width, latents, k, n_classes = (32, 256, 8, 10) if setting.quick else (768, 16_384, 32, 1_000)
    source, runs = Source(width, n_classes), []
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            paths, labels = shards(Path(folder), source, n, -(-n // SHARD_ROWS))
            runs.append({"n": n, **in_fresh_process(_rows, paths, labels, latents, k, n_classes)})
    table = Table("rows", "shards, GB", "added by the fit", "by measuring", "seconds to fit", "to measure")
    for run in runs:
        added = (f"{run['fit_gb']:.3f}", f"{run['measure_gb']:.3f}")
        times = (f"{run['fit_seconds']:.1f}", f"{run['seconds']:.1f}")
        table.add_row(f"{run['n']:,}", f"{2e-9 * run['n'] * width:.3f}", *added, *times)
    setting.console.print(table)
    last = runs[-1]
    each = last["seconds"] / last["n"]
    setting.console.print(
        f"{1000 * each:.3f} ms a row measured; {IMAGENET:,} rows: {IMAGENET * each / 60:.0f} min"
    )
    shape = {"width": width, "latents": latents, "k": k, "classes": n_classes, "steps": STEPS}
    missed = max(run["missed"] for run in runs)
    goals = [Goal(name, "unexplained variance, trained / untrained", missed, 1.0, answer=True)]
    if len(runs) > 1:
        what = f"memory added at {sizes[-1]:,} rows / at {sizes[0]:,}"
        goals.append(Goal(name, what, last["more_gb"] / runs[0]["more_gb"], 1.1))
    return Case({**shape, "runs": runs}, goals)


STEPS = 20
"""Of training: enough to see its memory."""


def _rows(paths: tuple[Path, ...], labels: Ints, latents: int, k: int, n_classes: int) -> dict[str, Any]:
    made = FeatureSet("made", paths)
    few = FeatureSet("few", paths[:1])
    settings = TrainedDictionarySettings(width=latents, k=k, steps=STEPS, batch_size=4096)
    quick = TrainedDictionarySettings(width=64, k=4, steps=1)
    small = TopKSAE(quick).fit(TrainingRows(few, None, CPU), seed=0)  # loads what the first call loads
    measure(Codes(few, small, CPU), labels[: few.n], n_classes)
    with Memory() as before:
        pass
    with Memory() as fitting:
        fit_seconds, adapter = timed(TopKSAE(settings).fit, TrainingRows(made, None, CPU), seed=0)
    with Memory() as measuring:
        seconds, found = timed(measure, Codes(made, adapter, CPU), labels, n_classes)
    peaks = {"fit_gb": fitting.own_gb - before.own_gb, "measure_gb": measuring.own_gb - before.own_gb}
    own = {"before_gb": before.own_gb, "more_gb": max(peaks.values()), **peaks, "peak_gb": peak_gb()}
    missed = [1 - adapter.measures[f"explained_variance{which}"] for which in ("", "_untrained")]
    facts = {"fit_seconds": fit_seconds, "seconds": seconds, "l0": found.l0_mean}
    return {**facts, "missed": missed[0] / missed[1], **own}


CASES: dict[str, Callable[[Setting, str], Case]] = {
    **dict.fromkeys(SIZES, training),
    "stacked": stacked,
    "throughput": throughput,
    "codes": codes,
    "rows": rows,
}


def _names(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(CASES):
        raise argparse.ArgumentTypeError(f"choose from {', '.join(CASES)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: under a minute, and only answers count")
    parser.add_argument("--fp32", action="store_true", help="hide the hardware's bf16 from products")
    parser.add_argument("--only", type=_names, metavar="NAME,...", help=", ".join(CASES))
    parser.add_argument("--rows", type=int, metavar="N", help="the case `rows` alone, at N rows")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    options = parser.parse_args()
    if options.fp32:
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX512_CORE"  # read at the first product, here and in other processes
        topk.has_bfloat16 = lambda _: False  # as it would say of such hardware
    names = options.only or (["512x4096", "stacked", "codes", "rows"] if options.quick else list(CASES))
    names = ["rows"] if options.rows else names

    console, load = Console(width=None if sys.stdout.isatty() else 130), busy()
    rates = product_rates()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(console, options.quick, rates["bf16"] > 1.5 * rates["fp32"], device, options.rows)
    products = ", ".join(f"{rate / 1e9:.0f} GF/s in {name}" for name, rate in rates.items())
    console.print(f"{torch.get_num_threads()} threads; products: {products}")
    if load > 0.5:
        console.print(f"load {load:.1f} before the start: other work makes the elapsed times unreliable")
    cases = {}
    for name in names:
        console.rule(name)
        cases[name] = CASES[name](setting, name)
    goals = [goal for case in cases.values() for goal in case.goals]
    show_goals(console, goals)
    if options.json:
        facts = {
            "benchmark": "adapters",
            "quick": options.quick,
            "fp32": options.fp32,
            "products": rates,
            "load_before": load,
            "threads": torch.get_num_threads(),
            "versions": {name: version(name) for name in ("torch", *(PACKAGES if SIZES.keys() & names else ()))},
            "machine": platform.processor() or platform.machine(),
            "cases": {name: case.facts for name, case in cases.items()},
            "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
        }
        options.json.write_text(json.dumps(facts, indent=1))
    return int(not all(goal.met for goal in goals if goal.answer or not options.quick))


if __name__ == "__main__":
    sys.exit(main())
