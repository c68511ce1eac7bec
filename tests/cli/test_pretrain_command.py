"""What `monoeval pretrain` takes, refuses and finds again."""

import io
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from monoeval.backbones.resolve import resolve
from monoeval.backbones.spec import BackboneSpec
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
        (("--batch-size", "1"), "less than two images has nothing to tell apart: give --batch-size 2"),
        (("--epochs", "2", "--params", "epochs=3"), "epochs is given twice, in --params and as an option"),
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
            (tmp_path / "photos" / split / f"{place}.png").write_bytes(noise(place))
    asked = ("--data", str(tmp_path / "photos"), "--epochs", "1", *TINY[2:])
    said = pretrain(*asked, "--objective", "ncl", "--out", str(tmp_path / "made"), "--params", "rectifier=relu")
    about = json.loads((tmp_path / "made" / "backbone.json").read_text())
    assert (about["data"]["rows"], about["spec"]["rectifier"]) == (20, "relu")
    assert "--data FOLDER" in said
    with pytest.raises(UsageError, match="no classes to train on"):
        pretrain(*asked, "--objective", "supcon")


def test_a_folder_that_cannot_be_written_is_told_before_the_training(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("monoeval.training.pretrain.pretrain", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(MonoevalError, match=r"Could not write .*file/made .*: choose another folder with --out"):
        pretrain(*TINY, "--out", str(tmp_path / "file" / "made"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UsageError, match=r"--out \. has no name of its own"):
        pretrain(*TINY, "--out", ".")


def test_what_is_left_out_and_how_the_folder_is_named_is_said(tmp_path, monkeypatch, caplog):
    for name in ("cat/1", "cat/2", "cat/3", "cat/4", "dog/5", "dog/6", "dog/7", "dog/8", "loose"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), ord(name[-1]), 0)).save(tmp_path / "photos" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("WARNING", "monoeval"):
        said = pretrain(
            "--data", "photos", "--epochs", "1", "--image-size", "8", "--device", "cpu", "--out", "resnet18"
        )
    assert "1 images in photos lie in no class folder" in caplog.text
    about = json.loads(Path("resnet18/backbone.json").read_text())
    assert f"{about['data']['rows']} of photos ({8 - about['data']['rows']} others" in said
    assert "--model ./resnet18 " in said
    with pytest.raises(UsageError, match=r"write ./resnet18 for the folder, or resnet18\.tv_in1k for the model"):
        resolve(BackboneSpec(model="resnet18"))
    assert resolve(BackboneSpec(model="./resnet18")).kind == "folder"


def test_a_figure_beside_a_table_is_no_image_to_train_on(tmp_path):
    table = {"image": [{"bytes": png, "path": None} for png in map(noise, range(20))], "label": [0, 1] * 10}
    for split in ("train", "test"):
        datasets.Dataset.from_dict(table).to_parquet(tmp_path / "set" / f"{split}-0.parquet")
    (tmp_path / "set" / "figure.png").write_bytes(noise(99))
    pretrain("--data", str(tmp_path / "set"), "--epochs", "1", *TINY[2:], "--out", str(tmp_path / "made"))
    assert json.loads((tmp_path / "made" / "backbone.json").read_text())["data"]["rows"] == 20


def noise(seed: int) -> bytes:
    """A picture as PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()
