"""What commands say of data that does not suffice, and that doing what they say suffices; choices of domains."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from monoeval.cli.main import app
from monoeval.errors import UsageError
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe_files import load_recipe

FEW_SHOT = ["suite", "--scenario", "few-shot", "--dry-run"]


def refused(command: list[str]) -> str:
    """The sentence of a command that is wrong usage."""
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, UsageError)
    return str(error)


@pytest.mark.parametrize(
    ("limit", "has", "shots"), [(30, 3, "[1]"), (79, 7, "[1, 2]"), (80, 8, "[1, 2, 4]"), (199, 19, "[1, 2, 4, 8]")]
)
def test_too_few_rows_for_the_shots_name_a_limit_and_shots_that_do(
    limit: int, has: int, shots: str, tmp_path: Path
) -> None:
    """16 shots are tuned on 4 further rows, so 10 classes need 200; k shots of at most 4 need 2k."""
    said = refused([*FEW_SHOT, "--limit", str(limit)])
    assert "16 shots need 20 training rows of each class, validation rows among them, and class '" in said
    assert f" of digits has {has}: give --limit 200, or in a recipe {{name: few-shot, shots: {shots}}}." in said
    advice = re.search(r"--limit \d+", said)
    assert advice
    done = CliRunner().invoke(app, [*FEW_SHOT, *advice[0].split(), "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    scenario = {"name": "few-shot", "shots": json.loads(shots), "repeats": 1}
    fields = {"data": {"name": "digits", "limit": limit}, "models": ["test_vit"], "scenarios": [scenario]}
    assert make_plan(load_recipe(fields)).scores
    refused([*FEW_SHOT, "--limit", "199"])


def test_rows_that_no_limit_brings_are_not_promised(tmp_path: Path) -> None:
    for name, count in (("cat", 3), ("dog", 30)):
        for row in range(count):
            path = tmp_path / "pets" / name / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), row, dtype=np.uint8)).save(path)
    pets = [*FEW_SHOT, "--data", str(tmp_path / "pets")]
    assert refused(pets).endswith("class 'cat' of pets has 2: give in a recipe {name: few-shot, shots: [1]}.")
    assert refused([*pets, "--limit", "10"]).endswith("has 2: give in a recipe {name: few-shot, shots: [1]}.")
    assert refused([*pets, "--limit", "2"]).endswith("has 1: give it more images.")


def test_probe_takes_domains_as_suite_does(tmp_path: Path) -> None:
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog"):
            for row in range(4):
                path = tmp_path / "set" / domain / name / f"{row}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8, 3), 20 * row, dtype=np.uint8)).save(path)
    (tmp_path / "model.py").write_text("from torch import nn\ndef make(): return nn.Flatten()\n")
    command = ["probe", "--model", f"{tmp_path}/model.py:make", "--data", str(tmp_path / "set"), "--dry-run"]
    assert "has no domain 'skech', only photo, sketch: did you mean 'sketch'?" in refused(
        [*command, "--domains", "skech"]
    )
    assert "no columns: leave out --domain-column" in refused([*command, "--domain-column", "style"])
    told = [
        json.loads(CliRunner().invoke(app, [*command, *more, "--json", "--out", str(tmp_path)]).stdout)
        for more in ([], ["--domains", "sketch"])
    ]
    assert told[0]["scores in all"] == told[1]["scores in all"]
    assert told[0]["images to extract"] == 2 * told[1]["images to extract"]
