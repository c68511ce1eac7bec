"""What each scenario changes, and that it changes nothing else."""

import pytest
from pydantic import ValidationError

from monoeval.data.images import DataSpec
from monoeval.errors import UsageError
from monoeval.scenarios import SCENARIOS
from monoeval.scenarios.corruption import Corruption
from monoeval.scenarios.few_shot import FewShot
from monoeval.scenarios.label_noise import LabelNoiseScenario
from monoeval.scenarios.ood import OutOfDomain
from monoeval.scenarios.trial import Fit, Trial

DIGITS = DataSpec(name="digits")


def trials(name: str, seed: int = 0, **settings: object) -> list[Trial]:
    return list(SCENARIOS[name].model_validate(settings).trials(DIGITS, seed))


@pytest.mark.parametrize("name", SCENARIOS)
def test_protocols_are_named_after_their_scenario_and_trials_are_distinct(name: str) -> None:
    made = trials(name)
    assert all(t.scenario == name and t.protocol.split("/")[0] == name for t in made)
    assert len({t.model_dump_json() for t in made}) == len(made)


@pytest.mark.parametrize("name", ["clean", "input-noise", "corruption", "ood"])
def test_scenarios_that_change_test_images_fit_on_clean_rows_and_draw_nothing(name: str) -> None:
    assert trials(name, seed=0) == trials(name, seed=7)
    assert all(t.fit == Fit() and t.draw is None for t in trials(name))


@pytest.mark.parametrize("name", ["label-noise", "few-shot"])
def test_scenarios_that_change_training_rows_are_scored_on_clean_test_images(name: str) -> None:
    assert all(t.test.transform is None and t.test.data == DIGITS for t in trials(name))


def test_label_noise_draws_anew_for_each_seed_except_at_rate_zero() -> None:
    zero, noisy = trials("label-noise", seed=3, rates=[0, 0.4])
    assert zero.fit == Fit()
    assert zero.draw is None
    assert noisy.draw == 3
    assert noisy.fit.labels is not None
    assert (noisy.fit.labels.rate, noisy.fit.labels.draw) == (0.4, 3)


def test_few_shot_tunes_on_at_most_four_further_rows() -> None:
    rows = [t.fit.rows for t in trials("few-shot", shots=[1, 2, 4, 16], repeats=1)]
    assert [(r.shots, r.validation) for r in rows if r] == [(1, 1), (2, 2), (4, 4), (16, 4)]


def test_ood_scores_the_source_and_the_target_on_shared_classes() -> None:
    source, target = trials("ood")
    assert (source.level, source.test.data.name) == (0, "digits")
    assert (target.level, target.test.data.name) == (1, "digits-printed")
    assert source.test.shared_with == target.test.data


def test_ood_without_a_target_says_what_to_type() -> None:
    with pytest.raises(UsageError, match="--target"):
        list(OutOfDomain().trials(DataSpec(name="elsewhere"), 0))


@pytest.mark.parametrize(
    ("scenario", "settings"),
    [
        (LabelNoiseScenario, {"rates": [1.0]}),
        (LabelNoiseScenario, {"rates": [-0.1]}),
        (FewShot, {"shots": [0]}),
        (Corruption, {"severities": [6]}),
        (Corruption, {"kinds": ["contrst"]}),
    ],
)
def test_settings_out_of_range_are_refused(scenario: type, settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        scenario.model_validate(settings)
