"""One pretraining on several processes, which torchrun starts: what they share, and which of them speaks.

Every process makes the draws of the whole batch and takes its own rows of it, so that several train what one
would, up to rounding: how many there are is not in a network's key, as its device is not.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from monoeval.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")


def started() -> int:
    """How many processes torchrun started, on all machines; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first() -> bool:
    """Whether this is the process that writes, and shows bars and messages."""
    return started() == 1 or os.environ["RANK"] == "0"


@dataclass(frozen=True)
class Processes:
    """The processes of torch's default group, or one alone."""

    rank: int = 0
    count: int = 1
    here: int = 1
    """How many of them share the memory of this machine."""

    def share(self, batch: int) -> slice:
        """The rows of a batch that are this process's: as many as any other's, or one more or less."""
        return slice(batch * self.rank // self.count, batch * (self.rank + 1) // self.count)

    def gathered(self, pair: "Tensor", batch: int) -> "Tensor":
        """Both views of a whole batch [2B, D] from those of this process's share, `pair` [2b, D].

        A gradient reaches the own rows alone, and there it is complete, as every process computes the loss of the
        whole batch: those of the weights are to be added up over the processes, not averaged.
        """
        if self.count == 1:
            return pair
        import torch
        import torch.distributed as dist

        mine, own = self.share(batch), pair.view(2, -1, pair.shape[1])
        whole = own.new_zeros(2, batch, pair.shape[1])  # added to zeros, shares need not be equal
        whole[:, mine] = own.detach()
        dist.all_reduce(whole)
        return torch.cat([whole[:, : mine.start], own, whole[:, mine.stop :]], dim=1).flatten(0, 1)

    def add_up(self, gradients: "Sequence[Tensor]") -> None:
        """Replace each gradient by its sum over the processes, the same bits on all of them."""
        if self.count == 1:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))  # in place, so that its memory keeps the order of the weights'

    def from_first(self, function: Callable[[], T]) -> T:
        """What `function` gives on the first process, which alone calls it; the others wait for it."""
        if self.count == 1:
            return function()
        import torch
        import torch.distributed as dist

        box = [function() if self.rank == 0 else None]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]

    def synchronise(self, network: "nn.Module", name: str, device: "torch.device") -> None:
        """Let the batch norms in `network` see the whole batch; names and values of its tensors stay.

        Raises UsageError where there are some and `device` is a CPU, on which torch cannot share their statistics.
        """
        from torch.nn.modules.batchnorm import _BatchNorm

        if self.count == 1 or not any(isinstance(module, _BatchNorm) for module in network.modules()):
            return
        if device.type != "cuda":
            raise UsageError(
                f"{name} has batch norm, whose statistics torch shares between processes on GPUs only: start it "
                "without torchrun, or choose a network without batch norm, such as vit_tiny_patch16_224."
            )
        # torch's own conversion loses the activations that timm's norms hold
        from timm.layers.norm_act import convert_sync_batchnorm

        convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]


@contextmanager
def joined(device: str) -> "Iterator[tuple[Processes, torch.device]]":
    """The processes that torchrun started, as one group, and the device of this one; without torchrun, itself.

    Raises UsageError for a device that is not there, or not for each of them.
    """
    from monoeval.backbones.load import choose_device

    if started() == 1:
        yield Processes(), choose_device(device)
        return
    import torch
    import torch.distributed as dist

    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"Under torchrun --device is auto, cpu or cuda (a GPU for each process), and not {device!r}."
        )
    where = choose_device("cpu" if device == "auto" and not torch.cuda.is_available() else device)
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if where.type == "cuda":
        if here > torch.cuda.device_count():
            raise UsageError(
                f"torchrun started {here} processes on this machine, and torch sees {torch.cuda.device_count()} "
                f"GPUs: give --nproc-per-node {torch.cuda.device_count()}, or --device cpu."
            )
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo")
    yield Processes(dist.get_rank(), dist.get_world_size(), here), where
    dist.destroy_process_group()  # not after an error: it would wait for the others, which torchrun ends
