"""What a logistic probe costs here and elsewhere, at the same optimum.

Each case fits the same problems (labels × L2; f = mean cross-entropy + λ/2·‖W‖²) on the same made-up codes with
this package and with its peers, in turns, so that a machine that slows down slows all. A float64 referee proves
how far answers are from the optimum. Exits with 1 where a goal is missed; with --quick, whose sizes are too small
to judge speed and memory, only where an answer is wrong.

    python tests/benchmarks/probes.py [--quick] [--only NAME,...] [--json FILE] [--plot FILE.png]
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import sklearn
import torch
from made import Dictionary, Floats, Source, noisy, shards
from matplotlib.figure import Figure
from measure import Goal, Memory, busy, in_fresh_process, peak_gb, product_rates, show_goals, timed
from peers import Peer, scikit_learn, sgd
from referee import Fit, Judge, Referee, Verdict
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from monoeval.adapters.base import Codes, SparseRows
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.settings import NoSettings
from monoeval.adapters.simple import Identity
from monoeval.backbones.features import FeatureSet
from monoeval.data.images import Ints
from monoeval.probes import rows as solver_rows
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.each import solve_each
from monoeval.probes.logistic import Grid, solve_grid
from monoeval.probes.problem import Problem

RATES = tuple(step / 10 for step in range(10))
L2S = tuple(10.0**power for power in range(-6, 0))
EIGHT_L2S = (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
"""The best L2 of every noise rate lies inside both, between 1e-6 and 1e-4."""
FEW_SHOT_L2S = tuple(np.logspace(-5, 0, 8).tolist())


# Ours: the only calls of the solver, and what is read of its answers.


def ours(
    codes: TrainingCodes, labels_pn: torch.Tensor, l2s: Sequence[float], n_classes: int, **options: Any
) -> Grid:
    """P label sets × L values of L2."""
    return solve_grid(codes, labels_pn, l2s, n_classes, **options)


def fit_of(grid: Grid, p: int, j: int) -> Fit:
    return Fit(grid.weights_plcm[p, j].cpu().numpy(), grid.intercept_plc[p, j].cpu().numpy())


def facts_of(grid: Grid, seconds: float) -> dict[str, Any]:
    """Time, number of probes, their passes over the rows in all, and the largest gap that the solver certifies."""
    passes, gap = float(grid.passes_pl.sum()), float(grid.gap_pl.max())
    return {"seconds": seconds, "probes": grid.gap_pl.numel(), "passes": passes, "gap": gap}


def our_few_shots(codes_nm: torch.Tensor, problems: Sequence[Problem], n_classes: int) -> Grid:
    return solve_each(TrainingCodes(codes_nm), problems, FEW_SHOT_L2S, n_classes)


# What a case is given, and what it gives.


@dataclass(frozen=True)
class Setting:
    console: Console
    quick: bool
    rates: dict[str, float]  # operations a second of a matrix product in fp32 and bf16
    plot: Path | None

    @property
    def bf16(self) -> bool:
        """Whether products in bf16 are worth having here."""
        return self.rates["bf16"] > 1.5 * self.rates["fp32"]


@dataclass
class Case:
    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)

    def at_least(self, what: str, value: float, bound: float) -> None:
        self.goals.append(Goal(self.name, what, value, bound, at_least=True))

    def at_most(self, what: str, value: float, bound: float) -> None:
        self.goals.append(Goal(self.name, what, value, bound))

    def answer(self, what: str, value: float, bound: float) -> None:
        self.goals.append(Goal(self.name, what, value, bound, answer=True))

    def answers(self, who: str, verdicts: Sequence[Verdict]) -> None:
        """The worst of `who`'s verdicts beside what is asked of each."""
        self.facts[f"{who}: verdicts"] = [asdict(verdict) for verdict in verdicts]
        who = f"{who}, {len(verdicts)} judged"
        self.answer(f"{who}: proven gap", max(v.gap for v in verdicts), 1e-4)
        self.answer(f"{who}: above the optimum", max(v.above_optimum for v in verdicts), 1e-4)
        # both can be at the optimum, up to the rounding of float32 weights
        self.answer(f"{who}: above scikit-learn", max(v.above_peer for v in verdicts), 1e-6)
        self.answer(f"{who}: accuracy, points from the optimum", max(v.points for v in verdicts), 0.1)


