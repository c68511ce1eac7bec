"""Whether an adapter learned anything, told from its measures alone: by reports too, which know no torch."""

import math
from collections.abc import Mapping

WHOLE = "whole_"
"""Begins the measures of a whole adapter beside codes that are some of its latents only."""

HELD_OUT, UNTRAINED = "_held_out", "_untrained"
"""End `explained_variance`: on rows that were not trained on, of the adapter before its training, and both."""


def not_trained(measures: Mapping[str, float]) -> str:
    """Why an adapter counts as not trained, as the end of a sentence; empty where it does not.

    It has to explain more variance than its untrained self: of held-out rows where both were measured there, else
    of its training rows, which one that learned them by heart explains too. A method without a way back to
    features counts as not trained where it took no step.
    """
    found = {name.removeprefix(WHOLE): value for name, value in measures.items()}
    for rows, ending in (("held-out rows", HELD_OUT), ("its training rows", "")):
        own = found.get(f"explained_variance{ending}")
        before = found.get(f"explained_variance{UNTRAINED}{ending}")
        if own is None or before is None or math.isnan(before):
            continue
        if own > before:
            return ""
        share = "no number" if math.isnan(own) else f"{100 * own:.1f} %"
        return f"it explains {share} of the variance of {rows}, its untrained self {100 * before:.1f} %"
    return "it took no step" if found.get("steps") == 0 else ""
