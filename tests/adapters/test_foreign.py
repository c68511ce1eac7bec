"""Autoencoders of other libraries: files that those wrote (`foreign/make.py`), beside their own codes of the same
rows; and files written by hand here, beside formulas worked out in numpy float64."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from monoeval.adapters import foreign_files
from monoeval.adapters.base import SparseRows
from monoeval.adapters.registry import adapter_identity, build, controls_for, spec_of
from monoeval.adapters.rows import TrainingRows
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.store import fit_cached, load, save
from monoeval.errors import MonoevalError, UsageError

CPU = torch.device("cpu")
N, D, M, K = 40, 6, 12, 3

_draw = np.random.default_rng(5)
X = (_draw.normal(size=(N, D)) * 2 + _draw.normal(size=D)).astype(np.float32)
W_ENC = _draw.normal(size=(D, M)).astype(np.float32)
W_DEC = _draw.normal(size=(M, D)).astype(np.float32)
UNIT = W_DEC / np.linalg.norm(W_DEC, axis=1, keepdims=True)
B_DEC = _draw.normal(size=D).astype(np.float32)
B_ENC, B_MAG, R_MAG, LEVEL = (_draw.normal(size=M).astype(np.float32) * 0.5 for _ in range(4))
LENGTHS = np.linalg.norm(W_DEC.astype(np.float64), axis=1)


def spec(path, **params) -> AdapterSpec:
    return AdapterSpec(method="pretrained", params={"path": str(path), **params})


def fitted(path, features, **params):
    return build(spec(path, **params)).fit(TrainingRows(features, None, CPU), seed=0)


def tensors(**arrays) -> dict[str, torch.Tensor]:
    return {name.replace("__", "."): torch.from_numpy(np.array(a, order="C")) for name, a in arrays.items()}


def folder(path: Path, weights: str, config: dict | None, **arrays) -> Path:
    """A folder in one of the layouts; `encoder__weight` stands for the name encoder.weight."""
    path.mkdir(parents=True)
    (save_file if weights.endswith(".safetensors") else torch.save)(tensors(**arrays), path / weights)
    if config is not None:
        name = "config.json" if weights == "ae.pt" else "cfg.json"
        (path / name).write_text(json.dumps(config))
    return path


def sparsify(path: Path, config: dict | None = None, **arrays) -> Path:
    config = {"activation": "topk", "k": K, "d_in": D, "num_latents": M, "transcode": False} | (config or {})
    given = {"encoder__weight": W_ENC.T, "encoder__bias": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC} | arrays
    return folder(path, "sae.safetensors", config, **given)


def saelens(path: Path, architecture: str, config: dict | None = None, **arrays) -> Path:
    config = {"architecture": architecture, "d_in": D, "d_sae": M, "dtype": "float32"} | (config or {})
    own = {
        "topk": {"b_enc": B_ENC},
        "jumprelu": {"b_enc": B_ENC, "threshold": LEVEL},
        "gated": {"b_gate": B_ENC, "r_mag": R_MAG, "b_mag": B_MAG},
    }.get(architecture, {"b_enc": B_ENC})
    given = {"W_enc": W_ENC, "W_dec": W_DEC, "b_dec": B_DEC} | own | arrays
    return folder(path, "sae_weights.safetensors", config, **given)


def learned(path: Path, name: str, config: dict | None = None, **arrays) -> Path:
    trainer = {"dict_class": name, "activation_dim": D, "dict_size": M} | (config or {})
    return folder(path, "ae.pt", {"trainer": trainer, "buffer": {}}, **arrays)


def state_dict(path: Path, **arrays) -> Path:
    torch.save(tensors(**arrays), path)
    return path


def relu(a):
    return np.maximum(a, 0)


def largest(a, k=K):
    """The k largest of each row, those above 0; row by row."""
    out = np.zeros_like(a)
    for row, kept in zip(a, out, strict=True):
        best = np.argsort(-row)[:k]
        kept[best] = relu(row[best])
    return out


def first_of_groups(a):
    out = np.zeros_like(a)
    for row, kept in zip(a, out, strict=True):
        for group in np.split(np.arange(M), K):
            best = group[np.argmax(row[group])]
            kept[best] = max(row[best], 0)
    return out


def gate(a):
    return np.where(a + B_ENC > 0, relu(a * np.exp(R_MAG.astype(np.float64)) + B_MAG), 0)


X64 = X.astype(np.float64)
CENTRED = (X64 - B_DEC) @ W_ENC.astype(np.float64)
PLAIN = X64 @ W_ENC.astype(np.float64)
LAYER = (X64 - X64.mean(1, keepdims=True)) / (X64.std(1, ddof=1, keepdims=True) + 1e-5)
COEFFICIENT = np.sqrt(D) / np.linalg.norm(X64, axis=1, keepdims=True)
H = CENTRED + B_ENC
SHRUNK = H * LENGTHS  # with decoder rows of unit length
LINEAR = {"encoder__weight": W_ENC.T, "encoder__bias": B_ENC, "decoder__weight": W_DEC.T}
MATRICES = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
ATOMS = {"dictionary___weights": UNIT, "dictionary__multiplier": np.float32(0.3)}
GROWN = UNIT * np.exp(0.3)
HEAD = {"encoder__final_block__0__weight": W_ENC.T, "encoder__final_block__0__bias": B_ENC}
RAISED = np.float32(0.4)
REACHED = np.exp(LEVEL.astype(np.float64))

# name: how to write it, the codes, and the reconstruction
CASES = {
    "sparsify": (lambda p: sparsify(p), largest(H), lambda z: z @ W_DEC + B_DEC),
    "sparsify groupmax": (
        lambda p: sparsify(p, {"activation": "groupmax"}), first_of_groups(H), lambda z: z @ W_DEC + B_DEC,
    ),
    "SAELens standard": (lambda p: saelens(p, "standard"), relu(H), lambda z: z @ W_DEC + B_DEC),
    "SAELens without b_dec on the input": (
        lambda p: saelens(p, "standard", {"apply_b_dec_to_input": False}),
        relu(PLAIN + B_ENC), lambda z: z @ W_DEC + B_DEC,
    ),
    "SAELens layer_norm": (
        lambda p: saelens(p, "standard", {"normalize_activations": "layer_norm"}),
        relu((LAYER - B_DEC) @ W_ENC + B_ENC),
        lambda z: (z @ W_DEC + B_DEC) * X64.std(1, ddof=1, keepdims=True) + X64.mean(1, keepdims=True),
    ),
    "SAELens constant_norm_rescale": (
        lambda p: saelens(p, "topk", {"k": K, "normalize_activations": "constant_norm_rescale"}),
        largest((X64 * COEFFICIENT - B_DEC) @ W_ENC + B_ENC), lambda z: (z @ W_DEC + B_DEC) / COEFFICIENT,
    ),
    "SAELens topk": (lambda p: saelens(p, "topk", {"k": K}), largest(H), lambda z: z @ W_DEC + B_DEC),
    "SAELens topk rescaled": (
        lambda p: saelens(p, "topk", {"k": K, "rescale_acts_by_decoder_norm": True}),
        largest(SHRUNK), lambda z: (z / LENGTHS) @ W_DEC + B_DEC,
    ),
    "SAELens before version 6": (
        lambda p: saelens(
            p, "standard",
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False},
            scaling_factor=np.ones(M, np.float32),
        ),
        largest(H), lambda z: z @ W_DEC + B_DEC,
    ),
    "SAELens jumprelu": (
        lambda p: saelens(p, "jumprelu"), relu(H) * (H > LEVEL), lambda z: z @ W_DEC + B_DEC,
    ),
    "SAELens jumprelu in logarithms": (
        lambda p: folder(
            p, "sae_weights.safetensors", {"architecture": "jumprelu"}, **MATRICES, log_threshold=LEVEL
        ),
        relu(H) * np.greater(H, REACHED), lambda z: z @ W_DEC + B_DEC,
    ),
    "SAELens gated": (lambda p: saelens(p, "gated"), gate(CENTRED), lambda z: z @ W_DEC + B_DEC),
    "AutoEncoder": (
        lambda p: learned(p, "AutoEncoder", **LINEAR, bias=B_DEC),
        relu(SHRUNK), lambda z: (z / LENGTHS) @ W_DEC + B_DEC,
    ),
    "AutoEncoderNew": (
        lambda p: learned(p, "AutoEncoderNew", **LINEAR, decoder__bias=B_DEC),
        relu(PLAIN + B_ENC), lambda z: z @ W_DEC + B_DEC,
    ),
    "AutoEncoderTopK": (
        lambda p: learned(p, "AutoEncoderTopK", {"k": K}, **LINEAR, b_dec=B_DEC, k=np.int32(K)),
        largest(H), lambda z: z @ W_DEC + B_DEC,
    ),
    "BatchTopKSAE": (
        lambda p: learned(p, "BatchTopKSAE", {"k": K}, **LINEAR, b_dec=B_DEC, k=np.int32(K), threshold=RAISED),
        H * (H > 0.4), lambda z: z @ W_DEC + B_DEC,
    ),
    "MatryoshkaBatchTopKSAE": (
        lambda p: learned(p, "MatryoshkaBatchTopKSAE", {"k": K}, **MATRICES, k=np.int32(K), threshold=RAISED),
        H * (H > 0.4), lambda z: z @ W_DEC + B_DEC,
    ),
    "GatedAutoEncoder": (
        lambda p: learned(
            p, "GatedAutoEncoder", encoder__weight=W_ENC.T, decoder__weight=W_DEC.T, decoder_bias=B_DEC,
            gate_bias=B_ENC, r_mag=R_MAG, mag_bias=B_MAG,
        ),
        gate(CENTRED), lambda z: z @ W_DEC + B_DEC,
    ),
    "JumpReluAutoEncoder": (
        lambda p: learned(p, "JumpReluAutoEncoder", **MATRICES, threshold=LEVEL),
        relu(PLAIN + B_ENC) * (PLAIN + B_ENC > LEVEL), lambda z: z @ W_DEC + B_DEC,
    ),
    "overcomplete": (
        lambda p: (state_dict(p, **ATOMS, **HEAD), {"k": 0}), relu(PLAIN + B_ENC), lambda z: z @ GROWN,
    ),
    "overcomplete TopKSAE": (
        lambda p: (state_dict(p, **ATOMS, **HEAD), {"k": K}), largest(PLAIN + B_ENC), lambda z: z @ GROWN,
    ),
    "overcomplete JumpSAE": (
        lambda p: state_dict(p, **ATOMS, **HEAD, thresholds=LEVEL),
        relu(PLAIN + B_ENC) * np.greater_equal(PLAIN + B_ENC, REACHED), lambda z: z @ GROWN,
    ),
    "overcomplete untied": (
        lambda p: (state_dict(p, **ATOMS, encoder__weight=W_ENC.T), {"k": K}), largest(PLAIN), lambda z: z @ GROWN,
    ),
    "overcomplete tied": (
        lambda p: (
            state_dict(p, **ATOMS, encoder__bias=B_ENC, encoder__tied_to___weights=UNIT,
                       encoder__tied_to__multiplier=np.float32(0.3)),
            {"k": K},
        ),
        largest(X64 @ GROWN.T + B_ENC), lambda z: z @ GROWN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_codes_reconstruction_and_measures_are_those_of_the_formula(case, feature_set, tmp_path):
    write, codes, decode = CASES[case]
    written = write(tmp_path / "theirs")
    path, params = written if isinstance(written, tuple) else (written, {})
    adapter = fitted(path, feature_set(X), **params)
    ours = adapter.encode(torch.from_numpy(X))
    assert isinstance(ours, SparseRows) == (codes.astype(bool).sum(1).max() <= K)
    dense = ours.dense() if isinstance(ours, SparseRows) else ours
    np.testing.assert_allclose(dense, codes, atol=2e-5)
    np.testing.assert_array_equal(dense != 0, codes != 0)
    assert adapter.width == M
    back = adapter.decode(ours)
    if "layer_norm" in case or "constant" in case:
        assert back is None
    else:
        np.testing.assert_allclose(back, decode(codes), atol=1e-4)
        start = adapter.decode(torch.zeros(1, M))
        one = adapter.decode(torch.eye(M))
        np.testing.assert_allclose(one - start, adapter.directions, atol=1e-5)
    missed = ((X64 - decode(codes)) ** 2).sum() / ((X64 - X64.mean(0)) ** 2).sum()
    measured = adapter.report()
    assert measured["explained_variance"] == pytest.approx(1 - missed, rel=1e-4)
    assert measured["l0"] == pytest.approx((codes != 0).sum() / N)
    assert measured["dead_share"] == pytest.approx((codes == 0).all(0).mean(), abs=1e-6)
    save(adapter, spec(path, **params), tmp_path / "ours")
    path.rename(tmp_path / "gone")  # what was saved stands alone
    again = load(tmp_path / "ours")
    theirs = again.encode(torch.from_numpy(X))
    assert torch.equal(theirs.dense() if isinstance(theirs, SparseRows) else theirs, dense)
    assert again.report() == measured
    assert again.width == M


MADE = sorted(path.parent for path in (Path(__file__).parent / "foreign").rglob("expected.safetensors"))


@pytest.mark.parametrize("made", MADE, ids=lambda path: f"{path.parent.name} {path.name}")
def test_files_that_the_library_wrote_give_its_own_codes(made, feature_set):
    expected = load_file(made / "expected.safetensors")
    file = next(iter(made.glob("*.pt"))) if made.parent.name == "overcomplete" else made
    params = {"k": {"SAE": 0, "TopKSAE": 3}[made.name]} if made.name in ("SAE", "TopKSAE") else {}
    adapter = fitted(file, feature_set(expected["rows"].numpy()), **params)
    codes = adapter.encode(expected["rows"])
    dense = codes.dense() if isinstance(codes, SparseRows) else codes
    theirs = expected["codes"]
    torch.testing.assert_close(dense, theirs, atol=1e-5, rtol=1e-5)
    assert 0 < float((theirs != 0).double().mean()) < 1
    rebuilt = adapter.decode(codes)
    if "norm" in made.name:
        assert rebuilt is None  # each row has a scale of its own, which its codes do not hold
    else:
        torch.testing.assert_close(rebuilt, expected["rebuilt"], atol=1e-5, rtol=1e-5)


def test_every_library_wrote_some():
    assert {path.parent.name for path in MADE} == {"sparsify", "saelens", "dictionary_learning", "overcomplete"}


def test_numbers_worked_by_hand(feature_set, tmp_path):
    """x = (3, 1), b_dec = (1, 0): (2, 1) against (1, 0), (0, 1), (1, 1) and biases 0, 3, -2 gives 2, 4, 1."""
    rows = np.array([[3, 1], [0, 0], [1, 5]], np.float32)
    path = sparsify(
        tmp_path / "sae",
        {"k": 1},
        encoder__weight=np.array([[1, 0], [0, 1], [1, 1]], np.float32),
        encoder__bias=np.array([0, 3, -2], np.float32),
        W_dec=np.array([[1, 0], [0, 0.5], [1, 1]], np.float32),
        b_dec=np.array([1, 0], np.float32),
    )
    adapter = fitted(path, feature_set(rows))
    codes = adapter.encode(torch.from_numpy(rows))
    assert codes.dense().tolist() == [[0, 4, 0], [0, 3, 0], [0, 8, 0]]
    assert adapter.decode(codes).tolist() == [[1, 2], [1, 1.5], [1, 4]]
    assert adapter.report() == pytest.approx(
        # the means are 4/3 and 2, the squares about them 14/3 and 14; missed are 4 + 1, 1 + 2.25 and 0 + 1
        {"explained_variance": 1 - 9.25 / (56 / 3), "l0": 1, "dead_share": 2 / 3, "width": 3}
    )


@pytest.mark.parametrize("inclusive", [True, False])
def test_what_happens_at_the_threshold_itself(inclusive, feature_set, tmp_path):
    """overcomplete keeps a latent that equals its threshold of exp(0), the others do not."""
    eye, ones, none = np.eye(2, dtype=np.float32), np.ones(2, np.float32), np.zeros(2, np.float32)
    if inclusive:
        path = state_dict(
            tmp_path / "jump.pt", dictionary___weights=eye, dictionary__multiplier=np.float32(0),
            encoder__weight=eye, thresholds=none,
        )  # fmt: skip
    else:
        path = learned(
            tmp_path / "jump", "JumpReluAutoEncoder", W_enc=eye, W_dec=eye, b_enc=none, b_dec=none, threshold=ones
        )
    rows = np.array([[1, np.nextafter(np.float32(1), np.float32(0))], [1.5, -1]], np.float32)
    codes = fitted(path, feature_set(rows)).encode(torch.from_numpy(rows))
    assert codes.tolist() == [[1.0 if inclusive else 0.0, 0], [1.5, 0]]


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_a_row_of_zeros_is_finite_under_each_normalisation(norm, feature_set, tmp_path):
    rows = X.copy()
    rows[0] = 0
    path = saelens(tmp_path / "sae", "topk", {"k": K, "normalize_activations": norm})
    adapter = fitted(path, feature_set(rows))
    np.testing.assert_allclose(
        adapter.encode(torch.from_numpy(rows)).dense()[:1], largest((B_ENC - B_DEC @ W_ENC)[None]), atol=1e-5
    )
    assert np.isfinite(adapter.report()["explained_variance"])


def test_half_precision_weights_are_used_in_float32(feature_set, tmp_path):
    path = sparsify(tmp_path / "sae")
    halves = {
        n: t.bfloat16() for n, t in tensors(encoder__weight=W_ENC.T, encoder__bias=B_ENC, W_dec=W_DEC).items()
    }
    save_file({**halves, "b_dec": torch.from_numpy(B_DEC).bfloat16()}, path / "sae.safetensors")
    adapter = fitted(path, feature_set(X))
    centred = X64 - torch.from_numpy(B_DEC).bfloat16().double().numpy()
    h = centred @ halves["encoder.weight"].double().numpy().T + halves["encoder.bias"].double().numpy()
    codes = adapter.encode(torch.from_numpy(X))
    assert codes.values.dtype == torch.float32
    np.testing.assert_allclose(codes.dense(), largest(h), atol=2e-5)


def test_what_the_files_say_less_than_is_warned_about(feature_set, tmp_path, caplog):
    path = saelens(tmp_path / "a", "standard", {"normalize_activations": "expected_average_only_in"})
    np.testing.assert_allclose(fitted(path, feature_set(X)).encode(torch.from_numpy(X)), relu(H), atol=2e-5)
    assert "does not hold the factor" in caplog.text
    low = {"k": np.int32(K), "threshold": np.float32(-1)}
    path = learned(tmp_path / "b", "BatchTopKSAE", {"k": K}, **LINEAR, b_dec=B_DEC, **low)
    np.testing.assert_allclose(fitted(path, feature_set(X)).encode(torch.from_numpy(X)), relu(H), atol=2e-5)
    assert "before training set its threshold" in caplog.text


def test_keys_follow_what_the_files_say_and_not_where_they_lie(feature_set, tmp_path):
    one, two = sparsify(tmp_path / "one"), sparsify(tmp_path / "two")
    first = adapter_identity(spec(one))
    assert first == adapter_identity(spec(two)) == adapter_identity(spec(two / "sae.safetensors"))
    assert str(tmp_path) not in json.dumps(first)
    save_file(
        tensors(encoder__weight=W_ENC.T, encoder__bias=B_ENC, W_dec=W_DEC, b_dec=-B_DEC), two / "sae.safetensors"
    )
    changed = adapter_identity(spec(two))
    assert changed != first
    (two / "cfg.json").write_text(json.dumps({"activation": "topk", "k": K - 1}))
    assert adapter_identity(spec(two)) not in (first, changed)
    file = state_dict(tmp_path / "atoms.pt", **ATOMS, **HEAD)
    assert adapter_identity(spec(file, k=2)) != adapter_identity(spec(file, k=3))
    features = feature_set(X)
    held = [fit_cached(spec(path), features, None, seed=None, device=CPU) for path in (one, one, two)]
    entries = list((tmp_path / "cache" / "adapters").glob("*/adapter.json"))
    assert len(entries) == 2
    codes = [adapter.encode(torch.from_numpy(X)).dense() for adapter in held]
    assert torch.equal(codes[0], codes[1])
    assert not torch.equal(codes[0], codes[2])


def test_keys_need_no_torch(tmp_path):
    code = (
        "import sys; from monoeval.adapters.registry import adapter_identity; "
        "from monoeval.adapters.spec import AdapterSpec; "
        "adapter_identity(AdapterSpec(method='pretrained', params={'path': sys.argv[1]})); "
        "sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(sparsify(tmp_path / "s"))]
    assert subprocess.run(command, check=False).returncode == 0


def test_an_adapter_of_our_own(feature_set, tmp_path):
    features, asked = feature_set(X), AdapterSpec(method="random-topk", params={"width": M, "k": K})
    made = fit_cached(asked, features, None, seed=3, device=CPU)
    entry = next((tmp_path / "cache" / "adapters").glob("*/adapter.json")).parent
    ours = fitted(entry, features)
    x = torch.from_numpy(X)
    assert torch.equal(ours.encode(x).dense(), made.encode(x).dense())
    assert torch.equal(ours.directions, made.directions)
    for name in ("explained_variance", "l0", "dead_share"):
        assert ours.report()[name] == pytest.approx(made.report()[name], abs=1e-6)
    save(ours, spec(entry), tmp_path / "again", features=features.key)
    nested = fitted(tmp_path / "again", features)
    entry.rename(tmp_path / "moved")
    assert torch.equal(load(tmp_path / "again").encode(x).dense(), made.encode(x).dense())
    assert torch.equal(nested.encode(x).dense(), made.encode(x).dense())
    with pytest.raises(MonoevalError, match="fitted on the features features and these are others: name"):
        fitted(tmp_path / "moved", feature_set(X, "others"))
    whole = (tmp_path / "moved" / "adapter.safetensors").read_bytes()
    (tmp_path / "moved" / "adapter.safetensors").write_bytes(whole[:-9])
    with pytest.raises(MonoevalError, match="cut short or was changed"):
        fitted(tmp_path / "moved", features)


def test_an_adapter_of_our_own_without_a_way_back(feature_set, tmp_path):
    features = feature_set(X)
    asked = AdapterSpec(method="l2norm")
    whole = build(asked).fit(TrainingRows(features, None, CPU), seed=0)
    save(whole, asked, tmp_path / "saved", features=features.key)
    ours = fitted(tmp_path / "saved", features)
    assert ours.decode(ours.encode(torch.from_numpy(X))) is None
    assert ours.report() == {"l0": D, "dead_share": 0, "width": D}


class Module:
    """What runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickled_module_is_refused_and_not_run(feature_set, tmp_path):
    mark, path = tmp_path / "it ran", tmp_path / "module.pt"
    torch.save(Module(mark), path)
    assert zipfile.is_zipfile(path)
    with pytest.raises(
        MonoevalError, match=r"a pickled module, which could run code and is not opened: .*state_dict"
    ) as e:
        fitted(path, feature_set(X), k=3)
    assert "\n" not in str(e.value)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so the test would have seen it


