"""What each scenario changes, and that it changes nothing else."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from monoeval.data.images import DataSpec
from monoeval.errors import UsageError
from monoeval.keys import key
from monoeval.scenarios import SCENARIOS
from monoeval.scenarios.corruption import Corruption
from monoeval.scenarios.few_shot import FewShot
from monoeval.scenarios.imbalance import Imbalance
from monoeval.scenarios.label_noise import LabelNoiseScenario
from monoeval.scenarios.trial import Fit, LongTail, Share, Trial

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


def test_corruptions_are_the_fifteen_and_frost_says_that_it_is_a_substitute() -> None:
    made = [t for t in trials("corruption") if t.level == 3]
    assert len(made) == 15
    assert [t.protocol for t in made if t.series == "frost-synthetic"] == ["corruption/onthefly/frost-synthetic@3"]
    assert sum("synthetic" in t.protocol for t in made) == 1


@pytest.mark.parametrize("name", ["label-noise", "few-shot", "imbalance"])
def test_scenarios_that_change_training_rows_are_scored_on_clean_test_images(name: str) -> None:
    assert all(t.test.transform is None and t.test.data == DIGITS for t in trials(name))


def test_label_noise_draws_anew_for_each_seed_except_at_rate_zero() -> None:
    zero, noisy = trials("label-noise", seed=3, rates=[0, 0.4])
    assert zero.fit == Fit()
    assert zero.draw is None
    assert noisy.draw == 3
    assert noisy.fit.labels is not None
    assert (noisy.fit.labels.rate, noisy.fit.labels.draw) == (0.4, 3)


def test_each_kind_of_label_noise_is_a_series_with_protocols_of_its_own() -> None:
    made = trials("label-noise", seed=2, kinds=["symmetric-inclusive", "asymmetric"], rates=[0, 0.4], map={1: 7})
    mapped = key({"1": "7"})[:6]  # other maps are other protocols
    assert [(t.protocol, t.series) for t in made] == [
        ("label-noise/symmetric-inclusive@0", "symmetric-inclusive"),
        ("label-noise/symmetric-inclusive@0.4", "symmetric-inclusive"),
        (f"label-noise/asymmetric/map-{mapped}@0", "asymmetric"),
        (f"label-noise/asymmetric/map-{mapped}@0.4", "asymmetric"),
    ]
    inclusive, asymmetric = (t.fit.labels for t in made[1::2])
    assert inclusive is not None and asymmetric is not None  # noqa: PT018
    assert (inclusive.map, asymmetric.map) == (None, {"1": "7"})  # YAML reads digits as numbers: they are names


def test_human_labels_are_one_level_that_no_seed_draws() -> None:
    clean, human = trials("label-noise", seed=2, kinds=["human"], column="said")
    assert (clean.protocol, human.protocol) == ("label-noise/human/said@0", "label-noise/human/said@1")
    assert (clean.draw, human.draw) == (None, None)
    assert clean.fit == Fit()
    assert [t.level for t in trials("label-noise", kinds=["human"], column="said", rates=[0.2])] == [1]


def test_files_of_human_labels_that_are_called_alike_are_unlike_protocols(tmp_path: Path) -> None:
    def protocols(folder: str, labels: str) -> list[str]:
        path = tmp_path / folder / "labels.txt"
        path.parent.mkdir()
        path.write_text(labels)
        return [t.protocol for t in trials("label-noise", kinds=["human"], file=str(path))]

    mine, copied, others = protocols("a", "1\n2\n"), protocols("b", "1\n2\n"), protocols("c", "2\n1\n")
    assert mine == copied
    assert not set(mine) & set(others)
    for level, *both in zip("01", mine, others, strict=True):
        assert all(re.fullmatch(rf"label-noise/human/labels\.txt-[0-9a-f]{{6}}@{level}", p) for p in both)
    with pytest.raises(UsageError, match=r"The labels in .*none\.txt cannot be read \(No such file"):
        trials("label-noise", kinds=["human"], file=str(tmp_path / "none.txt"))


def test_the_oracle_is_in_the_protocol_and_leaves_clean_fits_as_they_are() -> None:
    zero, noisy = trials("label-noise", rates=[0, 0.8], select_on="clean-val")
    assert noisy.protocol == "label-noise/symmetric/clean-val@0.8"
    assert noisy.fit.labels is not None
    assert noisy.fit.labels.select_on == "clean-val"
    assert zero.fit == Fit()


def test_shares_are_few_shot_without_validation_rows_of_their_own() -> None:
    made = trials("few-shot", seed=1, shots=[2], shares=[0.05, 1], repeats=2)
    assert [(t.protocol, t.series, t.repeat) for t in made[:3]] == [
        ("few-shot/unlabelled-train@2", "shots", 0),
        ("few-shot/unlabelled-train/share@0.05", "share", 0),
        ("few-shot/unlabelled-train/share@1", "share", 0),
    ]
    assert made[4].fit.rows == Share(share=0.05, draw=1, repeat=1)
    assert len(made) == 2 * 2 + 1  # all rows are one draw, whatever the repeats and the seed
    assert (made[2].fit, made[2].draw) == (Fit(), None)
    assert made[2] in trials("few-shot", seed=2, shots=[2], shares=[0.05, 1], repeats=2)
    assert len(trials("few-shot")) == 5 * 10


def test_imbalance_is_drawn_for_each_seed_beside_its_balanced_reference() -> None:
    made = trials("imbalance", seed=3)
    assert [t.protocol for t in made] == [f"imbalance/exponential@{ratio}" for ratio in (1, 10, 50, 100)]
    assert {t.draw for t in made} == {3}
    assert made[1].fit.rows == LongTail(ratio=10, draw=3)


def test_few_shot_tunes_on_at_most_four_further_rows() -> None:
    rows = [t.fit.rows for t in trials("few-shot", shots=[1, 2, 4, 16], repeats=1)]
    assert [(r.shots, r.validation) for r in rows if r] == [(1, 1), (2, 2), (4, 4), (16, 4)]


def test_ood_scores_the_source_and_the_target_on_shared_classes() -> None:
    source, target = trials("ood")
    assert (source.level, source.test.data.name) == (0, "digits")
    assert (target.level, target.test.data.name) == (1, "digits-printed")
    assert source.test.shared_with == target.test.data


@pytest.mark.parametrize(
    ("scenario", "settings"),
    [
        (LabelNoiseScenario, {"rates": [1.0]}),
        (LabelNoiseScenario, {"rates": [-0.1]}),
        (LabelNoiseScenario, {"kinds": []}),
        (LabelNoiseScenario, {"kinds": ["symmetric", "symmetric"]}),
        (LabelNoiseScenario, {"map": {"1": "7"}}),
        (LabelNoiseScenario, {"file": "labels.txt"}),
        (LabelNoiseScenario, {"kinds": ["human"]}),
        (LabelNoiseScenario, {"kinds": ["human"], "file": "a", "column": "b"}),
        (FewShot, {"shares": [1.5]}),
        (FewShot, {"shares": [0]}),
        (Imbalance, {"ratios": [0.5]}),
        (Imbalance, {"ratios": [float("inf")]}),
        (FewShot, {"shots": [0]}),
        (Corruption, {"severities": [6]}),
        (Corruption, {"kinds": ["contrst"]}),
    ],
)
def test_settings_out_of_range_are_refused(scenario: type, settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        scenario.model_validate(settings)
