from __future__ import annotations

import pytest

from raystill.config.load import load_config
from raystill.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ("{seq_lengths: [10, 20, 30], schedule: [5]}", "3 phases"),
        ("{schedule: [5]}", "no effect without"),
        ("{seq_lengths: [20, 10], schedule: [5]}", "rise"),
        ("{seq_lengths: [10, 20, 30], schedule: [9, 5]}", "rise"),
        ("{mix: {a: 0.7, b: 0.7}}", "add up to 1.4"),
        ("{mix: {a: 0.0}}", "add up to 0"),
        ("{mix_end: {a: 0.5}}", "no effect without"),
    ],
)
def test_curricula_that_make_no_sense_are_refused(values: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config([], [f"curriculum={values}"])


def test_the_seeds_schedule_with_one_end_more_than_needed_loads() -> None:
    values = "{seq_lengths: [4096, 8192, 16384], schedule: [20000, 60000, 120000, 200000], mix: {a: 0.5}}"
    curriculum = load_config([], [f"curriculum={values}"]).config.curriculum
    assert curriculum is not None and curriculum.seq_lengths[-1] == 16384
