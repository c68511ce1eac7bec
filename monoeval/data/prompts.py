"""Sentences about an image, one a class: what the text tower of an image-text model is asked."""

from pathlib import Path

import yaml

TEMPLATES = (
    "a photo of a {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""CLIP's plain prompt, and the seven that its authors found to do nearly what all 80 do on ImageNet."""


def read_templates(value: object) -> object:
    """The templates that a recipe gives: a list, one template, or a YAML file with a list of them.

    Raises ValueError for a file that cannot be read; a recipe then holds what the file said, not its name.
    """
    if not isinstance(value, str):
        return value
    if Path(value).suffix not in {".yaml", ".yml"}:
        return [value]
    try:
        found = yaml.safe_load(Path(value).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"the templates {value} cannot be read ({error.__class__.__name__})") from None
    if not isinstance(found, list):
        raise ValueError(f"{value} is no list of templates such as '{TEMPLATES[0]}'")
    return found


def check_template(template: str) -> str:
    """`template` where it has one place for the name; raises ValueError elsewhere."""
    if template.count("{}") != 1:
        raise ValueError(f"the template {template!r} needs one {{}} where the class name goes")
    return template


def prompts(class_name: str, templates: tuple[str, ...]) -> list[str]:
    """The class in every template, in their order; underscores of its name are spaces."""
    return [template.replace("{}", class_name.replace("_", " ")) for template in templates]
