"""`raystill bench`: every name has a benchmark behind it."""

from __future__ import annotations

from importlib import import_module

import pytest

from raystill.cli.bench_command import _OLD_NAMES, BENCHES


@pytest.mark.parametrize("name", sorted(BENCHES))
def test_every_name_has_a_benchmark(name: str) -> None:
    module = import_module(BENCHES[name])
    assert callable(module.run_bench)
    assert BENCHES[name].rpartition(".")[2] == name.replace("-", "_")


def test_old_names_lead_somewhere() -> None:
    assert set(_OLD_NAMES.values()) <= set(BENCHES)
    assert not set(_OLD_NAMES) & set(BENCHES)
