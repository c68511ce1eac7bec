"""The family and the margin of a recipe, as a person types them."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from monoeval.__main__ import main
from monoeval.errors import UsageError
from monoeval.suite.changes import changed
from monoeval.suite.recipe import Claim
from monoeval.suite.recipe_files import load_recipe

STUDY: dict[str, Any] = {
    "name": "study",
    "backbones": {"net": {"model": "test_resnet", "weights": "random"}},
    "arms": [
        {"name": "raw", "backbone": "net"},
        {"name": "random", "backbone": "net", "method": "random-topk", "baseline": "raw"},
        {"name": "sae", "backbone": "net", "method": "sae", "baseline": "raw", "controls": ["random"]},
    ],
    "scenarios": ["clean", "few-shot"],
}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"family": ["clear"]}, "the family names clear, which is no scenario of this recipe"),
        ({"family": [{"scenario": "clean", "against": "raw"}]}, "name the arm, too"),
        ({"family": [{"scenario": "clean", "arm": "SAE"}]}, "There is no arm named 'SAE'"),
        ({"family": [{"scenario": "clean", "arm": "raw"}]}, "raw has no baseline"),
        (
            {"family": [{"scenario": "clean", "arm": "sae", "against": "pca"}]},
            "neither its baseline nor one of its controls: name one of raw, random.",
        ),
        ({"family": [{"scenario": "clean", "arms": "sae"}]}, "there is no key 'arms': did you mean 'arm'?"),
        ({"margin": 0}, "margin: input should be greater than 0"),
        ({"margin": "wide"}, "margin: input should be a valid number"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    fields: dict[str, Any],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tmp_path / "study.yaml"
    recipe.write_text(yaml.safe_dump({**STUDY, **fields}))
    monkeypatch.setattr(sys, "argv", ["monoeval", "suite", "--recipe", str(recipe), "--dry-run"])
    with pytest.raises(SystemExit) as stopped:
        main()
    error = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 2
    assert says in error
    assert "Traceback" not in error


def test_names_of_scenarios_and_comparisons_make_a_family() -> None:
    recipe = load_recipe(
        {**STUDY, "family": ["clean", {"scenario": "few-shot", "arm": "sae", "against": "random"}]}
    )
    found = recipe.resolved().family
    assert found == (Claim(scenario="clean"), Claim(scenario="few-shot", arm="sae", against="random"))
    # it is named before running: another family, or margin, is another study
    keys = {recipe.key(), load_recipe(STUDY).key(), load_recipe({**STUDY, "margin": 2}).key()}
    assert len(keys) == 3


def test_the_command_line_drops_what_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe({**STUDY, "family": ["clean", {"scenario": "few-shot", "arm": "sae"}]})
    assert changed(recipe).family == recipe.family
    with caplog.at_level(logging.WARNING, "monoeval"):
        assert changed(recipe, scenarios=["few-shot"]).family == (Claim(scenario="few-shot", arm="sae"),)
    assert "loses" in caplog.text


def test_arms_of_expanded_recipes_can_be_named() -> None:
    fields = {
        "models": [{"model": "test_resnet", "weights": "random"}],
        "methods": ["sae"],
        "scenarios": ["clean"],
    }
    named = {
        **fields,
        "family": [{"scenario": "clean", "arm": "test_resnet + sae", "against": "test_resnet + relu"}],
    }
    assert load_recipe(named).resolved().family[0].against == "test_resnet + relu"
    with pytest.raises(UsageError, match="test_resnet"):
        load_recipe({**named, "family": [{"scenario": "clean", "arm": "sae"}]}).resolved()
