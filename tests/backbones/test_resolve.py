"""Names: aliases against the libraries' own lists, identities, and weights that cannot be got."""

import os
import subprocess
import sys
import time
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from timm.models._registry import _deprecated_models

from monoeval.backbones.aliases import ALIASES, describe
from monoeval.backbones.resolve import check_available, identity, resolve
from monoeval.backbones.spec import BackboneSpec
from monoeval.backbones.tables import open_clip_tags, quick_gelu, timm_names
from monoeval.errors import MonoevalError, UsageError


def spec(model, **more):
    return BackboneSpec(model=model, **more)


def test_every_alias_exists_and_is_tagged():
    assert len(ALIASES) >= 30
    tagged = set(timm.list_models(pretrained=True))
    clip = {f"open_clip:{architecture}@{tag}" for architecture, tag in open_clip.list_pretrained()}
    for alias, name in ALIASES.items():
        assert name in (clip if name.startswith("open_clip:") else tagged), alias
        assert resolve(spec(alias)).name == name
        assert resolve(spec(alias)).tag, alias
    assert describe().keys() == ALIASES.keys()


def test_tables_agree_with_the_libraries():
    named = {name.partition(".")[0] for name in _deprecated_models}
    assert set(timm.list_models()) | named <= timm_names()
    assert not {"pretrained_cfg", "pretrained_cfg_for_features"} & timm_names()  # a key and a helper
    read = open_clip_tags()
    assert {(a, tag) for a, tags in read.items() for tag in tags} == set(open_clip.list_pretrained())
    for architecture, tag in open_clip.list_pretrained():
        config = open_clip.get_pretrained_cfg(architecture, tag)
        assert read[architecture][tag].quick_gelu == bool(config.get("quick_gelu", False))
        assert (config.get("hf_hub") or "").startswith(read[architecture][tag].hub_id)
        built = bool(open_clip.get_model_config(architecture).get("quick_gelu", False))
        assert quick_gelu(architecture) == built


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("vit_b61", "did you mean 'vit_b16'?"),
        ("open_clip:ViT-B-33@openai", "did you mean 'ViT-B-32'?"),
        ("open_clip:ViT-B-32@laion2b", "weight tag"),
        ("open_clip:ViT-B-32", "names no weights"),
        ("open_clip:ViT-B-32@openai", "write open_clip:ViT-B-32-quickgelu@openai"),
        ("no/such/folder", "There is no folder"),
        ("nothere.py:make", "There is no file"),
        ("nothere.py", "nothere.py:NAME"),
        (None, "--model"),
    ],
)
def test_wrong_names(model, words):
    with pytest.raises(UsageError) as caught:
        resolve(spec(model))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_identity_follows_contents_and_not_places(tmp_path: Path):
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "net.py").write_text("def make(): ...\n")
        torch.save({"w": torch.ones(2)}, folder / "w.pt")
    same = [identity(spec(f"{f / 'net.py'}:make", weights=str(f / "w.pt"))) for f in (first, second)]
    assert same[0] == same[1]
    (second / "net.py").write_text("def make(): return 1\n")
    assert identity(spec(f"{second / 'net.py'}:make")) != identity(spec(f"{first / 'net.py'}:make"))
    base = spec("test_vit", weights="random")
    others = {"layer": "1", "pool": "avg", "image_size": 32, "precision": "fp32", "weights": "pretrained"}
    for name, value in others.items():
        assert identity(base.model_copy(update={name: value})) != identity(base), name
    assert identity(base, 1) != identity(base, 0) == identity(base)
    with pytest.raises(UsageError, match="no checkpoint"):
        identity(spec("test_vit", weights="missing.pt"))


def test_weights_in_the_hub_cache_are_found(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = spec("resnet18.a1_in1k")
    with pytest.raises(MonoevalError, match="--weights random"):
        check_available(name)
    snapshot = tmp_path / "models--timm--resnet18.a1_in1k" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    with pytest.raises(MonoevalError):
        check_available(name)
    (snapshot / "model.safetensors").write_bytes(b"")
    check_available(name)
    check_available(spec("resnet18.a2_in1k", weights="random"))
    with pytest.raises(MonoevalError):
        check_available(spec("resnet18.a2_in1k"))


@pytest.mark.parametrize("network", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_missing_weights_are_noticed_quickly_and_without_torch(tmp_path: Path, network):
    code = (
        "import sys\n"
        "from monoeval.backbones.resolve import check_available\n"
        "from monoeval.backbones.spec import BackboneSpec\n"
        "from monoeval.errors import MonoevalError\n"
        "try:\n"
        "    check_available(BackboneSpec(model='clip_vit_b32'))\n"
        "except MonoevalError as error:\n"
        "    assert 'torch' not in sys.modules and 'timm' not in sys.modules\n"
        "    print(error)\n"
    )
    clean = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE" and "proxy" not in k.lower()}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "HF_HOME": str(tmp_path), "TORCH_HOME": str(tmp_path), **network},
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.perf_counter() - started < 5
    assert "ViT-B-32-quickgelu@openai" in done.stdout
    assert "--weights random" in done.stdout