def sample_of(n_label_sets: int, n_l2s: int) -> list[tuple[int, int]]:
    """Six (label set, L2), spread over both and paired at random: what peers fit, and what is judged."""
    sets, values = (np.linspace(0, n - 1, 6).round().astype(int).tolist() for n in (n_label_sets, n_l2s))
    return list(zip(np.random.default_rng(3).permutation(sets).tolist(), values, strict=True))


Place = tuple[int, int]
"""Which label set, which L2."""


def show_judged(console: Console, judges: dict[Place, Judge], peers: dict[str, dict[Place, Peer]]) -> None:
    table = Table("labels", "L2", "optimum", "accuracy", "by", "seconds", "steps", "above optimum", "points")
    for (p, j), judge in judges.items():
        optimum = (f"{judge.l2:.0e}", f"{judge.value:.5f}", f"{judge.accuracy:.2f} %")
        for name, fitted in peers.items():
            if (p, j) in fitted:
                peer = fitted[p, j]
                verdict = judge(peer.fit)
                steps = (f"{peer.seconds:.2f}", str(peer.iterations))
                away = (f"{verdict.above_optimum:.1e}", f"{verdict.points:.2f}")
                table.add_row(str(p), *optimum, name, *steps, *away)
    console.print(table)


# The cases.


def grid(setting: Setting) -> Case:
    """10 noise rates × 6 L2, dense, against scikit-learn and SGD."""
    n, width, n_classes = (4_000, 64, 10) if setting.quick else (50_000, 512, 100)
    source, case = Source(width, n_classes), Case("grid")
    rows, clean = source.draw(n, stream=1)
    test = source.draw(10_000, stream=2)
    labels_pn, tensor = noisy(clean, n_classes, RATES), torch.from_numpy(rows)
    codes, sample = TrainingCodes(tensor), sample_of(len(RATES), len(L2S))
    ours(TrainingCodes(tensor[:500]), labels_pn[:1, :500], L2S[-1:], n_classes)  # loads what the first call loads

    spent: dict[str, list[float]] = {"ours": []}
    peers: dict[str, dict[Place, Peer]] = {"scikit-learn": {}, "SGD, 50 epochs": {}}
    for turn in range(3):
        seconds, fitted = timed(ours, codes, labels_pn, L2S, n_classes)
        spent["ours"].append(seconds / fitted.gap_pl.numel())
        for p, j in sample[turn::3]:
            peers["scikit-learn"][p, j] = scikit_learn(rows, labels_pn[p].numpy(), L2S[j])
        p, j = sample[turn]
        peers["SGD, 50 epochs"][p, j] = sgd(tensor, labels_pn[p], L2S[j], n_classes)

    referee = Referee(rows)
    judges = {
        (p, j): Judge(referee, labels_pn[p].numpy(), L2S[j], fit_of(fitted, p, j), peer.fit, test)
        for (p, j), peer in peers["scikit-learn"].items()
    }
    show_judged(setting.console, judges, peers)
    each = {"ours": statistics.median(spent["ours"])}
    for name, theirs in peers.items():  # problems of unlike cost, so a mean; ours are repeats of one whole
        spent[name] = [peer.seconds for peer in theirs.values()]
        each[name] = statistics.mean(spent[name])
    facts = facts_of(fitted, sum(spent["ours"]) * fitted.gap_pl.numel())
    table = Table("", "seconds a probe", "spread", "times scikit-learn", "times SGD", "passes a probe")
    for name, seconds in each.items():
        ratios = (f"{each[peer] / seconds:.1f}" for peer in peers)
        spread = f"{min(spent[name]):.3f} to {max(spent[name]):.3f}"
        passes = f"{facts['passes'] / facts['probes']:.1f}" if name == "ours" else ""
        table.add_row(name, f"{seconds:.3f}", spread, *ratios, passes)
    setting.console.print(table)

    case.facts |= {"shape": [n, width, n_classes], "seconds_a_probe": spent, **facts}
    case.answer("all: certified gap", facts["gap"], 1e-4)
    proven = [
        referee.bounds(fit_of(fitted, p, j), labels_pn[p].numpy(), L2S[j])
        for p, j in np.ndindex(len(RATES), len(L2S))
    ]
    case.answer("all: the referee's proven gap", max(1 - low / value for value, low in proven), 1e-4)
    case.answers("ours", [judge(fit_of(fitted, *at)) for at, judge in judges.items()])
    # certified fits are of fp32 products: rounding in bf16 leaves a gap that passes in fp32 have to close again
    ratio = each["scikit-learn"] / each["ours"]
    case.at_least("scikit-learn / ours, asked of fp32 hardware", ratio, 25)
    if setting.bf16:
        case.at_least("scikit-learn / ours, asked of bf16 hardware", ratio, 60)
    case.at_least("SGD / ours", each["SGD, 50 epochs"] / each["ours"], 40)
    return case


