"""What timm and open_clip know, read from their source text, because importing them takes seconds."""

import ast
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from monoeval.errors import MonoevalError


def package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MonoevalError(f"The package {name} is not installed: install monoeval again.")
    return Path(spec.submodule_search_locations[0])


@cache
def timm_names() -> frozenset[str]:
    """Architectures that timm defines, each a function of its name, and names it keeps for old scripts."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (package("timm") / "models").glob("*.py"))
    replaced = re.findall(r"register_model_deprecations\(__name__, \{(.*?)\}\)", text, re.DOTALL)
    deprecated = re.findall(r"^\s+['\"](\w+)['\"] ?: ", "\n".join(replaced), re.MULTILINE)
    return frozenset(re.findall(r"^def ([a-z]\w+)\(\s*pretrained\b", text, re.MULTILINE)) | frozenset(deprecated)


@dataclass(frozen=True)
class Weights:
    """Where the weights of an open_clip tag lie (empty: not on the hub), and how they were trained."""

    hub_id: str
    quick_gelu: bool


def quick_gelu(architecture: str) -> bool:
    """Whether open_clip builds `architecture` with QuickGELU."""
    config = package("open_clip") / "model_configs" / f"{architecture}.json"
    return config.is_file() and bool(json.loads(config.read_text(encoding="utf-8")).get("quick_gelu"))


@cache
def open_clip_tags() -> dict[str, dict[str, Weights]]:
    """Architecture → tag → weights, from open_clip's table of weights.

    The table is `_PRETRAINED = {"ViT-B-32": _VITB32, …}` with `_VITB32 = dict(openai=_pcfg(hf_hub=…), …)`; each
    tag that was trained with QuickGELU is also found under the architecture's `-quickgelu` name.
    """
    text = (package("open_clip") / "pretrained.py").read_text(encoding="utf-8")
    named = {n.targets[0].id: n.value for n in ast.parse(text).body
             if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}  # fmt: skip
    tags: dict[str, dict[str, Weights]] = {}
    table = named.get("_PRETRAINED")
    for name, value in zip(table.keys, table.values, strict=True) if isinstance(table, ast.Dict) else []:
        entries = named.get(value.id) if isinstance(value, ast.Name) else value
        if not isinstance(name, ast.Constant) or not isinstance(entries, ast.Call):
            continue
        for entry in entries.keywords:
            facts = {k.arg: k.value.value for k in getattr(entry.value, "keywords", [])
                     if isinstance(k.value, ast.Constant)}  # fmt: skip
            hub_id = "/".join(str(facts.get("hf_hub", "")).split("/")[:2])
            weights = Weights(hub_id, bool(facts.get("quick_gelu")))
            architecture = str(name.value)
            tags.setdefault(architecture, {})[str(entry.arg)] = weights
            if weights.quick_gelu:
                tags.setdefault(f"{architecture}-quickgelu", {})[str(entry.arg)] = weights
    return tags
