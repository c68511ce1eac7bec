"""Two processes (gloo, CPU) train what one does. No network has batch norm, which torch shares on GPUs only."""

import logging
import multiprocessing
import os
import shutil
import socket
import traceback

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from typer.testing import CliRunner

from monoeval import bundles
from monoeval.backbones.spec import PretrainSpec
from monoeval.cli.main import app
from monoeval.data.images import ImageSet
from monoeval.errors import UsageError
from monoeval.training import networks, resume
from monoeval.training import pretrain as module
from monoeval.training.augment import Augmentation, SimCLRAugmentation
from monoeval.training.contrastive import density, info_nce, rep_relu, sup_con
from monoeval.training.distributed import Processes, joined
from monoeval.training.keys import STEM, pretrained_folder
from monoeval.training.pretrain import pretrain

CPU = torch.device("cpu")
BATCH = 7
"""Not a multiple of two: one process has three images and the other four."""


def on_two(work):
    """What `work(rank)` returns in each of two processes, with what torchrun tells them."""
    context = multiprocessing.get_context("fork")  # a new interpreter would import torch again
    answers = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank):
        torch.set_num_threads(1)
        ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in ours.items()}
        os.environ |= {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1"}
        try:
            answers.put((rank, work(rank)))
        except BaseException:
            answers.put((rank, traceback.format_exc()))
            os._exit(1)
        os._exit(0)

    started = [context.Process(target=one, args=(rank,)) for rank in range(2)]
    for process in started:
        process.start()
    found = dict(answers.get() for _ in started)
    for process in started:
        process.join()
    assert all(process.exitcode == 0 for process in started), found
    return found[0], found[1]


@pytest.mark.parametrize("labels", [False, True], ids=["ncl with density", "supcon"])
def test_the_loss_and_the_summed_gradients_are_those_of_the_whole_batch(labels):
    torch.manual_seed(0)
    images = torch.randn(2, BATCH, 5, dtype=torch.float64)
    classes = torch.arange(BATCH) % 3
    network = nn.Sequential(nn.Linear(5, 9), nn.GELU(), nn.Linear(9, 6)).double()

    def loss_and_gradients(processes):
        pair = images[:, processes.share(BATCH)].flatten(0, 1)
        projected = processes.gathered(network(pair), BATCH)
        if labels:
            loss = sup_con(*projected.chunk(2), 0.2, classes)
        else:
            loss = info_nce(*rep_relu(projected).chunk(2), 0.2) - density(projected)
        gradients = list(torch.autograd.grad(loss, list(network.parameters())))
        processes.add_up(gradients)
        return loss.item(), [gradient.numpy() for gradient in gradients]

    def work(_):
        with joined("cpu") as (processes, _device):
            return loss_and_gradients(processes)

    expected, gradients = loss_and_gradients(Processes())
    both = on_two(work)
    for loss, found in both:
        assert loss == pytest.approx(expected, rel=1e-12)
        for mine, alone in zip(found, gradients, strict=True):
            np.testing.assert_allclose(mine, alone, rtol=1e-10, atol=1e-13)
    for mine, theirs in zip(both[0][1], both[1][1], strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("augment", [Augmentation(flip=True), SimCLRAugmentation()], ids=["gentle", "simclr"])
def test_views_of_some_rows_are_those_of_the_whole_batch(augment):
    images = torch.randint(0, 256, (BATCH, 3, 12, 12), dtype=torch.uint8, generator=torch.manual_seed(0))
    whole, part = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    expected = augment(images, whole)
    torch.testing.assert_close(augment(images, part, slice(2, 5)), expected[2:5], rtol=0, atol=1e-6)
    assert torch.equal(whole.get_state(), part.get_state())


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_the_batch_once(count):
    shares = [Processes(rank, count).share(BATCH) for rank in range(count)]
    assert [row for share in shares for row in range(BATCH)[share]] == list(range(BATCH))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


SPEC = PretrainSpec(
    objective="ncl", network="test_vit", width=16, hidden=24, batch_size=BATCH, epochs=3,
    optimiser="sgd", learning_rate=0.1, precision="fp32",
)  # fmt: skip
"""AdamW would make full steps of what is rounding where a gradient is zero, as that of the bias of keys is."""


def squares(count: int = 16) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % 4
    ids = np.arange(count).astype(str)
    return ImageSet("squares", labels, tuple("abcd"), ids, None, "squares", pixels.__getitem__)


class Stopped(BaseException):
    """As if the process had ended there: nothing catches it."""


def trained(cache, stop_at=None):
    """Work for two processes: the weights that each ends with, or None where it was stopped at that step."""

    def work(rank):
        os.environ["MONOEVAL_CACHE"] = str(cache)
        steps, weights = 0, {}
        run, loss_of = module._Training.run, module._Training._loss

        def watched_run(self, *args):
            about = run(self, *args)
            weights.update({name: tensor.numpy() for name, tensor in self.network.state_dict().items()})
            return about

        def counted_loss(self, rows):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise Stopped
            return loss_of(self, rows)

        def never(*_args):
            raise AssertionError("only the first process writes")

        module._Training.run, module._Training._loss = watched_run, counted_loss
        if rank > 0:
            bundles.write = resume.save = never
        try:
            with joined("cpu") as (processes, device):
                pretrain(SPEC, squares(), seed=1, device=device, processes=processes, checkpoint_seconds=0)
        except Stopped:
            dist.barrier()
            return None
        return weights, steps

    return work


def test_two_processes_give_the_weights_of_one_also_where_they_were_stopped(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "one"))
    alone, _ = bundles.read(pretrain(SPEC, squares(), seed=1, device=CPU), STEM)
    start, _ = bundles.read(pretrain(SPEC.model_copy(update={"epochs": 0}), squares(), seed=1, device=CPU), STEM)

    (first, steps), (second, _) = on_two(trained(tmp_path / "two"))
    assert steps == 6
    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "two"))
    written, about = bundles.read(pretrained_folder(SPEC, "squares", 16, 1), STEM)
    assert about["processes"] == 2
    moved = max(float((alone[name] - start[name]).abs().max()) for name in alone)
    assert moved > 1e-2
    for name, tensor in alone.items():
        torch.testing.assert_close(written[name], tensor, rtol=0, atol=1e-4 * moved)
        np.testing.assert_array_equal(first[name], second[name])
        np.testing.assert_array_equal(first[name], written[name].numpy())

    assert on_two(trained(tmp_path / "stopped", stop_at=4)) == (None, None)
    shutil.copytree(tmp_path / "stopped", tmp_path / "alone")
    (again, steps), _ = on_two(trained(tmp_path / "stopped"))
    assert steps == 4  # the second epoch, whose first step was lost, and the third
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)

    monkeypatch.setenv("MONOEVAL_CACHE", str(tmp_path / "alone"))
    with caplog.at_level(logging.WARNING, "monoeval"):
        mended, _ = bundles.read(pretrain(SPEC, squares(), seed=1, device=CPU), STEM)
    assert "processes 1 and not 2" in caplog.text
    for name, tensor in alone.items():
        torch.testing.assert_close(mended[name], tensor, rtol=0, atol=1e-4 * moved)