def cifar(setting: Setting) -> Case:
    """10 noise rates × 5 seeds × 8 L2 in a process of its own: time and memory."""
    case = Case("cifar")
    shape = n, width, n_classes = (2_000, 64, 10) if setting.quick else (50_000, 512, 100)
    facts, fits = in_fresh_process(_cifar, shape)
    case.facts |= {"shape": shape, **facts}
    source = Source(width, n_classes)
    rows, clean = source.draw(n, stream=1)
    labels_pn = noisy(clean, n_classes, RATES, seeds=5).numpy()
    test, referee = source.draw(10_000, stream=2), Referee(rows)
    peers = {(p, j): scikit_learn(rows, labels_pn[p], EIGHT_L2S[j]) for p, j in fits}
    judges = {
        (p, j): Judge(referee, labels_pn[p], EIGHT_L2S[j], fit, peers[p, j].fit, test)
        for (p, j), fit in fits.items()
    }
    show_judged(setting.console, judges, {"scikit-learn": peers})
    show_runs(setting.console, {"ours": [facts]})
    case.answer("all: certified gap", facts["gap"], 1e-4)
    case.answers("ours", [judge(fits[at]) for at, judge in judges.items()])
    case.at_most("peak memory, GB", facts["peak_gb"], 4)
    return case


def _cifar(shape: tuple[int, int, int]) -> tuple[dict[str, Any], dict[Place, Fit]]:
    n, width, n_classes = shape
    rows, clean = Source(width, n_classes).draw(n, stream=1)
    labels_pn = noisy(clean, n_classes, RATES, seeds=5)
    codes = TrainingCodes(torch.from_numpy(rows))
    seconds, fitted = timed(ours, codes, labels_pn, EIGHT_L2S, n_classes)
    facts = {**facts_of(fitted, seconds), "peak_gb": peak_gb()}
    return facts, {at: fit_of(fitted, *at) for at in sample_of(len(labels_pn), len(EIGHT_L2S))}


