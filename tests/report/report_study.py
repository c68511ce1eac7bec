"""A synthetic run folder with planted effects."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from monoeval.suite.ledger import SCHEMA, Row

CLASSES = 10


class RunFolder:
    """Writes a run folder as the suite does, one score at a time."""

    def __init__(self, folder: Path, arms: Sequence[dict[str, Any]], scenarios: Sequence[str], seeds: int) -> None:
        self.folder, self.arms = folder, {arm["name"]: arm for arm in arms}
        (folder / "tests").mkdir(parents=True)
        (folder / "predictions").mkdir()
        recipe = {
            "name": "synthetic",
            "note": None,
            "seeds": seeds,
            "arms": list(arms),
            "scenarios": [{"name": s} for s in scenarios],
            "environment": {"versions": {"numpy": np.__version__}, "hardware": "2 cores"},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))
        self.labels: dict[str, np.ndarray] = {}
        self.count = 0

    def note(self, text: str) -> None:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "note": text}, sort_keys=False))

    def test(self, name: str, ids: Sequence[str], labels: np.ndarray, groups: np.ndarray | None = None) -> None:
        self.labels[name] = labels
        group = pa.nulls(len(labels), pa.int64()) if groups is None else pa.array(groups)
        table = pa.table({"row_id": list(ids), "label": labels, "group": group})
        pq.write_table(table, self.folder / "tests" / f"{name}.parquet")

    def score(self, arm: str, correct: np.ndarray | None, test: str = "t", **fields: Any) -> None:
        """Add a score whose rows are `correct` [R]; None: a score that failed."""
        key = f"k{self.count:06d}"
        self.count += 1
        about = self.arms[arm]
        row = {
            "schema_version": SCHEMA, "key": key, "arm": arm, "baseline": about.get("baseline"),
            "controls": tuple(about.get("controls", ())), "model": about["backbone"], "method": about["method"],
            "probe_kind": about.get("probe", {}).get("kind", "logistic"),
            "conditional": False, "backbone_seed": None, "adapter_seed": None, "draw": None,
            "scenario": "clean", "series": "clean", "level": 0.0, "protocol": "clean",
        } | fields  # fmt: skip
        if correct is not None:
            labels = self.labels[test]
            prediction = np.where(correct, labels, (labels + 1) % CLASSES).astype(np.int32)
            zeros = np.zeros(len(labels), dtype=np.float32)
            columns = {"row": np.arange(len(labels), dtype=np.int32), "prediction": prediction}
            columns |= {"log_loss": zeros, "max_softmax": zeros, "energy": zeros}
            pq.write_table(pa.table(columns), self.folder / "predictions" / f"{key}.parquet")
            row |= {"test": test, "predictions": f"predictions/{key}.parquet", "rows": len(labels)}
            row |= {"accuracy": float(np.mean(correct)), "log_loss": 0.0}
        else:
            row = {"status": "failed", "error": "out of memory"} | row
        with (self.folder / "results.jsonl").open("a") as stream:
            stream.write(Row.model_validate(row).model_dump_json() + "\n")


ARMS = [
    {"name": "raw", "backbone": "net", "method": "identity"},
    {"name": "random", "backbone": "net", "method": "random-topk", "baseline": "raw"},
    {"name": "sae", "backbone": "net", "method": "sae", "baseline": "raw", "controls": ["random"]},
]


def study(
    run: RunFolder, *, rows: int = 300, seeds: int = 3, corruptions: Sequence[str] = ("fog", "snow")
) -> RunFolder:
    """Every scenario for every arm; `sae` is planted 8 points above `raw`, `random` is level with it."""
    generator = np.random.default_rng(0)
    ids = [f"digits/test/{i}" for i in range(rows)]
    run.test("t", ids, generator.integers(0, CLASSES, rows))
    run.test("far", [f"printed/{i}" for i in range(rows // 2)], generator.integers(0, CLASSES, rows // 2))
    ease = generator.uniform(size=rows)

    def correct(arm: str, accuracy: float, n: int) -> np.ndarray:
        gain = 0.08 if arm == "sae" else 0.0
        return ease[:n] + 0.1 * generator.normal(size=n) < accuracy + gain

    for arm, about in run.arms.items():
        method = about["method"]
        adapter = {"explained_variance": 0.9, "explained_variance_untrained": 0.2, "l0": 32.0, "dead_share": 0.05}
        for seed in range(seeds) if method != "identity" else [None]:
            fitted: dict[str, Any] = {"adapter_seed": seed, "adapter": adapter if method == "sae" else {}}
            fitted["conditional"] = True
            run.score(arm, correct(arm, 0.85, rows), **fitted)
            for level in (0.0, 0.2, 0.6):
                for kind in ("gaussian", "uniform"):
                    about_noise = {"series": kind, "level": level, "protocol": f"input-noise/{kind}@{level:g}"}
                    run.score(
                        arm, correct(arm, 0.85 - level / 2, rows), scenario="input-noise", **about_noise, **fitted
                    )
            for kind in corruptions:
                for level in range(6):
                    protocol = f"corruption/cifar-c.onthefly/{kind}@{level}/32"
                    place = {"scenario": "corruption", "series": kind, "level": level, "protocol": protocol}
                    run.score(arm, correct(arm, 0.85 - level / 12, rows), **place, **fitted)
            for level, test, n in ((0.0, "t", rows), (1.0, "far", rows // 2)):
                place = {"scenario": "ood", "series": "digits → digits-printed", "level": level}
                place["protocol"] = f"ood/digits/{'digits-printed' if level else 'digits'}"
                run.score(arm, correct(arm, 0.8 - level / 3, n), test, **place, **fitted)
            for draw in range(seeds) if seed is None else [seed]:
                for rate, signal in ((0.0, 1.0), (0.4, 0.56), (0.8, 0.11), (0.9, 0.0)):
                    place = {
                        "scenario": "label-noise",
                        "series": "symmetric",
                        "level": rate,
                        "label_signal": signal,
                    }
                    place |= {"protocol": f"label-noise/symmetric@{rate:g}", "draw": draw if rate else None}
                    if rate or draw in (0, seed):
                        run.score(arm, correct(arm, max(0.85 - rate * 0.7, 0.1), rows), **place, **fitted)
                for shots in (1, 4, 16):
                    for repeat in range(2):
                        place = {"scenario": "few-shot", "series": "shots", "level": shots, "draw": draw}
                        place |= {"protocol": f"few-shot/unlabelled-train@{shots}", "repeat": repeat}
                        run.score(arm, correct(arm, 0.3 + shots / 40, rows), **place, **fitted)
    return run


SCENARIOS = ("clean", "label-noise", "few-shot", "input-noise", "corruption", "ood")
