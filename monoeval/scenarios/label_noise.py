"""Noisy training labels, clean test labels."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from monoeval.data.images import DataSpec
from monoeval.data.label_noise import NoiseKind
from monoeval.keys import key
from monoeval.scenarios.trial import Fit, LabelNoise, Rate, SelectOn, TestSet, Trial
from monoeval.spec import Spec


def _read_map(value: object) -> object:
    """A map as it is, or read from a YAML file; names that YAML takes for numbers are names."""
    if isinstance(value, str):
        try:
            value = yaml.safe_load(Path(value).expanduser().read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or getattr(error, "problem", None) or "it is not YAML"
            raise ValueError(f"the map of the label noise cannot be read from its file ({reason})") from error
        if not isinstance(value, dict):
            raise ValueError("the file of the label noise's map has no lines such as cat: dog")
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else value


class LabelNoiseScenario(Spec):
    """Wrong training labels: symmetric (exactly floor(rate · N) rows), asymmetric, instance-dependent or human.

    `symmetric` never gives the true class, `symmetric-inclusive` draws from all; `asymmetric` follows a map of
    classes, `instance` the pixels. `human` labels come from `file` or `column`: level 1, whatever the rates.
    By default validation labels are noisy like the rest, as a user's would be. Levels without label signal are
    kept as negative controls and left out of means and verdicts.
    """

    name: Literal["label-noise"] = "label-noise"
    kinds: Annotated[tuple[NoiseKind, ...], Field(min_length=1)] = ("symmetric",)
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (0, 0.2, 0.4, 0.6, 0.8)
    map: Annotated[dict[str, str] | None, BeforeValidator(_read_map)] = None
    """Class → the class it is taken for under `asymmetric`, or a YAML file of that; CIFAR's by default."""
    file: str | None = None
    """Of `human`: one label a training row in their order, or a .csv of row id and label."""
    column: str | None = None
    """Of `human`: a second label column of the data."""
    select_on: SelectOn = "noisy-val"
    """The labels of held-out rows by which a probe is tuned; fitted are noisy ones in either case."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.kinds)) < len(self.kinds):
            raise ValueError("a kind of label noise is listed twice")
        if self.map is not None and "asymmetric" not in self.kinds:
            raise ValueError("map is of asymmetric label noise: add kinds: [asymmetric]")
        given = [name for name in ("file", "column") if getattr(self, name) is not None]
        if given and "human" not in self.kinds:
            raise ValueError(f"{given[0]} is of human label noise: add kinds: [human]")
        if "human" in self.kinds and len(given) != 1:
            raise ValueError("human label noise needs either file or column, where the labels are")
        return self

    def trials(self, data: DataSpec, seed: int) -> Iterator[Trial]:
        oracle = "/clean-val" if self.select_on == "clean-val" else ""
        for kind in self.kinds:
            for level in self._levels(kind):
                noise = self._noise(kind, level, seed) if level else None
                yield Trial(
                    scenario=self.name,
                    protocol=f"label-noise/{kind}{self._source(kind)}{oracle}@{level:g}",
                    series=kind,
                    level=level,
                    data=data,
                    fit=Fit(labels=noise),
                    test=TestSet(data=data),
                    draw=seed if noise and kind != "human" else None,
                )

    def _source(self, kind: NoiseKind) -> str:
        """What else decides the labels of a kind, for the protocol: noise of unlike sources is never averaged."""
        if kind == "asymmetric" and self.map is not None:
            return f"/map-{key(self.map)[:6]}"
        if kind == "human" and self.file is not None:
            # not above: it finds data sets of other packages, whose modules may import what scenarios are made of
            from monoeval.data.given_labels import content_of

            return f"/{Path(self.file).name}-{content_of(Path(self.file))[:6]}"
        return f"/{self.column}" if kind == "human" else ""

    def _levels(self, kind: NoiseKind) -> tuple[float, ...]:
        return self.rates if kind != "human" else (0, 1) if 0 in self.rates else (1,)

    def _noise(self, kind: NoiseKind, level: float, seed: int) -> LabelNoise:
        if kind == "human":
            given = {"file": self.file, "column": self.column}
            return LabelNoise(kind=kind, rate=0, draw=0, **given, select_on=self.select_on)
        mapping = self.map if kind == "asymmetric" else None
        return LabelNoise(kind=kind, rate=level, draw=seed, map=mapping, select_on=self.select_on)
