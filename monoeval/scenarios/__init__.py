"""What each benchmark changes: labels, training rows, test images or domain."""

from collections.abc import Iterator
from typing import Protocol

from monoeval.data.images import DataSpec
from monoeval.scenarios.clean import Clean
from monoeval.scenarios.corruption import Corruption
from monoeval.scenarios.few_shot import FewShot
from monoeval.scenarios.input_noise import InputNoise
from monoeval.scenarios.label_noise import LabelNoiseScenario
from monoeval.scenarios.ood import OutOfDomain
from monoeval.scenarios.trial import Trial


class Scenario(Protocol):
    """A declarative object: settings from the recipe, and the trials they mean."""

    @property
    def name(self) -> str: ...

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:
        """The trials of one seed; those that draw nothing are equal for every seed, so they are made once."""


AnyScenario = Clean | LabelNoiseScenario | InputNoise | Corruption | FewShot | OutOfDomain
SCENARIOS: dict[str, type[AnyScenario]] = {
    "clean": Clean,
    "label-noise": LabelNoiseScenario,
    "input-noise": InputNoise,
    "corruption": Corruption,
    "few-shot": FewShot,
    "ood": OutOfDomain,
}
