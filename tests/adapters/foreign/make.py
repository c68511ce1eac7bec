"""Writes the files of this folder: small autoencoders that other libraries made, trained or changed, and saved.

Each has a folder with what the library wrote, and `expected.safetensors`: rows, their codes and reconstructions by
the library itself. `versions.json` says which versions these are.

    uv run --with-requirements tests/benchmarks/peers.txt python tests/adapters/foreign/make.py \
        sparsify dictionary_learning overcomplete
    uv run --with 'sae-lens>=6,<7' python tests/adapters/foreign/make.py saelens
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent
ROWS, D, M, K = 24, 8, 16, 3


def rows(n: int) -> Tensor:
    """Features [n, D] with a mean that is not zero and unequal variances."""
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randn(4096, D, generator=generator) * torch.linspace(0.5, 2, D) + torch.linspace(-1, 1, D)
    return drawn[:n].contiguous()


def expect(folder: Path, codes: Tensor, rebuilt: Tensor) -> None:
    made = {"rows": rows(ROWS), "codes": codes, "rebuilt": rebuilt}
    save_file({name: t.detach().float().contiguous() for name, t in made.items()}, folder / "expected.safetensors")


@torch.no_grad()
def shake(module: nn.Module, spared: tuple[str, ...] = ()) -> None:
    """Move every parameter: as they start, many are zero, and what reads them wrongly would not show."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in module.named_parameters():
        if name not in spared:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def sparsify(folder: Path) -> None:
    os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
    from sparsify import SparseCoder, SparseCoderConfig

    for activation in ("topk", "groupmax"):
        k = 4 if activation == "groupmax" else K
        torch.manual_seed(0)
        coder = SparseCoder(D, SparseCoderConfig(num_latents=M, k=k, activation=activation), dtype=torch.float32)
        shake(coder)
        coder.save_to_disk(folder / activation)
        again = SparseCoder.load_from_disk(folder / activation, device="cpu")
        found = again.encode(rows(ROWS))
        codes = torch.zeros(ROWS, M).scatter(1, found.top_indices, found.top_acts)
        expect(folder / activation, codes, again.decode(found.top_acts, found.top_indices))


def dictionary_learning(folder: Path) -> None:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, gdm, jumprelu, matryoshka_batch_top_k, standard, top_k
    from dictionary_learning.training import trainSAE
    from dictionary_learning.utils import load_dictionary

    steps = 60
    shared = {"steps": steps, "activation_dim": D, "dict_size": M, "layer": 0, "lm_name": "", "device": "cpu"}
    shared |= {"seed": 0, "lr": 1e-2, "warmup_steps": 5}
    sparse = {"k": K, "decay_start": 50, "threshold_start_step": 5}
    penalised = {"sparsity_warmup_steps": 5}
    trainers: dict[str, dict[str, Any]] = {
        "AutoEncoder": {"trainer": standard.StandardTrainer, **penalised},
        "AutoEncoderNew": {
            "trainer": standard.StandardTrainerAprilUpdate, "dict_class": dictionary.AutoEncoderNew, **penalised,
        },
        "AutoEncoder-April": {"trainer": standard.StandardTrainerAprilUpdate, **penalised},
        "AutoEncoderTopK": {"trainer": top_k.TopKTrainer, **sparse},
        "BatchTopKSAE": {"trainer": batch_top_k.BatchTopKTrainer, **sparse},
        "MatryoshkaBatchTopKSAE": {
            "trainer": matryoshka_batch_top_k.MatryoshkaBatchTopKTrainer, "group_fractions": [0.5, 0.5], **sparse,
        },
        "GatedAutoEncoder": {"trainer": gdm.GatedSAETrainer, **penalised},
        "JumpReluAutoEncoder": {"trainer": jumprelu.JumpReluTrainer, "target_l0": K, **penalised},
    }  # fmt: skip
    for name, own in trainers.items():
        batches = list(rows(4096).split(64))
        trainSAE(batches, [{**shared, **own}], steps, save_dir=str(folder / name), device="cpu")
        for file in (folder / name / "trainer_0").iterdir():
            file.rename(folder / name / file.name)
        (folder / name / "trainer_0").rmdir()
        # its trainer calls it the plain class, which the library cannot load
        if name == "AutoEncoderNew":
            loaded = dictionary.AutoEncoderNew.from_pretrained(folder / name / "ae.pt")
        else:
            loaded, _ = load_dictionary(str(folder / name), "cpu")
        codes = loaded.encode(rows(ROWS))
        expect(folder / name, codes, loaded.decode(codes))


def overcomplete(folder: Path) -> None:
    from overcomplete.sae import SAE, JumpSAE, TopKSAE

    cases: dict[str, Callable[[], Any]] = {
        "SAE": lambda: SAE(D, M, device="cpu"),
        "TopKSAE": lambda: TopKSAE(D, M, top_k=K, device="cpu"),
        "JumpSAE": lambda: JumpSAE(D, M, device="cpu"),
    }
    for name, make in cases.items():
        torch.manual_seed(0)
        module = make()
        shake(module, spared=("dictionary._weights",))
        module.eval()
        _, codes, rebuilt = module(rows(ROWS))
        (folder / name).mkdir(parents=True)
        torch.save(module.state_dict(), folder / name / "sae.pt")
        expect(folder / name, codes, rebuilt)


def saelens(folder: Path) -> None:
    from sae_lens import SAE
    from sae_lens.registry import get_sae_class

    own: dict[str, dict[str, Any]] = {
        "standard": {}, "topk": {"k": K}, "jumprelu": {}, "gated": {},
        "topk-rescaled": {"k": K, "rescale_acts_by_decoder_norm": True},
        "standard-uncentred": {"apply_b_dec_to_input": False},
        "standard-layer_norm": {"normalize_activations": "layer_norm"},
        "topk-constant_norm_rescale": {"k": K, "normalize_activations": "constant_norm_rescale"},
    }  # fmt: skip
    for name, config in own.items():
        module, settings = get_sae_class(name.partition("-")[0])
        torch.manual_seed(0)
        sae = module(settings(d_in=D, d_sae=M, dtype="float32", device="cpu", **config))
        shake(sae)
        sae.save_model(folder / name)
        again = SAE.load_from_disk(folder / name, device="cpu")
        codes = again.encode(rows(ROWS))
        expect(folder / name, codes, again.decode(codes))


PACKAGES = {
    "sparsify": "eai-sparsify",
    "dictionary_learning": "dictionary-learning",
    "overcomplete": "overcomplete",
    "saelens": "sae-lens",
}


def main() -> None:
    told = HERE / "versions.json"
    versions = json.loads(told.read_text()) if told.exists() else {}
    for library in sys.argv[1:]:
        shutil.rmtree(HERE / library, ignore_errors=True)
        (HERE / library).mkdir()
        globals()[library](HERE / library)
        versions[library] = version(PACKAGES[library])
    told.write_text(json.dumps(dict(sorted(versions.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
