"""Loading: features against the libraries' own forward passes, and the sentences for what does not fit."""

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

from monoeval import bundles
from monoeval.backbones import load as load_module
from monoeval.backbones.load import choose_device, load_backbone
from monoeval.backbones.resolve import identity
from monoeval.backbones.spec import BackboneSpec
from monoeval.errors import MonoevalError, UsageError
from monoeval.training import networks

FACTORY = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    net.data_config = {"input_size": (3, 18, 18), "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0}
    return net

def number():
    return 3

def fails():
    raise RuntimeError("out of paint")

def leaves():
    raise SystemExit(3)
"""


def load(model="test_vit", **fields):
    return load_backbone(
        BackboneSpec(model=model, **{"weights": "random", "precision": "fp32", **fields}), device="cpu"
    )


def batch(size, n=3):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def checkpoint(tmp_path: Path):
    """A whole test_resnet with its classifier, and the path of its state."""
    torch.manual_seed(9)
    model = timm.create_model("test_resnet", num_classes=7).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "whole.safetensors")
    return model, tmp_path / "whole.safetensors"


def test_a_local_checkpoint_gives_the_features_of_its_model(checkpoint, tmp_path):
    model, path = checkpoint
    x = batch(64)
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(load("test_resnet", weights=str(path))(x), expected)
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "wrapped.pt")
    torch.testing.assert_close(load("test_resnet", weights=str(tmp_path / "wrapped.pt"))(x), expected)


def test_checkpoints_are_strict(checkpoint, tmp_path):
    state = checkpoint[0].state_dict()
    first, second = list(state)[:2]
    cases = {
        "missing": {k: v for k, v in state.items() if k != first},
        "unexpected surprise": {**state, "surprise": torch.ones(1)},
        f"mismatched: {second} is [1]": {**state, second: torch.ones(1)},
    }
    for words, changed in cases.items():
        torch.save(changed, tmp_path / "c.pt")
        with pytest.raises(UsageError) as caught:
            load("test_resnet", weights=str(tmp_path / "c.pt"))
        assert words in str(caught.value)
        assert "test_resnet" in str(caught.value)
    with pytest.raises(UsageError, match=r"missing .*, .*, .* and \d+ more"):
        load("test_vit", weights=str(checkpoint[1]))


def test_a_checkpoint_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"w": Evil()}, protocol=2))
    with pytest.raises(UsageError, match="The checkpoint"):
        load("test_resnet", weights=str(tmp_path / "evil.pt"))
    assert not (tmp_path / "touched").exists()


def test_random_weights_repeat_and_leave_the_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again = load(), load()
    assert torch.equal(torch.get_rng_state(), before)
    assert first.fingerprint == again.fingerprint
    spec = BackboneSpec(model="test_vit", weights="random", precision="fp32")
    assert load_backbone(spec, device="cpu", seed=1).fingerprint != first.fingerprint


def test_layers_and_pools_against_timm():
    whole = load()
    x = batch(160)
    block = whole.module.forward_intermediates(
        x, indices=[2], intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True
    )
    patches, prefix = block[0]
    torch.testing.assert_close(load(layer="2", pool="token")(x), prefix[:, 0])
    torch.testing.assert_close(load(layer="2")(x), patches.mean(1))
    torch.testing.assert_close(load(layer="-4", pool="max")(x), patches.amax(1))
    torch.testing.assert_close(load(layer="blocks.2", pool="avg")(x), patches.mean(1))
    torch.testing.assert_close(load(layer="norm", pool="token")(x), whole(x))
    torch.testing.assert_close(load(pool="avg")(x), whole.module.forward_features(x)[:, 1:].mean(1))
    resnet = load("test_resnet")
    stage = resnet.module.forward_intermediates(x, indices=[1], intermediates_only=True)[0]
    torch.testing.assert_close(load("test_resnet", layer="1")(x), stage.mean((2, 3)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layer": "77"}, "0 to 5"),
        ({"layer": "blokcs.1"}, "'blocks.1'"),
        ({"pool": "median"}, "token, avg, max"),
        ({"model": "test_resnet", "pool": "token"}, "avg, max"),
        ({"model": "test_vit.nothing"}, "test_vit.r160_in1k"),
        ({"image_size": 3}, "test_vit cannot take images of 3 pixels: Input height (3)"),
    ],
)
def test_what_does_not_fit(fields, words):
    with pytest.raises(UsageError) as caught:
        load(**fields)
    assert words in str(caught.value)


def test_image_size_and_width():
    assert load(image_size=64).preprocess.image_size == 64
    assert load(image_size=64).width == load()(batch(160)).shape[1]
    assert load("test_resnet", image_size=32)(batch(32)).shape == (3, load("test_resnet").width)


def test_factory(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    made = load(f"{tmp_path / 'mine.py'}:make", weights="pretrained")
    assert (made.width, made.preprocess.image_size, made.preprocess.mean) == (5, 18, (0.1, 0.2, 0.3))
    x = batch(18)
    torch.testing.assert_close(made(x), made.module(x).mean((2, 3)))
    assert load(f"{tmp_path / 'mine.py'}:make", layer="0", pool="max").width == 5
    with pytest.raises(UsageError, match="did you mean 'make'"):
        load(f"{tmp_path / 'mine.py'}:mak")
    with pytest.raises(UsageError, match=r"must return a torch\.nn\.Module"):
        load(f"{tmp_path / 'mine.py'}:number")
    with pytest.raises(MonoevalError, match="out of paint"):
        load(f"{tmp_path / 'mine.py'}:fails")
    with pytest.raises(MonoevalError, match="SystemExit"):
        load(f"{tmp_path / 'mine.py'}:leaves")


def test_pretrained_folder(tmp_path):
    torch.manual_seed(0)
    network = networks.build("tiny", 12, 16, non_negative=True).eval()
    about = {
        "format": 1,
        "network": "tiny",
        "width": 12,
        "image_size": 16,
        "non_negative": True,
        "objective": "ncl",
    }
    about |= {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    for place in ("one", "two"):
        bundles.write(tmp_path / place, "backbone", network.state_dict(), about)
    x = batch(16)
    made = load(str(tmp_path / "one"), weights="pretrained")
    with torch.no_grad():
        torch.testing.assert_close(made(x), network(x))
        torch.testing.assert_close(load(str(tmp_path / "one"), layer="backbone")(x), network.backbone(x))
    assert made.preprocess.std == (0.25, 0.25, 0.25)
    specs = [BackboneSpec(model=str(tmp_path / place)) for place in ("one", "two")]
    assert identity(specs[0]) == identity(specs[1])
    with pytest.raises(UsageError, match="backbone or projector"):
        load(str(tmp_path / "one"), layer="3")
    for file, content in (("backbone.json", "[1]"), ("backbone.safetensors", "")):
        (tmp_path / "two" / file).write_text(content)
        with pytest.raises(UsageError, match="not a whole pretrained backbone"):
            identity(specs[1])


def test_open_clip_image_tower():
    import open_clip

    made = load("open_clip:RN50", image_size=64)
    assert made.info["projected"] is True
    model = open_clip.create_model("RN50", force_image_size=64).eval()
    model.load_state_dict(
        {**model.state_dict(), **{f"visual.{k}": v for k, v in made.module.state_dict().items()}}
    )
    x = batch(64)
    with torch.no_grad():
        torch.testing.assert_close(made(x), model.encode_image(x))
    with pytest.raises(UsageError, match="together with --layer"):
        load("open_clip:RN50", image_size=64, pool="avg")


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="--device"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no device 'cuda'"):
            choose_device("cuda")


def test_precision_is_decided_once(monkeypatch):
    measured = []

    def measure(*_):
        measured.append({"cosine": 0.9999, "gain": 2.0})
        return measured[-1]

    monkeypatch.setattr(load_module, "_has_bf16", lambda _: True)
    monkeypatch.setattr(load_module, "_measure", measure)
    first, again = load("test_resnet", precision="auto"), load("test_resnet", precision="auto")
    assert (first.precision, again.precision, len(measured)) == ("bf16", "bf16", 1)
    assert load("test_resnet", precision="auto", image_size=32).precision == "fp32"
    monkeypatch.setattr(load_module, "_measure", lambda *_: {"cosine": 0.99, "gain": 9.0})
    assert load("test_vit", precision="auto").precision == "fp32"


def test_bf16_is_close_to_fp32():
    whole, half = load("test_resnet"), load("test_resnet", precision="bf16")
    x = batch(96)
    assert whole.fingerprint == half.fingerprint
    assert half(x).dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(whole(x), half(x)).min() > 0.999
    assert not torch.equal(whole(x), half(x))