def show_runs(console: Console, runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """A table of runs in processes of their own; the median seconds a probe of each."""
    table = Table("", "probes", "seconds", "seconds a probe", "passes a probe", "ms a pass", "peak memory, GB")
    each = {}
    for name, facts in runs.items():
        seconds, last = statistics.median(f["seconds"] for f in facts), facts[-1]
        each[name] = seconds / last["probes"]
        times = (f"{seconds:.1f}", f"{each[name]:.4f}", f"{last['passes'] / last['probes']:.1f}")
        row = (*times, f"{1000 * seconds / last['passes']:.2f}", f"{max(f['peak_gb'] for f in facts):.2f}")
        table.add_row(name, str(last["probes"]), *row)
    console.print(table)
    return each


MIDDLE = 5
"""The noise rate whose six L2 are judged."""
DENSE = (3, 4, 5, 6, 7)
"""The noise rates that the dense path fits: as many label sets at once as the sparse path takes into memory."""
DENSE_L2S = L2S[2:]
"""The larger L2: smaller ones take many times the passes, minutes each where codes are dense."""


def topk(setting: Setting) -> Case:
    """10 noise rates × 6 L2 on sparse codes, and five rates × 4 L2 by the sparse and the dense path."""
    n, width, k, n_classes = (3_000, 1_024, 16, 10) if setting.quick else (50_000, 16_384, 32, 100)
    case, source = Case("topk"), Source(64 if setting.quick else 512, n_classes, share=0.5)
    features, clean = source.draw(n, stream=1)
    encode = Dictionary(features, width, k)
    values, indices = encode(features)
    test_features, test_labels = source.draw(10_000, stream=2)
    rows, test = _csr(values, indices, width), (_csr(*encode(test_features), width), test_labels)
    del features, test_features

    every, some = (range(len(RATES)), L2S), (DENSE, DENSE_L2S)
    turns = [("sparse", every), ("sparse, some", some), ("dense, some", some), ("sparse, some", some)]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name, _ in turns}
    fits: dict[str, dict[float, Fit]] = {}
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/codes.npz", values=values, indices=indices, labels=clean)
        for name, problems in turns:
            facts, fits[name] = in_fresh_process(
                _topk, folder, name.startswith("dense"), problems, width, n_classes
            )
            runs[name].append(facts)
    middle, referee = noisy(clean, n_classes, RATES)[MIDDLE].numpy(), Referee(rows)
    peers = {(MIDDLE, j): scikit_learn(rows, middle, l2) for j, l2 in enumerate(L2S)}
    judges = {
        (p, j): Judge(referee, middle, L2S[j], fits["sparse"][L2S[j]], peer.fit, test)
        for (p, j), peer in peers.items()
    }
    show_judged(setting.console, judges, {"scikit-learn": peers})
    each = show_runs(setting.console, runs)
    case.facts |= {"shape": [n, width, n_classes], "k": k, "runs": runs}
    for name, facts in runs.items():
        case.answer(f"{name}, all: certified gap", max(f["gap"] for f in facts), 1e-4)
        case.answers(name, [judge(fits[name][judge.l2]) for judge in judges.values() if judge.l2 in fits[name]])
    dense = runs["dense, some"][-1]
    floor = 4 * n * width * n_classes * dense["passes"] / dense["probes"] / setting.rates["bf16"]
    setting.console.print(
        f"The products alone of as many dense passes in bf16 would take {floor:.4f} seconds a probe, "
        f"{floor / each['sparse, some']:.1f} times the sparse path."
    )
    case.facts["dense_bf16_floor_seconds_a_probe"] = floor
    case.at_least("dense / sparse", each["dense, some"] / each["sparse, some"], 8)
    case.at_most("peak memory of the sparse path, GB", runs["sparse"][-1]["peak_gb"], 2)
    return case


def _csr(values: Floats, indices: Ints, width: int) -> scipy.sparse.csr_matrix:
    starts = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    rows = scipy.sparse.csr_matrix(
        (values.ravel(), indices.ravel().astype(np.int32), starts), (len(values), width)
    )
    rows.eliminate_zeros()
    return rows


