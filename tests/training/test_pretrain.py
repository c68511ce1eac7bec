import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from monoeval import bundles
from monoeval.backbones.preprocess import Preprocess
from monoeval.backbones.spec import PretrainSpec
from monoeval.data.images import ImageSet
from monoeval.errors import MonoevalError, UsageError
from monoeval.training import networks
from monoeval.training import pretrain as module
from monoeval.training.keys import STEM, pretrained_folder, pretrained_key
from monoeval.training.pretrain import pretrain, warm_cosine

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path))


def digits(count: int, start: int = 0) -> ImageSet:
    source = load_digits()
    pixels = np.repeat((source.images[start : start + count] * (255 / 16)).astype(np.uint8)[..., None], 3, axis=3)
    return ImageSet(
        name="digits",
        labels=source.target[start : start + count].astype(np.int64),
        class_names=tuple("0123456789"),
        ids=np.arange(count).astype(str),
        groups=None,
        fingerprint=f"digits {start} {count}",
        read=lambda row: pixels[row],
    )


def squares(images: ImageSet, size: int) -> np.ndarray:
    preprocess = Preprocess(image_size=size, crop_pct=1.0)
    return np.stack([preprocess.image(images.read(row)) for row in range(len(images))])


def features(folder, images: ImageSet) -> np.ndarray:
    tensors, about = bundles.read(folder, STEM)
    network = networks.build(about["network"], about["width"], about["image_size"], about["non_negative"]).eval()
    network.load_state_dict(tensors)
    pixels = squares(images, about["image_size"])
    scaled = (pixels / 255 - about["mean"]) / about["std"]
    with torch.no_grad():
        return network(torch.tensor(scaled, dtype=torch.float32).permute(0, 3, 1, 2)).numpy()


@pytest.mark.parametrize("objective", ["simclr", "ncl"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(objective, tmp_path, monkeypatch):
    spec, images = PretrainSpec(objective=objective, epochs=2, batch_size=64), digits(150)
    first, _ = bundles.read(pretrain(spec, images, seed=0, device=CPU), STEM)
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "again"))
    torch.manual_seed(1234)
    again, _ = bundles.read(pretrain(spec, images, seed=0, device=CPU), STEM)
    other, _ = bundles.read(pretrain(spec, images, seed=1, device=CPU), STEM)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["projector.0.weight"], other["projector.0.weight"])


@pytest.mark.parametrize("objective", ["simclr", "ncl"])
def test_a_short_training_beats_the_untrained_network(objective):
    train, test = digits(500), digits(400, start=500)
    scores = []
    for epochs in (0, 8):
        folder = pretrain(
            PretrainSpec(objective=objective, epochs=epochs, batch_size=128), train, seed=0, device=CPU
        )
        seen, unseen = features(folder, train), features(folder, test)
        scale = np.sqrt(((seen - seen.mean(0)) ** 2).sum(1).mean())
        probe = LogisticRegression(C=100, max_iter=300).fit(seen / scale, train.labels)
        scores.append(probe.score(unseen / scale, test.labels))
    assert scores[1] > scores[0] + 0.02
    assert scores[1] > 0.85


def test_the_description_says_what_is_needed_to_build_the_network_again():
    spec, images = PretrainSpec(objective="ncl", epochs=1, batch_size=40), digits(100)
    folder = pretrain(spec, images, seed=3, device=CPU)
    assert folder == pretrained_folder(spec, images.fingerprint, len(images), 3)
    about = json.loads((folder / "backbone.json").read_text())
    grey = squares(images, 16)[..., 0] / 255
    assert about["mean"] == pytest.approx([grey.mean()] * 3)
    assert about["std"] == pytest.approx([grey.std()] * 3)
    assert about["steps"] == 2
    assert about["non_negative"] is True
    assert 0 <= about["alive"] <= 1
    assert (features(folder, images) >= 0).all()


def test_a_whole_folder_is_returned_at_once_and_a_damaged_one_made_again(caplog):
    spec, images = PretrainSpec(objective="simclr", epochs=1), digits(60)
    folder = pretrain(spec, images, seed=0, device=CPU)
    weights = folder / "backbone.safetensors"
    written, content = weights.stat().st_mtime_ns, weights.read_bytes()
    pretrain(spec, images, seed=0, device=CPU)
    assert weights.stat().st_mtime_ns == written
    weights.write_bytes(content[:-10])
    with caplog.at_level(logging.WARNING, "monoeval"):
        pretrain(spec, images, seed=0, device=CPU)
    assert "damaged" in caplog.text
    assert weights.read_bytes() == content


def test_a_loss_that_is_not_finite_names_the_step(monkeypatch):
    monkeypatch.setattr(module, "info_nce", lambda first, _second, _t: first.sum() * float("nan"))
    with pytest.raises(MonoevalError, match="step 1 of 2: lower learning_rate"):
        pretrain(PretrainSpec(objective="simclr", epochs=2), digits(20), seed=0, device=CPU)


def test_collapse_is_warned_about(monkeypatch, caplog):
    monkeypatch.setattr(module._Training, "_alive", lambda _: 0.01)
    with caplog.at_level(logging.WARNING, "monoeval"):
        pretrain(PretrainSpec(objective="ncl", epochs=1), digits(20), seed=0, device=CPU)
    assert "collapsed" in caplog.text


def test_a_network_that_tells_no_images_apart_is_warned_about(monkeypatch, caplog):
    spec = PretrainSpec(objective="simclr", network="test_vit", width=16, hidden=16, epochs=1, batch_size=20)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "monoeval"):
        patched.setattr(networks.Projected, "project", lambda self, x: 0 * self.projector(self.backbone(x)) + 1)
        patched.setattr(module._Training, "_alive", lambda _: 0.9)  # rounding varies too
        folder = pretrain(spec, digits(20), seed=0, device=CPU)
    assert f"ended at {np.log(39):.3f}" in caplog.text
    assert "nothing was learned, so lower learning_rate" in caplog.text
    assert bundles.describe(folder, STEM)["final_loss"] == pytest.approx(np.log(39), abs=1e-5)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "monoeval"):
        pretrain(PretrainSpec(objective="ncl", epochs=6, batch_size=64), digits(150), seed=0, device=CPU)
    assert "learned" not in caplog.text


def test_wrong_use_is_one_sentence():
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        pretrain(PretrainSpec(objective="ncl", network="tyni"), digits(20), seed=0, device=CPU)
    with pytest.raises(UsageError, match="at least two images"):
        pretrain(PretrainSpec(objective="ncl"), digits(1), seed=0, device=CPU)


def test_a_key_changes_with_whatever_decides_the_weights_and_needs_no_torch():
    spec = PretrainSpec(objective="ncl")
    keys = {
        pretrained_key(spec, "a", 60000, 0),
        pretrained_key(spec, "b", 60000, 0),
        pretrained_key(spec, "a", 60000, 1),
        pretrained_key(spec.model_copy(update={"epochs": 3}), "a", 60000, 0),
    }
    assert len(keys) == 4
    code = "import sys, monoeval.training.keys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_schedule_warms_up_and_ends_low():
    shares = [warm_cosine(step, 100, 0.2) for step in range(100)]
    assert np.argmax(shares) == 20
    assert shares[20] == 1
    assert shares[0] < 0.1
    assert shares[-1] < 0.01
