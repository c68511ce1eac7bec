"""Finetuning: what is trained, what stays, and how the learning rate is chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from monoeval.backbones.preprocess import Preprocess
from monoeval.backbones.resolve import resolve
from monoeval.backbones.sources import Network, build
from monoeval.backbones.spec import BackboneSpec
from monoeval.errors import MonoevalError, UsageError
from monoeval.probes.problem import Problem
from monoeval.training.finetune import Classifier, Finetuner
from monoeval.training.lora import SCALE, LowRank, activity, insert
from monoeval.training.networks import Projected
from monoeval.training.networks import build as tiny
from monoeval.training.settings import FinetuneSpec

CPU = torch.device("cpu")
PLAIN = Preprocess(image_size=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def bright_and_dark(n: int = 60) -> tuple[Tensor, np.ndarray]:
    """Images uint8 [n, 3, 16, 16] of two classes that differ in brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    pixels = rng.integers(0, 128, (n, 3, 16, 16)) + 127 * labels[:, None, None, None]
    return torch.from_numpy(pixels.astype(np.uint8)), labels


def tiny_network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    module = tiny("tiny", 8, 16)
    return Network(module, module, PLAIN)


def vit() -> Network:
    spec = BackboneSpec(model="test_vit", weights="random", image_size=32)
    return build(resolve(spec), spec, 0)


def finetuner(network: Network, n_classes: int = 2, **fields: object) -> tuple[Finetuner, Problem]:
    pixels, labels = bright_and_dark()
    spec = FinetuneSpec.model_validate({"epochs": 4, "learning_rates": [1e-3], "batch_size": 16, **fields})
    made = Finetuner(network, spec, pixels, n_classes, name="the network", device=CPU)
    return made, Problem(np.arange(40), labels[:40])


def test_low_rank_changes_add_the_product_of_their_factors() -> None:
    torch.manual_seed(0)
    frozen, x = nn.Linear(5, 3), torch.randn(4, 5)
    layer = LowRank(frozen, 2, non_negative=False)
    assert torch.equal(layer(x), frozen(x))  # nothing is changed before training
    with torch.no_grad():
        layer.up.normal_()
    merged = frozen.weight + SCALE * layer.up @ layer.down
    torch.testing.assert_close(layer(x), x @ merged.T + frozen.bias)