def _topk(
    folder: str, dense: bool, problems: tuple[Sequence[int], Sequence[float]], width: int, n_classes: int
) -> tuple[dict[str, Any], dict[float, Fit]]:
    """Fit some noise rates at some L2; the fits are of the middle rate, by their L2."""
    with np.load(f"{folder}/codes.npz") as made:
        values, indices, clean = (torch.from_numpy(made[key]) for key in ("values", "indices", "labels"))
    sparse, (rates, l2s) = SparseRows(values, indices, width), problems
    codes = TrainingCodes(sparse.dense() if dense else sparse)
    labels_pn = noisy(clean.numpy(), n_classes, RATES)[list(rates)]
    seconds, fitted = timed(ours, codes, labels_pn, l2s, n_classes)
    facts = {**facts_of(fitted, seconds), "peak_gb": peak_gb()}
    return facts, {l2: fit_of(fitted, rates.index(MIDDLE), j) for j, l2 in enumerate(l2s)}


def few_shot(setting: Setting) -> Case:
    """Shots × draws × L2 × codes, 10 classes, against scikit-learn in a loop."""
    shots, n_classes, case = (1, 2, 4, 8, 16), 10, Case("few-shot")
    width, n_draws, n_codes = (64, 2, 2) if setting.quick else (512, 10, 5)
    rng = np.random.default_rng(4)
    sample = [(k, j) for k in range(len(shots)) for j in range(len(FEW_SHOT_L2S))] * 2
    sample = [sample[i] for i in rng.permutation(len(sample))]
    spent, gaps, theirs, verdicts = [], [], [], []
    for code in range(n_codes):
        source = Source(width, n_classes, seed=code)
        rows, labels = source.draw(2_000, stream=1)
        test, tensor = source.draw(10_000, stream=2), torch.from_numpy(rows)
        of_class = [np.flatnonzero(labels == c) for c in range(n_classes)]
        drawn = [
            np.concatenate([rng.choice(c, k, False) for c in of_class]) for k in shots for _ in range(n_draws)
        ]
        problems = [Problem(picked, labels[picked]) for picked in drawn]
        our_few_shots(tensor, problems[:1], n_classes)  # loads what the first call loads
        seconds, fitted = timed(our_few_shots, tensor, problems, n_classes)
        spent.append(seconds)
        gaps += fitted.gap_pl.flatten().tolist()
        for k, j in sample[code::n_codes]:
            i = k * n_draws + int(rng.integers(n_draws))
            own, label = rows[problems[i].rows], problems[i].labels
            with threadpool_limits(1):  # in one thread it is faster on so few rows
                peer = scikit_learn(own, label, FEW_SHOT_L2S[j])
            theirs.append(peer.seconds)
            fit = fit_of(fitted, i, j)
            verdicts.append(Judge(Referee(own), label, FEW_SHOT_L2S[j], fit, peer.fit, test)(fit))
    count = len(gaps)
    each = {"ours": sum(spent) / count, "scikit-learn": statistics.mean(theirs)}
    table = Table("", "fitted", "ms a probe", f"seconds for {count}", "times scikit-learn")
    for name, number in (("ours", count), ("scikit-learn", len(theirs))):
        times = (
            f"{1000 * each[name]:.3f}",
            f"{count * each[name]:.2f}",
            f"{each['scikit-learn'] / each[name]:.1f}",
        )
        table.add_row(name, str(number), *times)
    setting.console.print(table)
    case.facts |= {"probes": count, "seconds": spent, "scikit_learn_seconds": theirs}
    case.answer("all: certified gap", max(gaps), 1e-4)
    case.answers("ours", verdicts)
    case.at_least("scikit-learn / ours", each["scikit-learn"] / each["ours"], 100)
    return case


