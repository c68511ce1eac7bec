"""False alarms and power on real features: an arm against itself, with other adapter seeds and the same draws.

Run with `uv run python tests/studies/false_alarms.py [--quick] [--json FILE]`. One backbone is pretrained on the
digits. A cluster is a set of three draws of label noise, with adapters of its own for each; a comparison takes two
disjoint sets of three adapters, one for each draw, and asks what a report would: do their mean accuracies over two
noise rates differ? Within a cluster every two sets are compared, so draws and adapters are shared there, not
beyond; all comparisons share the test rows and the backbone, which the rates are conditional on.
"""

import argparse
import json
import logging
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from monoeval.adapters.base import Codes
from monoeval.adapters.registry import build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.extract import extract
from monoeval.backbones.features import FeatureSet
from monoeval.backbones.load import load_backbone
from monoeval.backbones.spec import BackboneSpec, PretrainSpec
from monoeval.data.images import Data, DataSpec
from monoeval.data.label_noise import symmetric
from monoeval.data.load import load_data
from monoeval.keys import draw_seed
from monoeval.metrics.paired import paired_difference
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.problem import Problem
from monoeval.probes.spec import Logistic
from monoeval.training.pretrain import pretrain

UNITS = 3
RATES = (0.4, 0.6)
ARMS = {
    "sae": {"width": 256, "k": 16, "steps": 150},
    "random-topk": {"width": 256, "k": 16},
}
PROBE = Logistic(l2=(1e-3, 1e-2, 1e-1), folds=3)
PLANTED = (0.0, 0.01, 0.03)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="4 clusters: minutes become seconds, figures mean little"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--clusters", type=int, default=20)
    parser.add_argument("--sets", type=int, default=5, help="sets of adapters in a cluster")
    asked = parser.parse_args()
    clusters = 4 if asked.quick else asked.clusters
    logging.getLogger("monoeval").setLevel(logging.ERROR)
    data = load_data(DataSpec(name="digits"))
    train, test = features(data)
    found = []
    for arm in ARMS:
        started = time.perf_counter()
        # [clusters, sets, rates, R, units]
        correct = np.stack([cluster(arm, data, train, test, c, asked.sets) for c in range(clusters)])
        for effect in PLANTED:
            found.append({"arm": arm, "planted": effect, **judged(correct, data.test.groups, effect)})
        found[-1]["seconds"] = time.perf_counter() - started
    show(found)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1))


def features(data: Data) -> tuple[FeatureSet, FeatureSet]:
    """Training and test features of a small network pretrained on the digits."""
    device = torch.device("cpu")
    folder = pretrain(PretrainSpec(objective="simclr"), data.train, seed=0, device=device)
    backbone = load_backbone(BackboneSpec(model=str(folder)), device=device)
    train, test = (extract(backbone, folder.name, images, [None])[0] for images in (data.train, data.test))
    return train, test


def cluster(
    arm: str, data: Data, train: FeatureSet, test: FeatureSet, number: int, sets: int
) -> NDArray[np.bool_]:
    """Correctness [sets, rates, R, units] of adapters with seeds of their own, each set on the same draws."""
    n_classes = len(data.train.class_names)
    made = np.empty((sets, len(RATES), len(data.test.labels), UNITS), dtype=bool)
    for unit in range(UNITS):
        problems = []
        for rate in RATES:
            labels = symmetric(data.train.labels, n_classes, rate, UNITS * number + unit)
            problems.append(Problem(np.arange(len(labels)), labels))
        for which in range(sets):
            seed = draw_seed("false-alarms", arm, number, which, unit) % 2**31
            adapter = build(AdapterSpec(method=arm, params=ARMS[arm]))
            adapter.fit(TrainingRows(train, None, torch.device("cpu")), seed=seed)
            codes = Codes(train, adapter, torch.device("cpu"))
            probes = fit_probes(TrainingCodes.of(codes), problems, n_classes, PROBE)
            chunks = Codes(test, adapter, torch.device("cpu")).chunks()
            logits_npc = torch.cat([probes.logits(chunk, range(len(RATES))) for chunk in chunks])
            predicted_pn = logits_npc.argmax(2).T.numpy()
            made[which, :, :, unit] = predicted_pn == data.test.labels
    return made


def judged(correct: NDArray[np.bool_], groups: NDArray[np.int64] | None, effect: float) -> dict[str, Any]:
    """How often two sets of the same arm differ at 5 %, once `effect` is planted in the first of them."""
    generator = np.random.default_rng(0)
    rates, lows = [], []
    for sets in correct:
        alarms = []
        for one, other in combinations(range(len(sets)), 2):
            planted = plant(sets[one], effect, generator)
            delta = planted.mean(0) - sets[other].mean(0)
            found = paired_difference(delta, groups)
            alarms.append(found.low > 0 if effect else found.p_value < 0.05)
            lows.append(found.mean)
        rates.append(np.mean(alarms))
    rate, error = float(np.mean(rates)), stats.sem(rates)
    least = rate - stats.t.ppf(0.975, len(rates) - 1) * error
    return {
        "clusters": len(correct),
        "comparisons": len(lows),
        "rate": rate,
        "lower_bound": float(max(0.0, least)),
        "accuracy": float(correct.mean()),
        "mean_difference": float(np.mean(lows)),
        "sd_difference": float(np.std(lows)),
    }


def plant(correct_pru: NDArray[np.bool_], effect: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Turn so many wrong rows right that each rate and unit gains `effect`; the same rows where they are wrong."""
    made = correct_pru.copy()
    rows = made.shape[1]
    order = generator.permutation(rows)
    for p in range(made.shape[0]):
        for u in range(made.shape[2]):
            wrong = order[~made[p, order, u]]
            count = int(effect * rows + generator.uniform())  # on average, as rows come in whole numbers
            made[p, wrong[:count], u] = True
    return made


def show(found: list[dict[str, Any]]) -> None:
    table = Table("arm", "planted", "comparisons", "clusters", "rate", "97.5 % lower bound", "asked", "accuracy")
    for line in found:
        asked = "" if line["planted"] else "met" if line["lower_bound"] <= 0.05 else "MISSED"
        table.add_row(
            line["arm"],
            f"{100 * line['planted']:.0f} points" if line["planted"] else "nothing",
            str(line["comparisons"]),
            str(line["clusters"]),
            f"{100 * line['rate']:.1f} %",
            "" if line["planted"] else f"{100 * line['lower_bound']:.1f} %",
            asked,
            f"{100 * line['accuracy']:.1f} %",
        )
    Console(width=115).print(table)


if __name__ == "__main__":
    main()
