"""What the training of a TopK autoencoder is worth on real features, as its settings leave their defaults.

Run with `uv run python tests/studies/schedule.py --data cifar100 [--rows N,...] [--only steps,k,...]`. One
`tiny` network is pretrained on all training images; each autoencoder learns from N of them. Judged are test
images: the share of their variance that is explained, the latents that never fire on them, and how many a ridge
probe gets right that learned from the codes of the same N. One setting is changed at a time; two seeds each.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from monoeval.adapters.base import Adapter, Codes, SparseRows
from monoeval.adapters.dictionary import Schedule
from monoeval.adapters.registry import build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.sae import TopKSAE
from monoeval.adapters.settings import TrainedDictionarySettings
from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.extract import extract
from monoeval.backbones.features import FeatureSet
from monoeval.backbones.load import load_backbone
from monoeval.backbones.spec import BackboneSpec, PretrainSpec
from monoeval.data.images import Data, DataSpec, Ints
from monoeval.data.load import load_data
from monoeval.probes.codes import TrainingCodes
from monoeval.probes.fit import fit_probes
from monoeval.probes.problem import Problem
from monoeval.probes.spec import Ridge
from monoeval.training.pretrain import pretrain

CPU = torch.device("cpu")
SEEDS = (0, 1)
WIDTH = 8


def settings(rows: int, features: int) -> dict[str, dict[str, Any]]:
    """What is tried: the defaults, and one departure at a time."""
    usual = Schedule.of(TrainedDictionarySettings(), rows, WIDTH * features)
    tried: dict[str, dict[str, Any]] = {"the defaults": {}}
    for share in (0.25, 0.5, 2):
        tried[f"steps × {share:g}"] = {"steps": round(share * usual.steps)}
    for share in (0.25, 0.5, 2):
        tried[f"learning rate × {share:g}"] = {"learning_rate": share * usual.learning_rate}
    for share in (0.5, 2):
        tried[f"batch × {share:g}"] = {"batch_size": round(share * usual.batch_size), "steps": usual.steps}
    tried |= {f"k = {k}": {"k": k} for k in (8, 16, 64)}
    tried |= {f"width × {factor}": {"width_factor": factor} for factor in (2, 4, 16)}
    tried |= {f"dead after {passes:g} passes": {"dead_epochs": passes} for passes in (0.25, 4)}
    return tried | {"no AuxK": {"aux_weight": 0}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a name or a folder, as of monoeval's own option")
    parser.add_argument("--rows", default="1500,5000,40000", help="training rows of the autoencoders")
    parser.add_argument("--only", default="", help="beside the defaults, settings whose names begin like this")
    parser.add_argument("--epochs", type=int, default=10, help="of the network's pretraining")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    asked = parser.parse_args()
    data = load_data(DataSpec(name=asked.data))
    train_nd, test = features(data, asked.epochs)
    order = np.random.default_rng(0).permutation(len(train_nd))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in map(int, asked.rows.split(",")):
            chosen = order[:rows]
            path = Path(folder) / f"{rows}.npy"
            np.save(path, train_nd[chosen].numpy())
            train = FeatureSet("train", (path,))
            lines = study(data, train, chosen, test, tuple(asked.only.split(",")))
            show(lines, f"{rows:,} rows of {train.width} features")
            found += lines
            if asked.json:
                asked.json.write_text(json.dumps(found, indent=1))


def features(data: Data, epochs: int) -> tuple[Tensor, FeatureSet]:
    """Training features [N, D] and those of the test images, of a small network pretrained on the former."""
    spec = PretrainSpec(objective="simclr", epochs=epochs, image_size=32, flip=True, precision="auto")
    folder = pretrain(spec, data.train, seed=0, device=CPU)
    backbone = load_backbone(BackboneSpec(model=str(folder)), device=CPU)
    train, test = (extract(backbone, folder.name, images, [None])[0] for images in (data.train, data.test))
    return train.load(), test


def study(
    data: Data, train: FeatureSet, chosen: Ints, test: FeatureSet, only: tuple[str, ...]
) -> list[dict[str, Any]]:
    """A line for each setting whose name begins like one of `only`, the defaults first."""
    lines = []
    for name, params in settings(train.n, train.width).items():
        if params and not name.startswith(only):
            continue
        members = [build(AdapterSpec(method="sae", params={"width_factor": WIDTH, **params})) for _ in SEEDS]
        rows = TrainingRows(train, None, CPU)
        started = time.perf_counter()
        TopKSAE.fit_together([m for m in members if isinstance(m, TopKSAE)], rows, SEEDS)
        seconds = time.perf_counter() - started
        each = [judged(member, data, train, chosen, test) for member in members]
        line = {what: [one[what] for one in each] for what in each[0]}
        lines.append({"rows": train.n, "setting": name, **params, "seconds": seconds, **line})
    return lines


def judged(adapter: Adapter, data: Data, train: FeatureSet, chosen: Ints, test: FeatureSet) -> dict[str, float]:
    """Explained variance, dead share and accuracy on the test images."""
    problem = Problem(np.arange(train.n), data.train.labels[chosen])
    probes = fit_probes(
        TrainingCodes.of(Codes(train, adapter, CPU)), [problem], len(data.train.class_names), Ridge()
    )
    missed, fired, right, x_nd = 0.0, torch.zeros(adapter.width, dtype=torch.bool), [], test.load()
    for x in x_nd.split(4096):
        z = adapter.encode(x)
        rebuilt = adapter.decode(z)
        assert isinstance(z, SparseRows)
        assert rebuilt is not None
        missed += float((x - rebuilt).square().sum())
        fired[z.indices[z.values > 0]] = True
        right.append(probes.logits(z, [0])[:, 0].argmax(1))
    return {
        "explained": 1 - missed / float((x_nd - x_nd.mean(0)).square().sum()),
        "dead": 1 - float(fired.float().mean()),
        "accuracy": float((torch.cat(right).numpy() == data.test.labels).mean()),
    }


def show(lines: list[dict[str, Any]], title: str) -> None:
    table = Table("setting", "explained variance", "dead, %", "accuracy, %", "s, both seeds", title=title)
    for line in lines:
        dead, accuracy = (", ".join(f"{100 * of:.1f}" for of in line[what]) for what in ("dead", "accuracy"))
        explained = ", ".join(f"{of:.4f}" for of in line["explained"])
        table.add_row(line["setting"], explained, dead, accuracy, f"{line['seconds']:.1f}")
    Console(width=115).print(table)


if __name__ == "__main__":
    main()
