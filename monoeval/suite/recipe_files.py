"""Recipes in files: where they lie, and what is wrong in one, by line."""

import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from monoeval.errors import UsageError, nearest, unknown
from monoeval.probes.spec import (
    PROBES,
    TEXT_PROBES,
)
from monoeval.scenarios.registry import SCENARIOS
from monoeval.suite.recipe import Recipe


def recipes() -> dict[str, Path]:
    """Name → file of the recipes that come with the tool (beside the package, or inside it once built)."""
    package = Path(__file__).parents[1]
    folder = next(
        (f for f in (package / "recipes", package.parent / "recipes") if f.is_dir()), package / "recipes"
    )
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number, as YAML 1.2 does; YAML 1.1 takes it for text unless there is a dot."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(source: "str | Path | dict[str, Any] | Recipe") -> Recipe:
    """Read a recipe by name, by path, or from its fields.

    Raises UsageError that names the file, the line and the nearest valid key.
    """
    if isinstance(source, Recipe):
        return source
    if isinstance(source, dict):
        return parse(source, "the recipe", None)
    if not isinstance(source, str | Path):
        raise UsageError(f"A recipe is a name, a file, or a dict of its fields, not {type(source).__name__}.")
    path = Path(source).expanduser()
    if not path.is_file():
        if path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
            raise UsageError(
                f"There is no recipe file {path}: `monoeval list recipes` shows those that come with monoeval."
            )
        known = recipes()
        if str(source) not in known:
            raise unknown("recipe", str(source), known)
        path = known[str(source)]
    try:
        text = path.read_text(encoding="utf-8")
        fields, node = yaml.load(text, Loader=_Loader), yaml.compose(text, Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Could not read the recipe {path} ({error}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path} is not valid YAML{where}: {getattr(error, 'problem', error)}.") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{path} is not a recipe: expected keys such as data, arms and scenarios.")
    fields.pop("environment", None)  # a resolved recipe from a run folder can be run again
    return parse({"name": path.stem, **fields}, str(path), node)


COMMAND = "the command"
"""The source of fields that a command line made."""


def parse(fields: dict[str, Any], source: str, node: yaml.Node | None) -> Recipe:
    try:
        return Recipe.model_validate(fields)
    except ValidationError as invalid:
        error = invalid.errors(include_url=False)[0]
        loc = error["loc"]
        field = str(error.get("ctx", {}).get("discriminator", "")).strip("'")  # by which a union is told apart
        line = _line(node, (*loc, field))
        where = f"{source}, line {line}" if line else source
        path = [part for part in loc if part not in ("", "crossed")]
        if line or source == COMMAND:  # where it is, is said or known: the last key and place in a list do
            path = path[max((i for i, part in enumerate(path) if isinstance(part, str)), default=0) :]
        shown = f"{'.'.join(map(str, path))}: " if path else ""  # else it is of the recipe as a whole
        if error["type"] == "extra_forbidden":
            fields_here = _fields_at(Recipe, loc[:-1])
            near = nearest(str(loc[-1]), fields_here)
            advice = f"did you mean {near!r}?" if near else f"the keys here are {', '.join(fields_here)}."
            raise UsageError(f"{where}: there is no key {str(loc[-1])!r}: {advice}") from invalid
        if error["type"] == "union_tag_invalid":
            if error["ctx"]["tag"] in TEXT_PROBES:
                raise UsageError(
                    f"{where}: {error['ctx']['tag']} reads class names and is no probe of every arm: write "
                    "zero_shot: true, or give it to one arm."
                ) from invalid
            known = ("probe", PROBES) if field == "kind" else ("scenario", SCENARIOS)
            raise UsageError(f"{where}: {unknown(known[0], str(error['ctx']['tag']), known[1])}") from invalid
        if error["type"] == "union_tag_not_found":
            raise UsageError(f"{where}: a scenario needs a name, one of {', '.join(SCENARIOS)}.") from invalid
        message = (
            error["msg"]
            .removeprefix("Value error, ")
            .replace("tuple", "list")
            .replace(" after validation", "")
            .replace(" or object to extract fields from", "")
        )
        raise UsageError(f"{where}: {shown}{message[:1].lower()}{message[1:].rstrip('.')}.") from invalid


def _line(node: yaml.Node | None, loc: tuple[int | str, ...]) -> int | None:
    """The line of the deepest part of `loc` that the file itself holds (pydantic adds tags of its own)."""
    if node is None:
        return None
    line = int(node.start_mark.line) + 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == str(part)]
            if found:
                line, node = int(found[0][0].start_mark.line) + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = int(node.start_mark.line) + 1
    return line


def _fields_at(model: Any, loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are valid at `loc`."""
    models = [model]
    for part in loc:
        inner = [f.annotation for m in models for name, f in m.model_fields.items() if name == part]
        tagged = [m for m in models if part in _tags(m)]
        models = [m for annotation in inner for m in _models_in(annotation)] or tagged or models
    return sorted({name for m in models for name in m.model_fields})


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """What tells `model` from others of its union: the name of a scenario, the kind of a probe."""
    return tuple(
        tag
        for name in ("name", "kind")
        for tag in get_args(getattr(model.model_fields.get(name), "annotation", None))
    )


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
