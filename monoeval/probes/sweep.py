"""Choose among adapters by the validation losses of the probes on their codes."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from monoeval.probes.problem import Choice
from monoeval.probes.select import within_one_error


def best_candidate(choices: Sequence[Choice], rule: Literal["min", "one-se"] = "min") -> int:
    """The position of the candidate whose probe, at the L2 chosen for it, has the smallest mean validation loss.

    `choices` are those of one problem on the codes of each candidate. Their losses can be compared, since rows,
    labels and folds are the problem's. The rule is that of the probe's L2: `min` takes the smallest loss, the
    earlier one of equals; `one-se` the earliest within one standard error of it, which is that of the paired
    difference over rows. Where no row could be judged it is the first.
    """
    losses = np.array([choice.validation_loss for choice in choices])
    best = int(np.argmin(np.where(np.isnan(losses), np.inf, losses)))
    least = choices[best].losses
    if rule == "min" or least is None:
        return best
    for position, choice in enumerate(choices[:best]):
        other = choice.losses
        if other is None or len(other) != len(least):  # an infinite loss is left out
            continue
        if within_one_error(other - least, choice.clusters):
            return position
    return best
