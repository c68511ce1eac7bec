"""How a recipe asks for a probe."""

from typing import Literal

from monoeval.spec import Spec


class ProbeSpec(Spec):
    """A probe and the grid its L2 is chosen from, the same for every arm."""

    kind: Literal["logistic"] = "logistic"
    l2: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Log-spaced; extended while the best value is at an edge."""
    folds: int = 5
    """Cross-validation folds where there are fewer than 5,000 training rows; above, a fifth is held out."""
