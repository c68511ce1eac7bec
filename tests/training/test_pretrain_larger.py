"""Networks of timm, resuming, and what is refused, on random squares."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from monoeval import bundles
from monoeval.backbones.load import load_backbone
from monoeval.backbones.spec import PretrainSpec
from monoeval.data.images import ImageSet
from monoeval.errors import MonoevalError, UsageError
from monoeval.suite.frozen import located
from monoeval.suite.plan import make_plan
from monoeval.suite.recipe_files import load_recipe
from monoeval.training import keys, networks, resume
from monoeval.training import pretrain as module
from monoeval.training.keys import STEM, pretrained_folder, pretrained_key
from monoeval.training.pretrain import pretrain
from monoeval.training.watch import watch, watched_rows

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
    folder = pretrained_folder(spec, images.fingerprint, len(images), 2)
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
    path = resume.checkpoint_of(pretrained_folder(spec, images.fingerprint, len(images), 0))
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


def test_a_disk_without_room_for_a_checkpoint_does_not_end_the_training(monkeypatch, caplog):
    spec, images = PretrainSpec(objective="simclr", **TINY), squares()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "monoeval"):
        patched.setattr(Path, "write_bytes", full)
        folder = pretrain(spec, images, seed=0, device=CPU, checkpoint_seconds=0)
    assert "(No space left on device): free some room" in caplog.text
    assert "goes on without a checkpoint" in caplog.text
    assert bundles.describe(folder, STEM)["final_loss"] > 0
    assert not resume.checkpoint_of(folder).exists()


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(monkeypatch):
    spec, images, loss_of = PretrainSpec(objective="simclr", **TINY), squares(), module._Training._loss
    monkeypatch.setattr(
        module._Training, "_loss", lambda self, rows: loss_of(self, rows) * (float("inf") if self.epoch else 1)
    )
    with pytest.raises(MonoevalError, match=r"inf at step 3 of 8.*kept in .*\.checkpoint"):
        pretrain(spec, images, seed=0, device=CPU, checkpoint_seconds=0)
    kept = resume.load(resume.checkpoint_of(pretrained_folder(spec, images.fingerprint, len(images), 0)), {})
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


def spied(images: ImageSet) -> tuple[ImageSet, list[int]]:
    """The same images, and the rows that are read of them."""
    read: list[int] = []
    return replace(images, read=lambda row: (read.append(row), images.read(row))[1]), read


def test_how_it_goes_is_said_from_unseen_images_and_changes_no_bit(caplog):
    spec = PretrainSpec(objective="ncl", **{**TINY, "epochs": 2})
    images = squares(48)
    (seen, read), (unseen, read_unseen) = spied(images), spied(replace(squares(60), name="others"))
    weights, lines = [], []
    for watching in ({}, {"watched": True}, {"watched": True, "unseen": unseen}):
        caplog.clear()
        with caplog.at_level(logging.INFO, "monoeval"):
            folder = pretrain(spec, seen, seed=0, device=CPU, **watching)
        weights.append((folder / "backbone.safetensors").read_bytes())
        lines.append(caplog.text)
        shutil.rmtree(folder)
        assert sorted(read) == list(range(48))
        assert sorted(read_unseen) == (list(range(60)) if "unseen" in watching else [])
        read.clear()
    assert weights[0] == weights[1] == weights[2]
    assert lines[0] == ""
    assert lines[1].count("on 24 training images that these do not see") == 2
    for line in lines[2].splitlines():
        assert "of 2: loss" in line
        assert re.search(r"linear probe \d+\.\d %, nearest class mean .* \(on 60 images of others", line)


@pytest.mark.parametrize("rate", [1e15, 1e30, 3e38])
@pytest.mark.parametrize("epochs", [1, 2])
def test_weights_that_the_last_step_broke_are_written_nowhere(rate, epochs):
    """After it no loss is looked at; and at 1e15 the weights themselves are finite."""
    fields = {**TINY, "epochs": epochs, "batch_size": 36, "learning_rate": rate}
    spec, images = PretrainSpec(objective="simclr", **fields), squares()
    sentence = rf"^The simclr weights give no finite loss after step 1 of {epochs}: lower learning_rate \(now "
    with pytest.raises(MonoevalError, match=sentence) as failed:
        pretrain(spec, images, seed=0, device=CPU, checkpoint_seconds=0, watched=True)
    assert "kept" not in str(failed.value)
    folder = pretrained_folder(spec, images.fingerprint, len(images), 0)
    assert not folder.exists()
    assert not resume.checkpoint_of(folder).exists()


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "temperature", "density"])
def test_settings_are_finite(name):
    with pytest.raises(ValueError, match="should be a finite number"):
        PretrainSpec(objective="simclr", **{name: float("inf")})


@pytest.mark.parametrize(
    "error", [MonoevalError("one of them is damaged."), RuntimeError("no room"), MemoryError()]
)
def test_what_watching_meets_ends_no_training_and_changes_no_bit(error, caplog, monkeypatch):
    spec, images = PretrainSpec(objective="ncl", **{**TINY, "epochs": 2}), squares(48)
    folder = pretrain(spec, images, seed=0, device=CPU)
    weights = (folder / "backbone.safetensors").read_bytes()
    shutil.rmtree(folder)

    def failing(*_, **__):
        raise error

    with monkeypatch.context() as patched:  # while the network is in evaluation mode
        patched.setattr("monoeval.training.watch.watch", failing)
        pretrain(spec, images, seed=0, device=CPU, watched=True)
    assert (folder / "backbone.safetensors").read_bytes() == weights
    shutil.rmtree(folder)
    unseen = replace(squares(60), read=failing)
    pretrain(spec, images, seed=0, device=CPU, watched=True, unseen=unseen)
    assert (folder / "backbone.safetensors").read_bytes() == weights
    assert caplog.text.count("could not be measured") == 4


def test_a_full_disk_silences_what_is_said_and_ends_no_training(caplog, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    spec, images = PretrainSpec(objective="ncl", **{**TINY, "epochs": 2}), squares(48)
    folder = pretrain(spec, images, seed=0, device=CPU)
    weights = (folder / "backbone.safetensors").read_bytes()
    shutil.rmtree(folder)
    monkeypatch.setattr("monoeval.training.watch.np.save", full)
    assert pretrain(spec, images, seed=0, device=CPU, watched=True) == folder
    assert (folder / "backbone.safetensors").read_bytes() == weights
    assert caplog.text.count("could not be measured (No space left on device); it goes on") == 2


def test_a_linear_probe_nearest_class_mean_and_consistency_of_known_features():
    rows = watched_rows(5000, "watch", seed=0)
    assert len(np.unique(rows)) == 2000
    labels = np.arange(200) % 4
    one_hot = torch.eye(4)[torch.from_numpy(labels)]
    found = watch(one_hot, labels, one_hot[:100], labels[:100], 4)
    assert found["linear"] == found["nearest_mean"] == found["consistency"] == found["l0"] == 1
    assert found["consistency_chance"] < 0.6

    # A wide and useless axis: the means hardly differ on it, and a least-squares classifier leaves it out.
    rng = np.random.default_rng(0)
    wide = torch.cat([one_hot, torch.from_numpy(100 * rng.standard_normal((200, 1))).float()], dim=1)
    found = watch(wide[:100], labels[:100], wide[100:], labels[100:], 4)
    assert found["linear"] == 1
    assert found["nearest_mean"] < 0.6


def test_features_that_have_collapsed_leave_the_linear_probe_undefined():
    labels = np.arange(40) % 4
    assert np.isnan(watch(torch.ones(40, 3), labels, torch.ones(40, 3), labels, 4)["linear"])


def test_statistics_of_batch_norm_are_taken_anew_after_few_steps_alone(monkeypatch):
    """Those of the first norm are the mean over batches of what its convolution gives for new views."""
    spec, images, means = PretrainSpec(objective="simclr", **TINY), squares(36), []
    projected = module._Training._projected

    def recording(self, seen):
        hook = self.network.convolutions[0].register_forward_hook(
            lambda _module, _inputs, maps: means.append(maps.detach().mean(dim=(0, 2, 3)))
        )
        try:
            return projected(self, seen)
        finally:
            hook.remove()

    monkeypatch.setattr(module._Training, "_projected", recording)
    settled, _ = bundles.read(pretrain(spec, images, seed=0, device=CPU), STEM)
    assert len(means) == 8 + 2
    torch.testing.assert_close(settled["convolutions.1.running_mean"], torch.stack(means[-2:]).mean(0))
    assert settled["convolutions.1.num_batches_tracked"] == 2

    means.clear()
    monkeypatch.setattr(keys, "SETTLED_AFTER", 8)
    left, _ = bundles.read(pretrain(spec, images, seed=0, device=CPU), STEM)
    assert len(means) == 8
    assert left["convolutions.1.num_batches_tracked"] == 8
    expected = torch.zeros(32)
    for mean in means:
        expected = 0.9 * expected + 0.1 * mean
    torch.testing.assert_close(left["convolutions.1.running_mean"], expected)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert all(torch.equal(left[name], settled[name]) for name in left if not name.endswith(statistics))


def test_whether_statistics_are_taken_anew_is_in_the_key_of_short_trainings(monkeypatch):
    spec = PretrainSpec(objective="simclr", epochs=4, batch_size=16)
    assert [keys.steps(spec, n) for n in (0, 10, 36, 400)] == [0, 4, 8, 100]
    assert [keys.is_short(spec, n) for n in (0, 36, 399, 400)] == [False, True, True, False]
    assert not keys.is_short(spec.model_copy(update={"epochs": 0}), 36)
    before = [pretrained_key(spec, "a", n, 0) for n in (36, 400)]
    monkeypatch.setattr(keys, "SETTLED_AFTER", 0)
    after = [pretrained_key(spec, "a", n, 0) for n in (36, 400)]
    assert before[0] != after[0]
    assert before[1] == after[1] == after[0]


def test_wrong_use_is_one_sentence():
    images = squares()
    alone = replace(images, labels=np.zeros(36, np.int64))
    for objective in ("supcon", "nscl"):
        with pytest.raises(UsageError, match="labels of only one: choose --objective simclr or ncl"):
            pretrain(PretrainSpec(objective=objective, **TINY), alone, seed=0, device=CPU)
    with pytest.raises(UsageError, match="did you mean 'resnet18'"):
        PretrainSpec(objective="ncl", network="resnet81")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:30],
)
def test_a_batch_that_memory_has_no_room_for_is_halved_while_it_can_be(error, monkeypatch):
    def full(*_):
        raise error

    monkeypatch.setattr(module._Training, "_loss", full)
    spec, images = PretrainSpec(objective="simclr", **TINY), squares()
    with pytest.raises(
        MonoevalError, match="batches of 16 images of 8 pixels: try --batch-size 8, or lower image"
    ):
        pretrain(spec, images, seed=0, device=CPU)
    least = spec.model_copy(update={"batch_size": 2})
    with pytest.raises(MonoevalError, match=r"batches of 2 images of 8 pixels: lower image_size or choose --dev"):
        pretrain(least, images, seed=0, device=CPU)


def test_a_recipe_is_told_which_of_its_settings_makes_batches_smaller(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(module._Training, "_loss", full)
    backbones = {"CL": {"pretrain": {"objective": "simclr", "batch_size": 16}}}
    recipe = {"backbones": backbones, "arms": [{"name": "a", "backbone": "CL"}], "scenarios": ["clean"],
              "data": {"name": "digits", "limit": 40}}  # fmt: skip
    (group,) = make_plan(load_recipe({**recipe, "seeds": 1})).groups
    with pytest.raises(MonoevalError, match="try batch_size: 8 under pretrain of CL in the recipe, or") as failed:
        located(group, "cpu")
    assert "--batch-size" not in str(failed.value)


def test_settings_that_came_later_left_the_keys_of_the_first_networks_as_they_were():
    """These two are what the first release wrote."""
    assert pretrained_key(PretrainSpec(objective="simclr"), "a", 60000, 0) == "e36f1edb3d72b2f9a130"
    assert pretrained_key(PretrainSpec(objective="ncl"), "a", 60000, 0) == "3e373ca575ccdbe8bf4b"


@pytest.mark.parametrize("network", ["tiny", "resnet18"])
def test_every_setting_is_in_the_key(network):
    other = {
        "objective": "ncl",
        "network": "resnet34",
        "optimiser": "sgd",
        "stem": "plain",
        "precision": "bf16",
        "rectifier": "relu",
    }
    spec = PretrainSpec(objective="simclr", network=network)
    found = {pretrained_key(spec, "a", 60000, 0)}
    for name, value in spec.model_dump().items():
        if isinstance(value, bool):
            changed = not value
        elif isinstance(value, str):
            changed = other.get(name) or {"gentle": "simclr", "simclr": "gentle"}[value]
        else:
            changed = value + 1
        found.add(pretrained_key(spec.model_copy(update={name: changed}), "a", 60000, 0))
    assert len(found) == 1 + len(PretrainSpec.model_fields)


def test_the_description_lists_the_losses():
    folder = pretrain(PretrainSpec(objective="supcon", **TINY), squares(), seed=0, device=CPU)
    about = json.loads((folder / "backbone.json").read_text())
    assert len(about["losses"]) == 4
    assert about["final_loss"] == about["losses"][-1]
    assert about["non_negative"] is False
    assert about["images_per_second"] > 0
