"""The contrastive losses: SimCLR's InfoNCE and its non-negative variant."""

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_NORM = 1e-4  # a row of zeros has no direction: the gradient it gets stays finite


def info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """InfoNCE over both views (SimCLR: Chen et al. 2020, arXiv 2002.05709, eq. 1), a scalar.

    `first` and `second` [B, D] are two views of the same images. Each of the 2B rows is compared by cosine with
    all others, itself excluded; its positive is the other view, so 2B − 2 negatives stand beside one positive.
    """
    rows = F.normalize(torch.cat([first, second]), dim=1, eps=SMALLEST_NORM)
    logits = rows @ rows.T / temperature
    logits = logits.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), float("-inf"))
    positives = torch.arange(len(rows), device=rows.device).roll(len(first))
    return F.cross_entropy(logits, positives)


def rep_relu(projected: Tensor) -> Tensor:
    """ReLU forwards, GELU backwards: a dimension also learns from rows where it is just below zero.

    One that is zero in all rows of a batch cannot come back: InfoNCE of what is zero everywhere has no gradient.
    """
    smooth = F.gelu(projected)
    return smooth + (F.relu(projected) - smooth).detach()


def non_negative_info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Non-negative contrastive learning (NCL: Wang et al. 2024, arXiv 2403.12459): InfoNCE of rectified rows."""
    return info_nce(rep_relu(first), rep_relu(second), temperature)


OBJECTIVES = {"simclr": info_nce, "ncl": non_negative_info_nce}