def test_the_command_speaks_once(tmp_path):
    settings = "width=16,hidden=24,precision=fp32"
    command = f"pretrain --model test_vit --epochs 1 --limit 30 --params {settings} --out {tmp_path / 'out'}"

    def work(_):
        result = CliRunner().invoke(app, command.split())
        return result.exit_code, result.stdout

    (code, said), quiet = on_two(work)
    assert code == 0
    assert "Backbone:" in said
    assert quiet == (0, "")
    assert bundles.describe(tmp_path / "out", STEM)["processes"] == 2


@pytest.mark.parametrize("name", ["tiny", "test_efficientnet"])
def test_batch_norm_is_synchronised_on_gpus_and_refused_on_a_cpu(name):
    network = networks.build(name, 8, 16, hidden=16).eval()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    images = torch.rand(2, 3, 16, 16, generator=torch.manual_seed(0))
    expected = network(images)
    with pytest.raises(UsageError, match=f"{name} has batch norm, .* start it without torchrun"):
        Processes(0, 2).synchronise(network, name, CPU)
    Processes(0, 2).synchronise(network, name, torch.device("cuda"))
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    torch.testing.assert_close(network(images), expected)
    assert list(before) == list(network.state_dict())


def test_wrong_use_is_one_sentence(monkeypatch):
    spec = PretrainSpec(objective="ncl")
    with pytest.raises(UsageError, match="A batch of 2 images cannot be shared by 3 processes"):
        pretrain(spec, squares(2), seed=0, device=CPU, processes=Processes(0, 3))
    ours = {"TORCHELASTIC_RUN_ID": "test", "RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"only `monoeval pretrain` shares .* start `monoeval doctor` without"):
        CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    with pytest.raises(UsageError, match=r"--device is auto, cpu or cuda .* not 'cuda:1'"), joined("cuda:1"):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UsageError, match=r"started 4 processes .* sees 2 GPUs: give --nproc-per-node 2"),
        joined("auto"),
    ):
        pass
    monkeypatch.setenv("RANK", "1")
    result = CliRunner().invoke(app, ["doctor"])
    assert (result.exit_code, result.output) == (0, "")