BROKEN = {
    "missing": (lambda p: p / "nothing", r"There is no .*nothing: give a folder or file, or a hub id"),
    "empty folder": (lambda p: p, "holds no autoencoder: name a folder with adapter.safetensors"),
    "no description": (
        lambda p: folder(p / "s", "sae.safetensors", None, b_dec=B_DEC), "has sae.safetensors and no cfg.json",
    ),
    "two in one": (
        lambda p: (sparsify(p / "s"), save_file(tensors(b_dec=B_DEC), p / "s" / "sae_weights.safetensors"))[0],
        "holds sae.safetensors and sae_weights.safetensors: name one",
    ),
    "below": (
        lambda p: (sparsify(p / "layers.0"), sparsify(p / "layers.1" / "mlp"), p)[2],
        "in folders of its own: add one of layers.0, layers.1/mlp to the path",
    ),
    "width": (
        lambda p: sparsify(p / "s", encoder__weight=np.ones((M, 7), np.float32), W_dec=np.ones((M, 7), np.float32),
                           b_dec=np.ones(7, np.float32)),
        "trained on features of width 7 and these have 6",
    ),
    "tensor missing": (
        lambda p: folder(p / "s", "sae.safetensors", {"k": K}, b_dec=B_DEC), "holds no tensor encoder.weight",
    ),
    "shape": (
        lambda p: sparsify(p / "s", W_dec=W_DEC.T), r"a decoder of shape \[6, 12\], and \[12, 6\] is needed",
    ),
    "not finite": (lambda p: sparsify(p / "s", encoder__bias=B_ENC * np.nan), "encoder_bias that are not finite"),
    "k": (lambda p: sparsify(p / "s", {"k": 13}), "has 12 latents, of which k = 13 cannot be active"),
    "groups": (lambda p: sparsify(p / "s", {"k": 5, "activation": "groupmax"}), "k = 5 cannot be active"),
    "k missing": (lambda p: saelens(p / "s", "topk"), "gives k as None, and a count from 1 is needed"),
    "two k": (
        lambda p: learned(p / "s", "AutoEncoderTopK", {"k": 4}, **LINEAR, b_dec=B_DEC, k=np.int32(K)),
        r"says k is 3 and .*config.json says 4",
    ),
    "activation": (lambda p: sparsify(p / "s", {"activation": "relu"}), "'relu', .* sparsify .* topk, groupmax"),
    "transcoder": (lambda p: sparsify(p / "s", {"transcode": True}), "transcode set, which cannot be read"),
    "architecture": (
        lambda p: saelens(p / "s", "temporal"), "'temporal', .* of SAELens .* standard, topk, jumprelu, gated",
    ),
    "function": (lambda p: saelens(p / "s", "standard", {"activation_fn": "tanh-relu"}), "'tanh-relu', which"),
    "normalisation": (
        lambda p: saelens(p / "s", "standard", {"normalize_activations": "covariance_whitening"}),
        "'covariance_whitening', .* none, layer_norm",
    ),
    "rescaled": (
        lambda p: saelens(p / "s", "standard", scaling_factor=np.full(M, 2, np.float32)), "after training",
    ),
    "class": (lambda p: learned(p / "s", "IdentityDict"), "class 'IdentityDict', .*, AutoEncoderTopK"),
    "no class": (lambda p: folder(p / "s", "ae.pt", {"trainer": 3}, b_dec=B_DEC), "the class None"),
    "not JSON": (
        lambda p: (s := sparsify(p / "s"), (s / "cfg.json").write_text('{"k": '))[0], "cfg.json is cut short",
    ),
    "a JSON list": (lambda p: (s := sparsify(p / "s"), (s / "cfg.json").write_text("[]"))[0], "no JSON object"),
    "no dictionary": (lambda p: state_dict(p / "x.pt", weight=W_ENC), "no tensor dictionary._weights"),
    "k not said": (lambda p: state_dict(p / "x.pt", **ATOMS, **HEAD), "does not say how many latents .*: give k"),
    "another encoder": (
        lambda p: state_dict(p / "x.pt", **ATOMS, **HEAD, encoder__final_block__1__weight=B_ENC),
        "the tensor encoder.final_block.1.weight, which cannot be read: of overcomplete .* SAE, TopKSAE",
    ),
    "another dictionary": (
        lambda p: state_dict(p / "x.pt", **{**ATOMS, "dictionary___weights": W_DEC}, **HEAD), "not of unit length",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_bad_input_is_one_sentence(case, feature_set, tmp_path):
    make, words = BROKEN[case]
    root = tmp_path / "given"
    root.mkdir()
    path = make(root)
    with pytest.raises(MonoevalError, match=words) as caught:
        fitted(path, feature_set(X))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("layout", ["safetensors", "torch"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_file_cut_short_is_one_sentence(layout, share, feature_set, tmp_path):
    if layout == "torch":
        path = learned(tmp_path / "s", "AutoEncoder", **LINEAR, bias=B_DEC) / "ae.pt"
    else:
        path = sparsify(tmp_path / "s") / "sae.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        MonoevalError, match=r"cannot be read \(\w+\): it is cut short or no file of tensors"
    ) as caught:
        fitted(path, feature_set(X))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("held", [[torch.ones(2)], {"model": {"weight": torch.ones(2)}}])
def test_what_is_no_state_dict_is_refused(held, feature_set, tmp_path):
    torch.save(held, tmp_path / "x.pt")
    with pytest.raises(MonoevalError, match="is not a state dict of tensors"):
        fitted(tmp_path / "x.pt", feature_set(X))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "pretrained needs path, which has no default"),
        ({"path": ""}, "path cannot be ''"),
        ({"path": "x", "revision": "main"}, "revision belongs to a hub id"),
        ({"path": "x", "width": 3}, "no pretrained parameter named 'width'"),
    ],
)
def test_wrong_settings_are_one_sentence(params, words):
    with pytest.raises(UsageError, match=words) as caught:
        spec_of(AdapterSpec(method="pretrained", params=params))
    assert "\n" not in str(caught.value)


