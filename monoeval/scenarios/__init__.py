"""What each benchmark changes: labels, training rows, test images or domain."""

from monoeval.scenarios.clean import Clean
from monoeval.scenarios.corruption import Corruption
from monoeval.scenarios.few_shot import FewShot
from monoeval.scenarios.imbalance import Imbalance
from monoeval.scenarios.input_noise import InputNoise
from monoeval.scenarios.label_noise import LabelNoiseScenario
from monoeval.scenarios.ood import OutOfDomain
from monoeval.scenarios.ood_detection import OODDetection
from monoeval.scenarios.subpopulation import Subpopulation

AnyScenario = (
    Clean
    | LabelNoiseScenario
    | InputNoise
    | Corruption
    | FewShot
    | Imbalance
    | OutOfDomain
    | OODDetection
    | Subpopulation
)
SCENARIOS: dict[str, type[AnyScenario]] = {
    "clean": Clean,
    "label-noise": LabelNoiseScenario,
    "input-noise": InputNoise,
    "corruption": Corruption,
    "few-shot": FewShot,
    "imbalance": Imbalance,
    "ood": OutOfDomain,
    "ood-detection": OODDetection,
    "subpopulation": Subpopulation,
}
"""Each is settings from the recipe with a `trials(data, seed)`: the trials of one seed.

Trials that draw nothing are equal for every seed, and so are made once.
"""