def test_a_monosemantic_change_by_hand() -> None:
    frozen = nn.Linear(2, 1, bias=False)
    layer = LowRank(frozen, 2, non_negative=True)
    with torch.no_grad():
        frozen.weight.copy_(torch.tensor([[1.0, 1.0]]))
        layer.down.copy_(torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
        layer.up.copy_(torch.tensor([[10.0, 100.0]]))
    # latents of (3, 4): (3, -4) → (3, 0); 3 + 4 + 2 · 10 · 3
    assert layer(torch.tensor([[3.0, 4.0]])).item() == 67
    # latents of (-3, -4): (-3, 4) → (0, 4); -3 - 4 + 2 · 100 · 4
    assert layer(torch.tensor([[-3.0, -4.0]])).item() == 793
    assert activity([layer], layer, torch.tensor([[3.0, 4.0], [-1.0, 1.0]])) == 0.25


def test_gradients_reach_the_factors_and_not_the_layer() -> None:
    layer = LowRank(nn.Linear(3, 2), 4, non_negative=True)
    model = nn.Sequential(nn.Linear(3, 3), layer)
    made = insert(model, 4, "monolora", "it")
    assert len(made) == 1  # the low-rank layer that was there is left alone
    with torch.no_grad():
        made[0].up.normal_()
    model(torch.randn(6, 3)).square().sum().backward()  # type: ignore[no-untyped-call]
    assert made[0].frozen.weight.grad is None
    assert made[0].down.grad is not None
    assert made[0].down.grad.abs().sum() > 0


def test_attention_of_torch_stays_as_it_is() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert len(insert(block, 2, "lora", "it")) == 2  # both layers of the MLP


def test_torchs_encoder_layer_reads_the_changed_weights_in_evaluation() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    for layer in insert(block, 2, "lora", "it"):
        nn.init.normal_(layer.up)
    x = torch.randn(2, 3, 8)
    expected = block.train()(x)  # calls its layers
    torch.testing.assert_close(block.eval()(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected)


def beit_and_kin(name: str) -> nn.Module:
    """A network of timm with one small block, the attention of which reads `qkv.weight`."""
    from timm.models import beit, eva, swin_transformer_v2

    torch.manual_seed(0)
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
    if name == "beit":
        return beit.Beit(qkv_bias=True, **small)
    if name == "eva":
        return eva.Eva(qkv_fused=True, **small)
    swin = swin_transformer_v2.SwinTransformerV2(
        img_size=16, patch_size=4, embed_dim=16, depths=(1,), num_heads=(2,), window_size=2, num_classes=0
    )
    for module in swin.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)  # at first those of the blocks are zero, which lets nothing through
    return swin


@pytest.mark.parametrize("name", ["beit", "eva", "swinv2"])
def test_modules_that_read_weights_get_the_changed_ones_with_their_gradients(name: str) -> None:
    module, x = beit_and_kin(name).eval(), torch.randn(2, 3, 16, 16)
    before = module(x)
    layers = insert(module, 2, "lora", "it")
    torch.testing.assert_close(module(x), before)
    for layer in layers:
        nn.init.normal_(layer.up, std=0.1)
    changed = module(x)
    assert not torch.allclose(changed, before, atol=1e-3)
    changed.square().sum().backward()  # type: ignore[no-untyped-call]
    for layer in layers:
        assert layer.frozen.weight.grad is None
        for factor in (layer.down, layer.up):
            assert factor.grad is not None
            assert factor.grad.any()

    plain = beit_and_kin(name).eval()  # with the products of the factors in its own weights
    merged = []
    for path, layer in module.named_modules():
        if isinstance(layer, LowRank):
            own = plain.get_submodule(path)
            with torch.no_grad():
                own.weight += SCALE * layer.up @ layer.down
            merged.append((layer, own))
    out = plain(x)
    torch.testing.assert_close(out, changed)
    out.square().sum().backward()
    assert len(merged) == len(layers)
    for layer, own in merged:
        of_up, of_down = own.weight.grad @ layer.down.T, layer.up.T @ own.weight.grad
        torch.testing.assert_close(layer.up.grad, SCALE * of_up, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(layer.down.grad, SCALE * of_down, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("adapt", ["lora", "monolora"])
def test_a_network_that_reads_weights_is_finetuned_by_lora_alone(adapt: str) -> None:
    module = beit_and_kin("beit").eval()
    if adapt == "monolora":
        with pytest.raises(
            UsageError, match=r"MonoLoRA cannot change blocks\.0\.attn\.qkv: .* choose adapt: lora"
        ):
            finetuner(Network(module, module, PLAIN), adapt=adapt)
        return
    made, task = finetuner(Network(module, module, PLAIN), adapt=adapt, learning_rates=[1e-2], epochs=8, crop=1)
    assert made.fit(task, seed=0).active is not None
    _, labels = bright_and_dark()
    assert (made.logits(made.squares.held[40:]).argmax(1).numpy() == labels[40:]).mean() >= 0.9


def test_every_layer_that_a_monosemantic_change_cannot_reach_is_named() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    stack = nn.Sequential(layer, nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    insert(stack, 2, "monolora", "it")
    with torch.no_grad(), pytest.raises(UsageError, match=r"0\.linear1 and 1 more \(1\.linear1\)"):
        stack(torch.randn(2, 3, 8))


def test_a_network_without_linear_layers_cannot_take_low_rank_changes() -> None:
    network = tiny_network()
    with pytest.raises(UsageError, match="the network has no linear layers for lora to change"):
        finetuner(network, adapt="lora")


@pytest.mark.parametrize("adapt", ["lora", "monolora"])
def test_low_rank_finetuning_changes_nothing_else_and_learns(adapt: str) -> None:
    network = vit()
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    pixels, labels = bright_and_dark()
    pixels = torch.nn.functional.interpolate(pixels.float(), 32).to(torch.uint8)
    spec = FinetuneSpec(adapt=adapt, epochs=4, learning_rates=(3e-3,), batch_size=16, crop=1)
    made = Finetuner(network, spec, pixels, 2, name="the network", device=CPU)
    choice = made.fit(Problem(np.arange(40), labels[:40]), seed=0)
    after = network.module.state_dict()
    for name, value in before.items():
        parts = name.rpartition(".")
        kept = after.get(name, after.get(f"{parts[0]}.frozen.{parts[2]}"))
        assert kept is not None
        assert torch.equal(kept, value), name
    accuracy = (made.logits(pixels[40:]).argmax(1).numpy() == labels[40:]).mean()
    assert accuracy >= 0.9
    assert choice.active is not None
    assert choice.active < 0.9 if adapt == "monolora" else choice.active > 0.99


def test_the_projector_stays_frozen_and_the_backbone_moves() -> None:
    network = tiny_network()
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    made, task = finetuner(network)
    made.fit(task, seed=0)
    changed = {n for n, v in network.module.state_dict().items() if not torch.equal(v, before[n])}
    assert any(name.startswith("convolutions") for name in changed)
    assert not any(name.startswith("projector") for name in changed)


def test_non_negative_cross_entropy_sees_positive_parts_alone() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        module[1].weight.copy_(torch.eye(2))
    made = Classifier(Network(module, module, PLAIN), 2, 2, non_negative=True)
    x = torch.tensor([[1.0, -2.0]]).view(1, 2, 1, 1)
    assert made.features(x).tolist() == [[1.0, 0.0]]
    made(x)[0, 0].backward()
    assert made.head.weight.grad is not None
    assert made.head.weight.grad.tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_a_training_depends_on_its_task_and_seed_alone() -> None:
    made, task = finetuner(tiny_network())
    made.fit(task, seed=1)
    first = made.logits(made.squares.held)
    made.fit(Problem(task.rows[:20], 1 - task.labels[:20]), seed=2)
    assert not torch.equal(made.logits(made.squares.held), first)
    made.fit(task, seed=1)
    assert torch.equal(made.logits(made.squares.held), first)


@pytest.mark.parametrize("flip", [False, True])
def test_whole_images_are_trained_on_as_they_are_or_mirrored(flip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made, task = finetuner(tiny_network(), crop=1, flip=flip)
    seen: list[Tensor] = []
    normal = Finetuner._normal
    monkeypatch.setattr(Finetuner, "_normal", lambda self, x: (seen.append(x), normal(self, x))[1])
    made.fit(task, seed=0)
    views = torch.cat(seen[1:-1])  # without those of the scale and of the latents
    whole = made.squares.held[:40].float() / 255
    mirrored = whole.flip(3)
    as_is = (views[:, None] == whole).flatten(2).all(2).any(1)
    turned = (views[:, None] == mirrored).flatten(2).all(2).any(1)
    assert (as_is | turned).all()
    assert turned.float().mean().item() == pytest.approx(0.5 if flip else 0, abs=0.15)


def test_dropout_is_drawn_from_the_seed_too() -> None:
    network = tiny_network()
    dropping = nn.Sequential(network.module, nn.Dropout(0.5))
    made, task = finetuner(Network(dropping, dropping, PLAIN), epochs=1)
    torch.manual_seed(1)
    made.fit(task, seed=0)
    first = made.logits(made.squares.held)
    torch.manual_seed(2)
    made.fit(task, seed=0)
    assert torch.equal(made.logits(made.squares.held), first)


@pytest.mark.parametrize("objective", ["ce", "nce"])
def test_finetuning_learns(objective: str) -> None:
    made, task = finetuner(tiny_network(), objective=objective, learning_rates=[3e-3], epochs=8)
    made.fit(task, seed=0)
    _, labels = bright_and_dark()
    assert (made.logits(made.squares.held[40:]).argmax(1).numpy() == labels[40:]).mean() >= 0.9


def test_the_rate_of_least_validation_loss_is_chosen() -> None:
    rates = (1e-7, 1e-3)
    pixels, labels = bright_and_dark()
    losses = []
    for rate in rates:
        made, task = finetuner(tiny_network(), learning_rates=[rate])
        made.fit(task, seed=0)
        logits = made.logits(pixels[40:])
        losses.append(float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[40:]))))
    made, task = finetuner(tiny_network(), learning_rates=list(rates))
    choice = made.fit(Problem(task.rows, task.labels, np.arange(40, 60), labels[40:]), seed=0)
    assert choice.learning_rate == rates[int(np.argmin(losses))]
    assert choice.at_edge
    assert made.fit(task, seed=0).learning_rate in rates  # a held-out fifth where none are given


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_rate_that_diverges_is_not_chosen(epochs: int) -> None:
    made, task = finetuner(tiny_network(), learning_rates=[1e-3, 1e30], epochs=epochs, batch_size=64)
    assert made.fit(task, seed=0).learning_rate == 1e-3
    assert torch.isfinite(made.logits(made.squares.held)).all()


def test_a_loss_that_is_not_finite_stops_with_a_sentence() -> None:
    made, task = finetuner(tiny_network(), learning_rates=[1e30], epochs=3)
    with pytest.raises(
        MonoevalError, match=r"loss became .* at step . of .*: give lower learning_rates than 1e\+30"
    ):
        made.fit(task, seed=0)


def test_weights_that_the_last_step_broke_are_told() -> None:
    made, task = finetuner(tiny_network(), learning_rates=[1e30], epochs=1, batch_size=64)
    with pytest.raises(
        MonoevalError, match=r"weights give no finite loss after step 1 of 1: give lower learning_rates"
    ):
        made.fit(task, seed=0)


def test_images_that_a_device_has_no_room_for_train_the_same_network() -> None:
    found = []
    for there in (True, False):
        made, task = finetuner(tiny_network(), flip=True)
        if not there:  # as where a GPU's memory is too small for them
            made.squares = replace(made.squares, held=made.squares.held.numpy())
        made.fit(task, seed=0)
        found.append(made.logits(bright_and_dark()[0]))
    assert torch.equal(*found)


def rectified(bias: float) -> Projected:
    """A network as NCL leaves it, whose projector gives about `bias`."""
    torch.manual_seed(0)
    module = tiny("tiny", 8, 16, non_negative=True)
    with torch.no_grad():
        module.projector[-1].bias.fill_(bias)
    return module.eval()


def test_of_what_pretraining_rectified_cross_entropy_reads_the_sign_too() -> None:
    module, seen = rectified(0.0), torch.rand(4, 3, 16, 16)
    plain, positive = (Classifier(Network(module, module, PLAIN), 8, 2, nn) for nn in (False, True))
    assert torch.equal(plain.features(seen), module.project(seen))
    assert (plain.features(seen) < 0).any()
    assert torch.equal(positive.features(seen), module(seen))
    inner = Network(module, module.backbone, PLAIN)  # another layer is read as it is
    assert torch.equal(Classifier(inner, 128, 2, False).features(seen), module.backbone(seen))


def test_features_that_pretraining_rectified_still_learn_below_zero() -> None:
    module, seen = rectified(-3.0), torch.rand(4, 3, 16, 16)
    assert not module(seen).any()
    classifier = Classifier(Network(module, module, PLAIN), 8, 2, non_negative=True)
    features = classifier.features(seen)
    assert torch.equal(features, module(seen))
    features.sum().backward()
    assert module.convolutions[0].weight.grad.abs().sum() > 0
