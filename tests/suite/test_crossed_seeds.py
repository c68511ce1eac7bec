"""Seeds of backbones, adapters and draws in every combination: what is planned, once each, and what is refused."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from monoeval.cli.main import app
from monoeval.errors import UsageError
from monoeval.metrics.components import Levels
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe_files import load_recipe
from monoeval.suite.units import Unit, one_adapter_each, units_of, whole

ARMS = [
    {"name": "CL", "backbone": "CL"},
    {"name": "SAE", "backbone": "CL", "method": "sae", "params": {"k": 8}, "baseline": "CL", "controls": ["relu"]},
    {"name": "relu", "backbone": "CL", "method": "relu", "baseline": "CL"},
]
STUDY = {
    "data": {"name": "digits", "limit": 120},
    "backbones": {"CL": {"pretrain": {"objective": "simclr", "epochs": 1}}},
    "arms": ARMS,
    "scenarios": ["clean", {"name": "label-noise", "rates": [0.4]}],
}
GIVEN = {"backbones": {"CL": {"model": "test_vit", "weights": "random"}}}
CROSSED = {"backbones": 3, "adapters": 2, "draws": 4}


def groups_of(**fields):
    return make_plan(load_recipe({**STUDY, **fields})).groups


def test_each_combination_that_differs_is_planned_once() -> None:
    places = [(g.arm.name, g.backbone_seed, g.adapter_seed, g.draw) for g in groups_of(seeds=CROSSED)]
    assert len(set(places)) == len(places)
    of_sae = {place[1:] for place in places if place[0] == "SAE"}
    assert of_sae == {(b, a, d) for b in range(3) for a in range(2) for d in (*range(4), None)}
    for arm in ("CL", "relu"):  # no adapter that a seed draws
        assert {p[1:] for p in places if p[0] == arm} == {
            (b, None, d) for b in range(3) for d in (*range(4), None)
        }
    keys = [key for group in groups_of(seeds=CROSSED) for key in group.keys]
    assert len(set(keys)) == len(keys)


def test_a_given_backbone_is_not_repeated_over() -> None:
    seeds = {
        (g.backbone_seed, g.adapter_seed, g.draw) for g in groups_of(**GIVEN, seeds={"adapters": 2, "draws": 3})
    }
    assert {b for b, _, _ in seeds} == {None}
    assert {(a, d) for _, a, d in seeds} == {(a, d) for a in (None, 0, 1) for d in (None, 0, 1, 2)}


def test_seeds_that_move_together_are_among_the_crossed_ones() -> None:
    """So scores of one study are taken over by the other: their keys are equal."""
    together = {key for group in groups_of(seeds=2) for key in group.keys}
    crossed = {key for group in groups_of(seeds={"backbones": 2, "adapters": 2, "draws": 2}) for key in group.keys}
    assert together < crossed


def test_units() -> None:
    assert units_of(2) == units_of([0, 1]) == (Unit(0, 0, 0), Unit(1, 1, 1))
    grid = units_of({"backbones": 2, "draws": 3})
    assert grid == tuple(Unit(b, 0, d) for b in range(2) for d in range(3))
    assert whole(grid) == (grid, Levels(backbones=2, draws=3))
    assert whole([u for u in grid if u != Unit(1, 0, 2)]) == (
        tuple(Unit(b, 0, d) for b in range(2) for d in range(2)),
        Levels(backbones=2, draws=2),
    )
    assert whole([Unit(1, 1, 1), Unit(0, 0, 0)])[1] == Levels()
    for diagonal in ([Unit(1, 1, 0), Unit(0, 0, 0)], [Unit(1, 0, 1), Unit(0, 0, 0)]):  # one level of the third
        left, levels = whole(diagonal)
        assert len(left) == 1
        assert levels == Levels()
    assert one_adapter_each(units_of({"backbones": 3, "adapters": 2, "draws": 2})) == (
        (Unit(0, 0, 0), Unit(0, 0, 1), Unit(1, 1, 0), Unit(1, 1, 1)),
        Levels(2, 1, 2),
    )
    assert whole([]) == ((), Levels(0, 0, 0))


def test_the_number_of_seeds_of_a_crossed_recipe_can_be_replaced() -> None:
    from monoeval.suite.changes import changed

    recipe = load_recipe({**STUDY, "seeds": CROSSED})
    assert str(recipe.seeds) == "3 backbones × 2 adapters × 4 draws"
    assert changed(recipe).seeds == recipe.seeds
    assert changed(recipe, seeds=3).seeds == 3


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"seeds": {"backbone": 2}}, "line 2: there is no key 'backbone': did you mean 'backbones'?"),
        ({"seeds": {"draws": 0}}, "line 2: draws: input should be greater than or equal to 1."),
        ({"seeds": {"draws": "two"}}, "line 2: draws: input should be a valid integer"),
        ({"seeds": {}}, "seeds: give two or more of backbones, adapters or draws, or write seeds: 1."),
        (
            {"seeds": {"adapters": 1}},
            "seeds: give two or more of backbones, adapters or draws, or write seeds: 1.",
        ),
        ({"seeds": 0}, "line 1: seeds: input should be greater than or equal to 1."),
        ({"seeds": [0, 1]}, "line 1: seeds: input should be a valid integer."),
        (
            {"seeds": CROSSED, **GIVEN},
            "asks for 3 backbones, and the recipe pretrains no backbone, so all would be",
        ),
        ({"seeds": CROSSED, "arms": ARMS[:1]}, "asks for 2 adapters, and the recipe fits no adapter by a seed"),
        (
            {
                "seeds": CROSSED,
                "backbones": {**STUDY["backbones"], "ViT": GIVEN["backbones"]["CL"]},
                "arms": [*ARMS, {"name": "as", "backbone": "ViT", "method": "random-topk", "match": "SAE"}],
            },
            "as has one adapter a seed, and SAE, which it matches, one for each of 3 backbones: leave out match",
        ),
        ({"seeds": CROSSED, "scenarios": ["clean"]}, "4 draws, and the recipe has no scenario that draws noise"),
    ],
)
def test_a_wrong_design_is_one_sentence(tmp_path: Path, fields: dict, sentence: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"seeds": None, **STUDY, **fields}, sort_keys=False))  # seeds on line 1
    found = CliRunner().invoke(app, ["suite", "--recipe", str(path), "--dry-run"])
    assert isinstance(found.exception, UsageError)
    assert sentence in str(found.exception)
    assert "\n" not in str(found.exception)


def test_what_would_be_done_says_how_seeds_are_crossed(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "seeds": CROSSED}))
    found = CliRunner().invoke(
        app, ["suite", "--recipe", str(path), "--dry-run", "--json", "--out", str(tmp_path)]
    )
    assert found.exit_code == 0
    assert '"seeds": "3 backbones × 2 adapters × 4 draws"' in found.stdout
    assert '"backbones to pretrain": 3' in found.stdout
