"""The contrastive losses (SimCLR's InfoNCE and its supervised form) and the rectifiers of non-negative ones."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_NORM = 1e-4  # a row of zeros has no direction: the gradient it gets stays finite


def info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """InfoNCE over both views (SimCLR: Chen et al. 2020, arXiv 2002.05709, eq. 1), a scalar.

    `first` and `second` [B, D] are two views of the same images. Each of the 2B rows is compared by cosine with
    all others, itself excluded; its positive is the other view, so 2B − 2 negatives stand beside one positive.
    """
    logits = _similarities(first, second, temperature)
    positives = torch.arange(len(logits), device=logits.device).roll(len(first))
    return F.cross_entropy(logits, positives)


def rep_relu(projected: Tensor) -> Tensor:
    """ReLU forwards, GELU backwards: a dimension also learns from rows where it is just below zero.

    One that is zero in all rows of a batch cannot come back: InfoNCE of what is zero everywhere has no gradient.
    """
    smooth = F.gelu(projected)
    return smooth + (F.relu(projected) - smooth).detach()


def sup_con(first: Tensor, second: Tensor, temperature: float, classes: Tensor) -> Tensor:
    """Supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362, eq. 2: L_out), averaged over the 2B rows.

    Positives of a row are the other view and both views of every image of its class (`classes` int64 [B]); the
    logarithm is inside their mean. All other rows are compared, itself excluded. Where no two images share a
    class this is InfoNCE.
    """
    logits = _similarities(first, second, temperature)
    twice = torch.cat([classes, classes])
    positive = (twice[:, None] == twice).fill_diagonal_(False)
    shares = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    return -(torch.where(positive, shares, 0).sum(1) / positive.sum(1)).mean()


def density(rows: Tensor) -> Tensor:
    """The mean absolute entry of rows [N, D] at length one, a scalar: 1/√D where all entries are equal."""
    return F.normalize(rows, dim=1, eps=SMALLEST_NORM).abs().mean()


def _similarities(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Cosines of all 2B rows over the temperature, [2B, 2B]; −inf with itself."""
    rows = F.normalize(torch.cat([first, second]), dim=1, eps=SMALLEST_NORM)
    logits = rows @ rows.T / temperature
    return logits.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), float("-inf"))


RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "rep-relu": rep_relu}