def scaling(setting: Setting) -> Case:
    """The time of a pass of one probe as one size grows, beside what its arithmetic alone would take."""
    base = (2_000, 64, 10, 4) if setting.quick else (20_000, 256, 50, 16)
    sizes = dict(zip(("N", "D", "C", "P"), base, strict=True))
    width, ks = (512, (4, 8, 16)) if setting.quick else (4_096, (8, 16, 32, 64, 128))
    case, points = Case("scaling"), []
    for name, middle in sizes.items():
        for value in [int(factor * middle) for factor in ((0.5, 1, 2) if setting.quick else (0.25, 0.5, 1, 2, 4))]:
            size = sizes | {name: value}
            rows, clean = Source(size["D"], size["C"]).draw(size["N"], stream=1)
            labels_pn = noisy(clean, size["C"], (0.3,), seeds=size["P"])
            floor = 4 * rows.size * size["C"] / setting.rates["fp32"]
            point = {"size": name, "value": value, "floor": floor}
            points.append(point | _pass(TrainingCodes(torch.from_numpy(rows)), labels_pn, size["C"]))
    rows, clean = Source(sizes["D"], sizes["C"]).draw(sizes["N"], stream=1)
    labels_pn = noisy(clean, sizes["C"], (0.3,), seeds=sizes["P"])
    for k in ks:
        values, indices = Dictionary(rows, width, k)(rows)
        codes = TrainingCodes(SparseRows(torch.from_numpy(values), torch.from_numpy(indices), width))
        floor = 4 * values.size * sizes["C"] / setting.rates["fp32"]
        point = {"size": "k", "value": k, "floor": floor}
        points.append(point | _pass(codes, labels_pn, sizes["C"]))
    others = ", ".join(f"{name} = {value:,}" for name, value in sizes.items())
    table = Table("size", "", "passes", "ms a pass and probe", "arithmetic alone", "times that")
    table.title = f"Beside it {others}; k of {width:,} latents"
    for point in points:
        taken, floor = 1000 * point["pass_seconds"], 1000 * point["floor"]
        times = (
            f"{point['passes'] / point['probes']:.0f}",
            f"{taken:.3f}",
            f"{floor:.3f}",
            f"{taken / floor:.1f}",
        )
        table.add_row(point["size"], f"{point['value']:,}", *times)
    setting.console.print(table)
    case.facts |= {"sizes": sizes, "width": width, "points": points}
    case.answer("all: certified gap", max(point["gap"] for point in points), 1e-4)
    if setting.plot:
        _plot(points).savefig(setting.plot, dpi=150, bbox_inches="tight")
    return case


def _pass(codes: TrainingCodes, labels_pn: torch.Tensor, n_classes: int) -> dict[str, Any]:
    """One L2 for all label sets, the better of two runs; what comes before the passes is shared out among them."""
    runs = [timed(ours, codes, labels_pn, (1e-3,), n_classes) for _ in range(2)]
    facts = facts_of(runs[0][1], min(seconds for seconds, _ in runs))
    return {**facts, "pass_seconds": facts["seconds"] / facts["passes"]}


