"""What else fits these probes: scikit-learn, and the training loop that people write."""

from dataclasses import dataclass

import torch
from measure import timed
from referee import Fit, Rows
from sklearn.linear_model import LogisticRegression

from monoeval.data.images import Ints


@dataclass(frozen=True)
class Peer:
    """A peer's classifier, and what it took."""

    fit: Fit
    seconds: float
    iterations: int


def scikit_learn(rows: Rows, labels: Ints, l2: float) -> Peer:
    """L-BFGS at its default tolerance on float32 rows [N, M], dense or CSR, until it converges."""
    model = LogisticRegression(C=1 / (l2 * len(labels)), max_iter=100_000)
    seconds, _ = timed(model.fit, rows, labels)
    return Peer(Fit(model.coef_, model.intercept_), seconds, int(model.n_iter_[0]))


def sgd(rows_nd: torch.Tensor, labels: torch.Tensor, l2: float, n_classes: int, epochs: int = 50) -> Peer:
    """Batches of 256 cached features, momentum, a cosine schedule, weight decay on the weights."""
    layer = torch.nn.Linear(rows_nd.shape[1], n_classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": l2}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimiser = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    shuffle = torch.Generator().manual_seed(5)

    def run() -> None:
        for _ in range(epochs):
            for batch in torch.randperm(len(rows_nd), generator=shuffle).split(256):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(layer(rows_nd[batch]), labels[batch]).backward()
                optimiser.step()
            schedule.step()

    seconds, _ = timed(run)
    return Peer(Fit(layer.weight.detach().numpy(), layer.bias.detach().numpy()), seconds, epochs)
