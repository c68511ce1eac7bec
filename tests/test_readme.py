"""What the README says can be typed: its commands, recipes, tables, and its scenario of another package."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from monoeval.adapters.registry import METHODS
from monoeval.backbones.aliases import describe
from monoeval.backbones.tables import timm_names
from monoeval.cli import options
from monoeval.cli.main import app
from monoeval.data import loaders
from monoeval.data.embedded import digits
from monoeval.data.images import DataSpec
from monoeval.data.load import DATASETS
from monoeval.probes.spec import PROBES
from monoeval.scenarios import SCENARIOS as BUILT_IN
from monoeval.scenarios import registry
from monoeval.suite import recipe_files, trial_rows

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
COMMANDS = [
    line.split(" && ")[-1].removeprefix("uv run ")
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if "monoeval " in line
] + [code for code in re.findall(r"`((?:uv run )?monoeval [^`]*)`", PROSE) if "…" not in code]
RECIPES = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
GROUP: Any = typer.main.get_command(app)  # whose classes are click's or typer's own, by version


def table_under(heading: str) -> list[list[str]]:
    """The cells of the first table of a section, without its two lines of heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What a command makes of its arguments; it is not run."""
    command, context = GROUP, typer.Context(GROUP)
    while hasattr(command, "commands"):
        name, command, arguments = command.resolve_command(context, arguments)
    values: dict[str, Any] = command.make_context(name, arguments, parent=context).params
    return values


def names(values: dict[str, Any], option: str) -> list[str]:
    given = values.get(option) or []
    return options.split_commas([given] if isinstance(given, str) else given)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_can_be_typed_and_names_what_exists(line: str) -> None:
    values = parsed(shlex.split(line, comments=True)[1:])
    assert {*names(values, "method")} <= METHODS.keys()
    assert {*names(values, "scenario")} <= BUILT_IN.keys()
    assert {*names(values, "probe")} <= PROBES.keys()
    assert {*names(values, "data")} - DATASETS.keys() <= {"./photos"}
    assert {*names(values, "model")} - describe().keys() - {*timm_names()} <= {"./ncl18", "tiny"}
    if "recipe" in values:
        assert values["recipe"] in {*recipe_files.recipes(), "mine.yaml"}


def test_the_readme_has_commands_and_recipes_to_look_at() -> None:
    assert len(COMMANDS) > 10
    assert len(RECIPES) > 3


def options_of(command: Any) -> Iterator[str]:
    for one in getattr(command, "commands", {}).values():
        yield from options_of(one)
    for parameter in command.params:
        yield from parameter.opts


def test_every_option_that_is_named_exists() -> None:
    named = {option for code in re.findall(r"`([^`]*)`", PROSE) for option in re.findall(r"--[a-z-]+", code)}
    assert len(named) > 10
    assert named <= {*options_of(GROUP), "--help", "--nproc-per-node"}  # the last is torchrun's


@pytest.mark.parametrize("text", RECIPES)
def test_every_yaml_block_is_a_part_of_a_recipe(text: str) -> None:
    fields = yaml.load(text, Loader=recipe_files._Loader)
    if "arms" in fields:
        fields.setdefault("backbones", {arm["backbone"]: {"model": "resnet18"} for arm in fields["arms"]})
    elif "models" not in fields:
        fields["models"] = ["resnet18"]
    fields.setdefault("scenarios", ["clean"])
    assert recipe_files.load_recipe(fields).resolved().arms


def test_pieces_of_recipes_in_the_text_are_read() -> None:
    code = [c for c in re.findall(r"`([^`]*)`", PROSE) if re.match(r"(family|margin): ", c)]
    code.append("probe: " + next(c for c in re.findall(r"`([^`]*)`", PROSE) if c.startswith("{kind: finetune")))
    pieces = {name: value for text in code for name, value in yaml.safe_load(text).items()}
    assert pieces.keys() == {"family", "margin", "probe"}
    tuned = {"name": "tuned", "backbone": "CL", "probe": pieces.pop("probe")}
    quickstart = recipe_files.load_recipe("quickstart")
    fields = quickstart.model_dump(mode="json") | pieces
    fields["arms"].append(tuned)
    assert recipe_files.load_recipe(fields).resolved().family


def test_the_table_of_scenarios_is_whole_and_its_settings_and_protocols_exist() -> None:
    rows = table_under("Scenarios")
    assert [row[0].strip("`") for row in rows] == [*BUILT_IN]
    for name, _, settings, protocol in rows:
        scenario = BUILT_IN[name.strip("`")]
        assert set(re.findall(r"`(\w+)`", settings)) == scenario.model_fields.keys() - {"name"}
        made = {trial.protocol for trial in scenario().trials(DataSpec(name="digits"), 0)}
        # a corruption's table and size are known when it runs
        assert re.sub(r"imagenet-c\.(\w+/.*)/224", r"\1", protocol.strip("`")) in made


def test_the_table_of_probes_is_whole() -> None:
    assert {kind for row in table_under("Probes") for kind in re.findall(r"`([\w-]+)`", row[0])} == {*PROBES}


def test_the_table_of_commands_is_whole() -> None:
    told = " ".join(row[0] for row in table_under("Commands and files"))
    assert all(re.search(rf"[` ]{name}\b", told) for name in GROUP.commands)


def test_the_scenario_and_the_data_set_of_another_package_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = README.split("A scenario is settings with trials")[1]
    module, entries = re.findall(r"```(?:python|toml)\n(.*?)```", text, re.DOTALL)[:2]
    (tmp_path / "my_study.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    points = tomllib.loads(entries)["project"]["entry-points"]
    ((name, target),) = points[registry.GROUP].items()
    entry = EntryPoint(name, target, registry.GROUP)
    scenarios, refused = registry.plugins.collect("scenario", [entry], {}, registry._scenario)
    assert not refused
    ((called, function),) = points[loaders.GROUP].items()
    found, refused = loaders.collect([EntryPoint(called, function, loaders.GROUP)], DATASETS)
    assert not refused
    data = loaders.load(found[called], DataSpec(name=called))
    assert len(data.train) == -(-len(digits().train) // 5)
    assert len(data.test) == -(-len(digits().test) // 5)
    (trial,) = scenarios[name]().trials(DataSpec(name="digits", limit=100), 0)
    trial_rows.check(trial)
    rows, *_ = trial_rows.fitted_rows(trial)
    assert len(rows) == 50
