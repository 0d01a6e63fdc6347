"""Several files after one --config."""

from __future__ import annotations

import pytest

from raystill.cli.arguments import expand_config_option, load_from_options
from raystill.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        (["run", "--config", "a", "b"], ["run", "--config", "a", "--config", "b"]),
        (["run", "-c", "a", "b", "--fresh"], ["run", "-c", "a", "--config", "b", "--fresh"]),
        (["--config=a", "b", "c"], ["--config=a", "--config", "b", "--config", "c"]),
        (
            ["plan", "--config", "a", "b", "--set", "x=1", "--config", "c"],
            ["plan", "--config", "a", "--config", "b", "--set", "x=1", "--config", "c"],
        ),
        (["config", "explain", "k", "--config", "a", "b"],
         ["config", "explain", "k", "--config", "a", "--config", "b"]),
        (["x", "--config", "a", "--", "b", "c"], ["x", "--config", "a", "--", "b", "c"]),
        (["run", "--config"], ["run", "--config"]),
        (["--set", "a=1", "b"], ["--set", "a=1", "b"]),
        ([], []),
    ],
)  # fmt: skip
def test_every_word_up_to_the_next_option_is_a_file(given: list[str], expanded: list[str]) -> None:
    assert expand_config_option(given) == expanded


@pytest.mark.parametrize("files", [None, []])
def test_no_file_is_an_error_with_an_example(files: list[object] | None) -> None:
    with pytest.raises(ConfigError, match=r"--config configs/demo\.yaml"):
        load_from_options(files, None)  # type: ignore[arg-type]
