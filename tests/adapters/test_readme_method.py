"""The README's example of a method from another package works as it stands there."""

import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import torch

from monoeval.adapters import registry
from monoeval.adapters.spec import AdapterSpec
from monoeval.adapters.store import fit_cached, load, save

README = Path(__file__).parents[2] / "README.md"


def test_the_example_is_found_fitted_and_saved(feature_set, tmp_path, monkeypatch):
    text = README.read_text(encoding="utf-8").split("A method of your own")[1]
    method, adapter, entry = re.findall(r"```(?:python|toml)\n(.*?)```", text, re.DOTALL)[:3]
    package = tmp_path / "my_methods"
    package.mkdir()
    (package / "__init__.py").write_text(method)
    (package / "signs.py").write_text(adapter)
    monkeypatch.syspath_prepend(tmp_path)
    ((name, target),) = tomllib.loads(entry)["project"]["entry-points"][registry.GROUP].items()
    methods, refused = registry._collect((EntryPoint(name, target, registry.GROUP),))
    assert not refused
    monkeypatch.setitem(registry.METHODS, name, methods[name])
    x, cpu = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32), torch.device("cpu")
    spec = AdapterSpec(method=name)
    fitted = fit_cached(spec, feature_set(x), None, seed=None, device=cpu)
    save(fitted, spec, tmp_path / "saved")
    for adapter in (fitted, load(tmp_path / "saved")):
        np.testing.assert_array_equal(adapter.encode(torch.from_numpy(x)).numpy(), np.sign(x - x.mean(0)))