def _plot(points: Sequence[dict[str, Any]]) -> Figure:
    """One panel a size, logarithmic both ways; dashed: the arithmetic alone."""
    names = list(dict.fromkeys(point["size"] for point in points))
    figure = Figure(figsize=(3 * len(names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        here = [point for point in points if point["size"] == name]
        values = [point["value"] for point in here]
        axes.loglog(values, [1000 * point["pass_seconds"] for point in here], "C0o-")
        axes.loglog(values, [1000 * point["floor"] for point in here], "C0--")
        ticks = sorted({point["value"] for point in here})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45)
        axes.minorticks_off()
        axes.set_xlabel(name)
    figure.axes[0].set_ylabel("ms a pass and probe")
    figure.suptitle("Dashed: the arithmetic alone")
    return figure


def memory(setting: Setting) -> Case:
    """Codes streamed from memory-mapped shards: the peak as N grows, at a tenth of 1.3 million × 768 × 1,000."""
    sizes = (2_000, 8_000) if setting.quick else (32_500, 65_000, 130_000)
    width, n_classes, shard = (64, 20, 1_000) if setting.quick else (768, 1_000, 16_250)
    case, runs = Case("memory"), []
    source = Source(width, n_classes)
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            paths, labels = shards(Path(folder), source, n, n // shard)
            runs.append({"n": n, **in_fresh_process(_memory, paths, labels, n_classes)})
    table = Table(
        "rows",
        "codes, GB",
        "memory before, GB",
        "more at its peak",
        "whole peak with mapped files",
        "seconds",
        "passes",
    )
    for run in runs:
        own = (f"{run['before_gb']:.3f}", f"{run['more_gb']:.3f}", f"{run['peak_gb']:.3f}")
        table.add_row(
            f"{run['n']:,}",
            f"{2e-9 * run['n'] * width:.3f}",
            *own,
            f"{run['seconds']:.1f}",
            f"{run['passes']:.0f}",
        )
    setting.console.print(table)
    case.facts |= {"width": width, "classes": n_classes, "runs": runs}
    case.answer("certified gap", max(run["gap"] for run in runs), STREAMED_GAP)
    case.at_most(
        f"memory added at {sizes[-1]:,} rows / at {sizes[0]:,}", runs[-1]["more_gb"] / runs[0]["more_gb"], 1.1
    )
    return case


STREAMED_GAP = 0.01
"""A few passes are enough to see the memory."""


def _memory(paths: tuple[Path, ...], labels: Ints, n_classes: int) -> dict[str, Any]:
    solver_rows.KEPT = 0  # up to a gigabyte of codes is kept between passes, and all of these would be
    features, cpu = FeatureSet("made", paths), torch.device("cpu")
    adapter = Identity(NoSettings()).fit(TrainingRows(features, None, cpu), seed=0)
    codes = TrainingCodes(Codes(features, adapter, cpu))
    labels_pn = torch.from_numpy(labels)[None]
    ours(TrainingCodes(codes.dense(np.arange(500))), labels_pn[:, :500] % 2, (1.0,), 2)  # loads libraries
    with Memory() as before:
        pass
    with Memory() as during:
        seconds, fitted = timed(ours, codes, labels_pn, (1e-2,), n_classes, tolerance=STREAMED_GAP)
    own = {"before_gb": before.own_gb, "more_gb": during.own_gb - before.own_gb, "peak_gb": peak_gb()}
    return {**facts_of(fitted, seconds), **own}


CASES: dict[str, Callable[[Setting], Case]] = {
    "grid": grid,
    "cifar": cifar,
    "topk": topk,
    "few-shot": few_shot,
    "scaling": scaling,
    "memory": memory,
}


def _names(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(CASES):
        raise argparse.ArgumentTypeError(f"choose from {', '.join(CASES)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: about a minute, and only answers count")
    parser.add_argument("--only", type=_names, default=list(CASES), metavar="NAME,...", help=", ".join(CASES))
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the case `scaling`")
    options = parser.parse_args()

    console, load = Console(width=None if sys.stdout.isatty() else 130), busy()
    setting = Setting(console, options.quick, product_rates(), options.plot)
    products = ", ".join(f"{rate / 1e9:.0f} GF/s in {name}" for name, rate in setting.rates.items())
    console.print(f"{torch.get_num_threads()} threads; products: {products}")
    if load > 0.5:
        console.print(f"load {load:.1f} before the start: other work makes the elapsed times unreliable")
    cases = []
    for name in options.only:
        console.rule(name)
        cases.append(CASES[name](setting))
    goals = [goal for case in cases for goal in case.goals]
    show_goals(console, goals)
    if options.json:
        facts = {
            "benchmark": "probes",
            "quick": options.quick,
            "products": setting.rates,
            "load_before": load,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "machine": platform.processor() or platform.machine(),
            "cases": {case.name: case.facts for case in cases},
            "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
        }
        options.json.write_text(json.dumps(facts, indent=1))
    return int(not all(goal.met for goal in goals if goal.answer or not options.quick))


if __name__ == "__main__":
    sys.exit(main())
