"""What is written is read back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.config.load import load_config
from raystill.config.yaml_source import parse_yaml
from raystill.config.yaml_text import render_config, render_yaml
from raystill.errors import ConfigError

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
_TEXT = st.text(st.characters(exclude_categories=("C",)), max_size=12) | st.sampled_from(
    ["1e-4", "1E3", "no", "true", "null", "~", "", "0o17", "0x1F", "012", ".5", "1.", "2026-01-01", "1:30",
     "<<",
     "- a", "a: b", "*x", "&x", "!t", "%", "@", "line\nline", " lead", "trail ", "#", ".inf", "1_000", "="]
)  # fmt: skip
_VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT
_TREES = st.dictionaries(
    _TEXT.filter(lambda key: key != "<<"), _VALUES | st.lists(_VALUES, max_size=3), max_size=4
)


@given(_TREES)
def test_a_round_trip_changes_nothing(tree: dict[str, object]) -> None:
    found = parse_yaml(render_yaml(tree), "round.yaml").plain()
    assert found == tree
    assert repr(found) == repr(tree)  # 1 and 1.0 and True are equal


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("engine", ["auto", "vllm", "transformers"])
def test_a_resolved_configuration_loads_again(path: Path, engine: str, tmp_path: Path) -> None:
    try:
        config = load_config([path], [f"teacher.engine={engine}"]).config
    except ConfigError:
        pytest.skip("this file is for another engine")
    again = tmp_path / "resolved.yaml"
    again.write_text(render_config(config), encoding="utf-8")
    assert load_config([again]).config == config
