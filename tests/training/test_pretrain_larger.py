"""Networks of timm, resuming, and what is refused, on random squares."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from monoeval import bundles
from monoeval.backbones.load import load_backbone
from monoeval.backbones.spec import PretrainSpec
from monoeval.data.images import ImageSet
from monoeval.errors import MonoevalError, UsageError
from monoeval.training import networks, resume
from monoeval.training import pretrain as module
from monoeval.training.keys import STEM, pretrained_folder, pretrained_key
from monoeval.training.pretrain import pretrain

CPU = torch.device("cpu")
VIT = {"network": "test_vit", "width": 16, "hidden": 24, "batch_size": 8, "epochs": 4, "precision": "fp32"}
TINY = {"batch_size": 16, "epochs": 4, "image_size": 8}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path))


def squares(count: int = 36) -> ImageSet:
    """Images of four colours that are their classes, with noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int64) % 4
    colours = rng.integers(40, 216, (4, 1, 1, 3))
    pixels = (colours[labels] + rng.integers(-40, 40, (count, 12, 12, 3))).astype(np.uint8)
    ids = np.arange(count).astype(str)
    return ImageSet("squares", labels, tuple("abcd"), ids, None, f"squares {count}", lambda row: pixels[row])


class Stopped(BaseException):
    """As if the process had ended there: nothing catches it."""


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "ncl", **TINY},
        {"objective": "nscl", **VIT},
        {"objective": "simclr", **VIT, "optimiser": "sgd", "learning_rate": 0.1},
    ],
    ids=["adamw", "lars", "sgd"],
)
def test_an_interrupted_training_ends_with_the_same_bits(settings, tmp_path, monkeypatch):
    spec, images = PretrainSpec(**settings), squares()
    whole, about = bundles.read(pretrain(spec, images, seed=2, device=CPU), STEM)
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "again"))
    steps, loss_of = [], module._Training._loss

    def stopping(self, rows):
        steps.append(rows)
        if len(steps) == 2 * (len(images) // spec.batch_size) + 2:  # in the middle of the third epoch
            raise Stopped
        return loss_of(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(module._Training, "_loss", stopping)
        with pytest.raises(Stopped):
            pretrain(spec, images, seed=2, device=CPU, checkpoint_seconds=0)
    folder = pretrained_folder(spec, images.fingerprint, 2)
    assert resume.checkpoint_of(folder).is_file()
    assert not folder.exists()

    def counting(self, rows):
        steps.append(rows)
        return loss_of(self, rows)

    steps.clear()
    monkeypatch.setattr(module._Training, "_loss", counting)
    again, after = bundles.read(pretrain(spec, images, seed=2, device=CPU), STEM)
    assert len(steps) == 2 * (len(images) // spec.batch_size)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert after["losses"] == about["losses"]
    assert not resume.checkpoint_of(folder).exists()


def test_a_checkpoint_that_cannot_be_read_is_left_and_said(caplog):
    spec, images = PretrainSpec(objective="simclr", **TINY), squares()
    path = resume.checkpoint_of(pretrained_folder(spec, images.fingerprint, 0))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half of")
    with caplog.at_level(logging.WARNING, "monoeval"):
        pretrain(spec, images, seed=0, device=CPU)
    assert "starts again" in caplog.text


def test_a_checkpoint_of_another_machine_goes_on_and_says_so(tmp_path, caplog):
    resume.save(tmp_path / "x", {"epoch": 3}, {"torch": "1.0", "device": "cuda"})
    with caplog.at_level(logging.WARNING, "monoeval"):
        assert resume.load(tmp_path / "x", {"torch": "1.0", "device": "cpu"}) == {"epoch": 3}
    assert "device cpu and not cuda" in caplog.text


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(monkeypatch):
    spec, images, loss_of = PretrainSpec(objective="simclr", **TINY), squares(), module._Training._loss
    monkeypatch.setattr(
        module._Training, "_loss", lambda self, rows: loss_of(self, rows) * (float("inf") if self.epoch else 1)
    )
    with pytest.raises(MonoevalError, match=r"inf at step 3 of 8.*kept in .*\.checkpoint"):
        pretrain(spec, images, seed=0, device=CPU, checkpoint_seconds=0)
    kept = resume.load(resume.checkpoint_of(pretrained_folder(spec, images.fingerprint, 0)), {})
    assert kept is not None
    assert kept["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in kept["network"].values())


@pytest.mark.parametrize("objective", ["ncl", "supcon"])
def test_both_layers_of_a_pretrained_network_can_be_read(objective):
    spec, images = PretrainSpec(objective=objective, **VIT), squares()
    folder = pretrain(spec, images, seed=0, device=CPU)
    from monoeval.backbones.spec import BackboneSpec

    read = {
        layer: load_backbone(BackboneSpec(model=str(folder), layer=layer), device="cpu")
        for layer in (None, "projector", "backbone")
    }
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    projected, pooled = read["projector"](x), read["backbone"](x)
    assert torch.equal(read[None](x), projected)
    assert projected.shape == (3, 16)
    assert pooled.shape == (3, 64)
    linear, _, last = read["backbone"].module.projector
    with torch.no_grad():
        expected = last(linear(pooled).relu())
    torch.testing.assert_close(projected, expected.relu() if objective == "ncl" else expected)


def test_a_small_resnet_begins_as_those_for_cifar():
    small = networks.build("resnet18", 8, 32, hidden=8)
    assert small.trunk.conv1.kernel_size == (3, 3)
    assert small.trunk.conv1.stride == (1, 1)
    assert small.trunk.layer1(small.trunk.maxpool(torch.zeros(1, 64, 32, 32))).shape == (1, 64, 32, 32)
    plain = networks.build("resnet18", 8, 64, hidden=8)
    assert plain.trunk.conv1.kernel_size == (7, 7)
    with pytest.raises(UsageError, match="no CIFAR stem: choose stem=plain"):
        networks.build("test_vit", 8, 32, hidden=8, stem="cifar")
    with pytest.raises(UsageError, match="test_vit cannot take images of 20 pixels"):
        networks.build("test_vit", 8, 20, hidden=8)


def test_how_it_goes_is_said_without_what_few_rows_leave_undefined(caplog):
    with caplog.at_level(logging.INFO, "monoeval"):
        spec = PretrainSpec(objective="ncl", **{**TINY, "epochs": 1})
        pretrain(spec, squares(30), seed=0, device=CPU, watched=True)
    assert "of 128 latents active" in caplog.text
    assert "nan" not in caplog.text


def test_how_it_goes_is_said_from_training_images_alone(caplog):
    images = squares(48)
    read: list[int] = []
    spied = replace(images, read=lambda row: (read.append(row), images.read(row))[1])
    with caplog.at_level(logging.INFO, "monoeval"):
        spec = PretrainSpec(objective="ncl", **{**TINY, "epochs": 2})
        watched = pretrain(spec, spied, seed=0, device=CPU, watched=True)
    assert "epoch 1 of 2: loss" in caplog.text
    assert "nearest class mean" in caplog.text
    assert read == list(range(48))
    bits = (watched / "backbone.safetensors").read_bytes()
    for file in watched.iterdir():
        file.unlink()
    assert (pretrain(spec, images, seed=0, device=CPU) / "backbone.safetensors").read_bytes() == bits


def test_a_nearest_class_mean_and_consistency_of_known_features():
    from monoeval.training.watch import watch, watched_rows

    fitted, scored = watched_rows(400, seed=0)
    assert len(np.intersect1d(fitted, scored)) == 0
    assert len(fitted) == len(scored) == 200
    labels = np.arange(400) % 4
    one_hot = torch.eye(4)
    found = watch(lambda rows: one_hot[torch.from_numpy(labels[rows])], fitted, scored, labels, 4)
    assert found["probe"] == 1
    assert found["consistency"] == 1
    assert found["consistency_chance"] < 0.6
    assert found["l0"] == 1


def test_wrong_use_is_one_sentence(monkeypatch):
    images = squares()
    alone = replace(images, labels=np.zeros(36, np.int64))
    for objective in ("supcon", "nscl"):
        with pytest.raises(UsageError, match="labels of only one: choose --objective simclr or ncl"):
            pretrain(PretrainSpec(objective=objective, **TINY), alone, seed=0, device=CPU)
    with pytest.raises(UsageError, match="did you mean 'resnet18'"):
        PretrainSpec(objective="ncl", network="resnet81")

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(module._Training, "_loss", full)
    with pytest.raises(MonoevalError, match="batches of 16 images: try --batch-size 8"):
        pretrain(PretrainSpec(objective="simclr", **TINY), images, seed=0, device=CPU)
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(MonoevalError, match="holds all images in memory: 36 of 8 pixels"):
        pretrain(PretrainSpec(objective="simclr", **TINY), images, seed=0, device=CPU)


def test_settings_that_came_later_left_the_keys_of_the_first_networks_as_they_were():
    """These two are what the first release wrote."""
    assert pretrained_key(PretrainSpec(objective="simclr"), "a", 0) == "e36f1edb3d72b2f9a130"
    assert pretrained_key(PretrainSpec(objective="ncl"), "a", 0) == "3e373ca575ccdbe8bf4b"


@pytest.mark.parametrize("network", ["tiny", "resnet18"])
def test_every_setting_is_in_the_key(network):
    other = {"objective": "ncl", "network": "resnet34", "optimiser": "sgd", "stem": "plain", "precision": "bf16"}
    spec = PretrainSpec(objective="simclr", network=network)
    keys = {pretrained_key(spec, "a", 0)}
    for name, value in spec.model_dump().items():
        if isinstance(value, bool):
            changed = not value
        elif isinstance(value, str):
            changed = other.get(name) or {"gentle": "simclr", "simclr": "gentle"}[value]
        else:
            changed = value + 1
        keys.add(pretrained_key(spec.model_copy(update={name: changed}), "a", 0))
    assert len(keys) == 1 + len(PretrainSpec.model_fields)


def test_the_description_lists_the_losses():
    folder = pretrain(PretrainSpec(objective="supcon", **TINY), squares(), seed=0, device=CPU)
    about = json.loads((folder / "backbone.json").read_text())
    assert len(about["losses"]) == 4
    assert about["final_loss"] == about["losses"][-1]
    assert about["non_negative"] is False
    assert about["images_per_second"] > 0
