"""Runs under shifts of domain and subpopulation, and what the command line says of bad ones."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from monoeval.__main__ import main
from monoeval.report import summarise
from monoeval.suite.run import run

PARITY = {str(digit): "odd" if digit % 2 else "even" for digit in range(10)}


def pictures(root: Path, domains: str = "abc", classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    rng = np.random.default_rng(0)
    for domain in domains:
        for c, name in enumerate(classes):
            (root / domain / name).mkdir(parents=True)
            for row in range(8):
                pixels = rng.integers(0, 90, (8, 8, 3), dtype=np.uint8) + np.uint8(80 * c)
                Image.fromarray(pixels).save(root / domain / name / f"{row}.png")
    return root


def test_domains_and_subclasses_from_the_images_to_the_report(tmp_path: Path) -> None:
    shared: dict[str, Any] = {
        "backbones": {"CL": {"pretrain": {"objective": "simclr", "epochs": 1, "width": 8, "image_size": 8}}},
        "arms": [
            {"name": "CL", "backbone": "CL"},
            {"name": "pca", "backbone": "CL", "method": "pca", "params": {"components": 4}, "baseline": "CL"},
        ],
        "probe": {"l2": [1e-3, 1e-1]},
    }
    data = str(pictures(tmp_path / "set"))
    domains = run({**shared, "seeds": 1, "data": data, "scenarios": ["ood"]}, out=tmp_path / "runs")
    assert not domains.failed
    assert len(domains.rows) == 2 * 3 * 2  # arms × domains × levels
    for row in domains.rows:
        ids = pq.read_table(domains.folder / f"tests/{row.test}.parquet")["row_id"].to_pylist()
        assert {i.split("/")[0] for i in ids} == ({row.series} if row.level else set("abc") - {row.series})
        assert len(ids) == (16 if row.level else 2 * 2 * 2)
    assert len({row.train for row in domains.rows}) == 3
    (table,) = summarise(domains.folder).tables
    assert table.primary_label == "mean accuracy over 3 held-out domains"
    assert table.cells["pca"][table.primary].interval is not None

    shift = {"name": "subpopulation", "hierarchy": PARITY, "train_fine": 3}
    digits = {"name": "digits", "limit": 80}
    raw = {**shared, "arms": shared["arms"][:1]}
    parity = run({**raw, "seeds": 2, "data": digits, "scenarios": [shift]}, out=tmp_path / "runs")
    assert not parity.failed
    assert len({row.train for row in parity.rows}) == 2  # the draws of two seeds
    (table,) = summarise(parity.folder).tables
    assert [c.label for c in table.columns] == ["trained subclasses", "held-out subclasses"]


def said(*arguments: str, code: int, capfd: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> str:
    """What the command says on stderr, in this process, as each of its own takes a second to start."""
    patch.setattr(sys, "argv", ["monoeval", "suite", "--dry-run", *arguments])
    patch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as ended:
        main()
    words = capfd.readouterr().err
    assert ended.value.code == code, words
    assert "Traceback" not in words
    return words


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--data", "./set", "--domains", "a,bb", "--scenario", "ood"), "no domain 'bb', only a, b, c"),
        (("--data", "./set", "--domains", "a", "--scenario", "ood"), "which has one domain (a)"),
        (("--data", "./set/a", "--scenario", "ood"), "which has no domains to leave out: name one with --target"),
        (("--data", "./set", "--scenario", "ood", "--target", "./far/x"), "share 0 of 2 classes by name"),
        (("--data", "./set", "--scenario", "clean", "--target", "a"), "add --scenario ood"),
        (("--data", "./set", "--scenario", "subpopulation"), "lacks classes of set (cat, dog)"),
        (("--domains", "a"), "--domains speaks of a data set"),
        (("--data", "digits", "--domains", "a"), "digits has no domains"),
        (("--recipe", "all.yaml"), "choose a smaller train_fine"),
        (("--recipe", "typo.yaml"), "did you mean '9'"),
    ],
)
def test_bad_shifts_are_one_sentence(
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pictures(tmp_path / "set")
    pictures(tmp_path / "far", "x", ("eel", "fox"))
    for name, count, more in (("all", 5, {}), ("typo", 2, {"99": "odd"})):
        shift = {"name": "subpopulation", "train_fine": count, "hierarchy": {**PARITY, **more}}
        study = {"data": "digits", "models": ["test_vit"], "scenarios": [shift]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.chdir(tmp_path)
    assert says in said(*arguments, code=2, capfd=capfd, patch=monkeypatch)


def test_known_targets_need_the_hub_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub"))
    aimed = ("--data", "./set", "--scenario", "ood", "--target", "imagenet-r")
    words = said(*aimed, code=1, capfd=capfd, patch=monkeypatch)
    assert "'axiong/imagenet-r' is not in the local cache and huggingface.co cannot be reached" in words