def test_k_is_for_files_that_do_not_say_it(feature_set, tmp_path):
    for path in (sparsify(tmp_path / "s"), state_dict(tmp_path / "x.pt", **ATOMS, **HEAD, thresholds=LEVEL)):
        with pytest.raises(UsageError, match="says itself how many latents are active: leave out k"):
            fitted(path, feature_set(X), k=2)
    assert controls_for(spec(tmp_path / "s")) == [AdapterSpec(method="relu")]


def test_a_hub_id_that_is_not_here_is_one_sentence_within_seconds(feature_set, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    began = time.monotonic()
    for ask in (adapter_identity, lambda s: build(s).fit(TrainingRows(feature_set(X), None, CPU), seed=0)):
        with pytest.raises(
            MonoevalError, match=r"hf-hub:some/sae/l.0 is not on this machine and HF_HUB_OFFLINE"
        ) as e:
            ask(spec("hf-hub:some/sae/l.0"))
        assert "\n" not in str(e.value)
    assert time.monotonic() - began < 5
    with pytest.raises(UsageError, match="hf-hub:some is no hub id"):
        adapter_identity(spec("hf-hub:some"))
    monkeypatch.setattr(foreign_files.hub, "offline", lambda: False)
    monkeypatch.setattr(foreign_files.hub, "reachable", lambda: False)
    with pytest.raises(MonoevalError, match=r"https://.* does not answer"):
        adapter_identity(spec("hf-hub:some/other"))


def test_a_hub_id_that_was_fetched_before_needs_no_network(feature_set, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--an--owner"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123456789abcdef0123456789abcdef01234567")
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    sparsify(snapshot / "l.0")
    adapter = fitted("hf-hub:an/owner/l.0", feature_set(X))
    np.testing.assert_allclose(adapter.encode(torch.from_numpy(X)).dense(), largest(H), atol=2e-5)
    local = sparsify(tmp_path / "local")
    assert adapter_identity(spec("hf-hub:an/owner/l.0")) == adapter_identity(spec(local))
    with pytest.raises(MonoevalError, match=r"in folders of its own: add one of l.0 to the path"):
        adapter_identity(spec("hf-hub:an/owner"))
    with pytest.raises(MonoevalError, match=r"hf-hub:an/owner/l.7 is not on this machine"):
        adapter_identity(spec("hf-hub:an/owner/l.7"))


@pytest.mark.parametrize("reachable", [True, False])
def test_what_the_hub_refuses_is_one_sentence(reachable, monkeypatch):
    def refuse(repository, *, local_files_only, revision, allow_patterns):
        assert (repository, revision) == ("not/there", "v1")
        assert local_files_only is not reachable
        assert set(allow_patterns) > {"a.pt", "a.pt/cfg.json", "a.pt/sae.safetensors"}
        raise ValueError("404 Client Error.\nRepository Not Found for url: ...")

    monkeypatch.setattr(foreign_files.hub, "reachable", lambda: reachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(MonoevalError, match=r"could not be fetched \(404 Client Error\): check the id") as caught:
        adapter_identity(spec("hf-hub:not/there/a.pt", revision="v1"))
    assert "\n" not in str(caught.value)
