"""Training on CUDA: agreement with the CPU, the same bits again, and after an interruption."""

import numpy as np
import pytest
import torch

from monoeval import bundles
from monoeval.adapters.registry import build
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.sae import TopKSAE
from monoeval.adapters.spec import AdapterSpec
from monoeval.backbones.features import FeatureSet
from monoeval.backbones.resolve import resolve
from monoeval.backbones.sources import build as network_of
from monoeval.backbones.spec import BackboneSpec, PretrainSpec
from monoeval.data.images import DataSpec
from monoeval.data.load import load_data
from monoeval.probes.problem import Problem
from monoeval.training import pretrain as pretraining
from monoeval.training.finetune import Finetuner
from monoeval.training.keys import STEM
from monoeval.training.pretrain import pretrain
from monoeval.training.settings import FinetuneSpec

pytestmark = pytest.mark.gpu
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def digits():
    return load_data(DataSpec(name="digits", limit=300)).train


def pretrained(images, device, place, monkeypatch, **settings):
    """The weights and description of a short pretraining in a cache of its own."""
    monkeypatch.setenv("MONOEVAL_CACHE", str(place))
    spec = PretrainSpec(**{"objective": "ncl", "epochs": 4, "batch_size": 64, **settings})
    return bundles.read(pretrain(spec, images, seed=0, device=device, checkpoint_seconds=0), STEM)


@pytest.mark.parametrize("network", ["tiny", "test_resnet"])
def test_a_pretraining_begins_as_on_the_cpu_and_is_repeated_to_the_bit(digits, tmp_path, monkeypatch, network):
    settings = {"network": network, "precision": "fp32", "epochs": 2}
    places = enumerate((CPU, CUDA, CUDA))
    runs = [pretrained(digits, device, tmp_path / str(n), monkeypatch, **settings) for n, device in places]
    (_, here), (weights, there), (again, _) = runs
    assert there["losses"] == pytest.approx(here["losses"], rel=0.02)
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())


def test_an_interrupted_pretraining_ends_with_the_same_bits(digits, tmp_path, monkeypatch):
    whole, _ = pretrained(digits, CUDA, tmp_path / "whole", monkeypatch)
    one_epoch, epochs = pretraining._Training._one_epoch, []

    def stopping(self, *rest):
        if len(epochs) == 2:
            raise KeyboardInterrupt
        epochs.append(one_epoch(self, *rest))
        return epochs[-1]

    with monkeypatch.context() as patched:
        patched.setattr(pretraining._Training, "_one_epoch", stopping)
        with pytest.raises(KeyboardInterrupt):
            pretrained(digits, CUDA, tmp_path / "parts", patched)
    resumed, about = pretrained(digits, CUDA, tmp_path / "parts", monkeypatch)
    assert about["losses"][:2] == epochs
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("adapt", ["full", "lora"])
@pytest.mark.parametrize("on_device", [True, False], ids=["images on the GPU", "images beside it"])
def test_finetuning_agrees_with_the_cpu(digits, monkeypatch, adapt, on_device):
    if not on_device:
        monkeypatch.setattr("monoeval.training.finetune.free_bytes", lambda _: 0)
    spec = BackboneSpec(model="test_vit", weights="random", image_size=32)
    chosen = FinetuneSpec(adapt=adapt, epochs=3, learning_rates=[1e-3], batch_size=32)
    pixels = torch.stack([torch.from_numpy(np.resize(digits.read(row), (32, 32, 3))) for row in range(96)])
    task, logits = Problem(np.arange(64), digits.labels[:64]), []
    for device in (CPU, CUDA, CUDA):
        torch.manual_seed(0)
        network = network_of(resolve(spec), spec, 0)
        seen = pixels.permute(0, 3, 1, 2)
        made = Finetuner(network, chosen, seen, 10, name="vit", device=device)
        made.fit(task, seed=0)
        logits.append(made.logits(seen[64:]))
    here, there, again = logits
    assert torch.equal(there, again)
    torch.testing.assert_close(there, here, atol=0.05, rtol=0.05)


def test_seeds_of_a_stack_are_those_of_the_cpu(tmp_path):
    rows_nd = np.random.default_rng(0).standard_normal((2000, 16), dtype=np.float32)
    rows_nd = np.maximum(rows_nd, 0) @ np.random.default_rng(1).standard_normal((16, 64), dtype=np.float32)
    np.save(tmp_path / "rows.npy", rows_nd)
    found = []
    for device in (CPU, CUDA):
        specs = [AdapterSpec(method="sae", params={"width": 256, "k": k, "steps": 200}) for k in (8, 8, 16)]
        members = [build(spec) for spec in specs]
        rows = TrainingRows(FeatureSet("made", (tmp_path / "rows.npy",)), None, device)
        TopKSAE.fit_together(members, rows, (0, 1, 0))
        found.append([member.measures["explained_variance"] for member in members])
    assert found[1] == pytest.approx(found[0], abs=0.02)
    assert found[1][2] > found[1][0]
