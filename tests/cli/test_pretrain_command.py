"""What `monoeval pretrain` takes, refuses and finds again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from monoeval.cli.main import app
from monoeval.errors import MonoevalError, UsageError

TINY = ("--limit", "40", "--batch-size", "16", "--image-size", "8", "--device", "cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "cache"))


def pretrain(*arguments: str) -> str:
    """What the command prints; what it refuses is raised."""
    done = CliRunner().invoke(app, ["pretrain", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--objective", "simcrl"), "no objective named 'simcrl': did you mean 'simclr'"),
        (("--model", "resnet81"), "no network named 'resnet81' to pretrain: did you mean 'resnet18'"),
        (("--batch-size", "1"), "batch of one image has nothing to tell it from: give --batch-size 2"),
        (("--paper",), "--paper is for the networks of timm"),
        (("--params", "width"), "NAME=VALUE"),
        (("--params", "widht=3"), "no setting named 'widht': did you mean 'width'"),
        (("--params", "width=many"), "width cannot be 'many'"),
        (("--params", "optimiser=adam"), "optimiser cannot be 'adam'"),
        (("--params", "crop=2"), "crop cannot be '2'"),
        (("--params", "stem=cifar"), "^stem is of the ResNets of timm: leave it out, or choose a network such as"),
        (("--params", "learning_rate=inf"), "learning_rate cannot be 'inf': input should be a finite number"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments, says):
    with pytest.raises(UsageError, match=says):
        pretrain(*arguments)


def test_a_rate_that_breaks_the_weights_is_what_the_error_is_about():
    broken = ("--params", "epochs=1,learning_rate=1e30", "--limit", "120", "--device", "cpu")
    with pytest.raises(MonoevalError, match=r"after step 1 of 1: lower learning_rate \(now 1e\+30\)") as failed:
        pretrain("--data", "digits", *broken)
    assert "--precision" not in str(failed.value)


def test_settings_reach_the_network_and_a_folder_is_found_again(tmp_path):
    out = tmp_path / "made"
    asked = (
        *TINY,
        "--objective",
        "nscl",
        "--epochs",
        "1",
        "--params",
        "width=16,optimiser=lars",
        "--out",
        str(out),
    )
    pretrain(*asked)
    spec = json.loads((out / "backbone.json").read_text())["spec"]
    assert (spec["objective"], spec["width"], spec["optimiser"], spec["epochs"]) == ("nscl", 16, "lars", 1)
    written = (out / "backbone.safetensors").stat().st_mtime_ns
    assert "Use it" in pretrain(*asked)
    assert (out / "backbone.safetensors").stat().st_mtime_ns == written
    about = json.loads((out / "backbone.json").read_text())
    del about["spec"]["rectifier"]  # as of a network from before there was a choice
    (out / "backbone.json").write_text(json.dumps(about))
    assert "Use it" in pretrain(*asked)
    with pytest.raises(UsageError, match="of epochs 1 and not 2: choose another --out"):
        pretrain(*asked, "--epochs", "2")
    with pytest.raises(UsageError, match="of seed 0 and not 1"):
        pretrain(*asked, "--seed", "1")
    with pytest.raises(UsageError, match="of other images"):
        pretrain(*asked, "--limit", "30")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no whole pretrained backbone: choose another --out"):
        pretrain(*TINY, "--epochs", "1", "--out", str(tmp_path / "else"))


def test_the_papers_settings_yield_to_those_that_are_given():
    from monoeval.cli.pretrain import _spec

    spec = _spec("ncl", "resnet18", True, {"epochs": 3}, ["hidden=64"])
    assert (spec.epochs, spec.hidden, spec.width, spec.density) == (3, 64, 2048, 1.0)
    assert (spec.optimiser, spec.learning_rate, spec.warm_up, spec.crop) == ("lars", 0.4, 0.05, 0.08)


def test_a_wrong_setting_is_told_without_torch(tmp_path: Path):
    code = (
        "import sys; from monoeval.cli.pretrain import _spec\n"
        "try: _spec('ncl', 'resnet18', False, {}, ['epochs=-1'])\n"
        "except Exception as error: print(error)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert "epochs cannot be '-1'" in done.stdout


def test_images_without_classes_are_trained_on_but_not_by_what_reads_labels(tmp_path):
    for split, n in (("train", 20), ("test", 3)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for place in range(n):
            pixels = np.random.default_rng(place).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / split / f"{place}.png")
    asked = ("--data", str(tmp_path / "photos"), "--epochs", "1", *TINY[2:])
    said = pretrain(*asked, "--objective", "ncl", "--out", str(tmp_path / "made"), "--params", "rectifier=relu")
    about = json.loads((tmp_path / "made" / "backbone.json").read_text())
    assert (about["data"]["rows"], about["spec"]["rectifier"]) == (20, "relu")
    assert "--data FOLDER" in said
    with pytest.raises(UsageError, match="no classes in them"):
        pretrain(*asked, "--objective", "supcon")
