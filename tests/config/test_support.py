"""Keys without a life yet: they load, and the stage that would need them is refused, all at once."""

from __future__ import annotations

import pytest

from raystill.config.load import load_config
from raystill.config.support import STAGES_OF_KEY, marked_keys, require_supported, unsupported_keys
from raystill.errors import ConfigError

ALL = ["prepare", "generate", "score", "sft", "distill", "evaluate", "export"]
OPEN = "teacher.open.model.name=x/y"
FRESH = [
    "student.hidden_size=64", "student.intermediate_size=128",
    "student.num_hidden_layers=2", "student.num_attention_heads=4",
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "path", "stages"),
    [
        (["export.onnx={opset: 19}"], "export.onnx", {"export"}),
        (["judge={lengths: [1]}"], "judge", set(ALL)),
        ([], "student", {"sft", "distill"}),
        (["assistant.model.name=y"], "student", {"distill"}),
    ],
)  # fmt: skip
def test_each_key_stops_the_stages_that_would_need_it(
    overrides: list[str], path: str, stages: set[str]
) -> None:
    """I42: formats that nothing writes yet, and other keys without a life."""
    described = (
        ["student.base_model_name=x"]
        if path not in ("student",) and not any(text.startswith("student.") for text in overrides)
        else []
    )
    loaded = load_config([], [*overrides, *described])
    refused = {stage for stage in ALL if unsupported_keys(loaded, [stage])}
    assert refused == stages
    with pytest.raises(ConfigError) as caught:
        require_supported(loaded, ALL)
    (problem,) = caught.value.problems
    assert path in problem.where
    assert problem.fix


def test_a_config_without_such_keys_runs_everywhere() -> None:
    loaded = load_config([], [OPEN, *FRESH, "train.sft={}", "train.distillation={}"])
    require_supported(loaded, ALL)
    require_supported(loaded.config, ALL)


def test_students_of_every_kind_run() -> None:
    for described in (["student.base_model_name=x"], FRESH, ["student.base_model_name=x", *FRESH]):
        require_supported(load_config([], [OPEN, *described]), ALL)


def test_defaults_written_out_are_no_problem() -> None:
    loaded = load_config([], [*FRESH, "train.sft.report_to=none", "export.onnx=null", "judge=null"])
    require_supported(loaded, ALL)


def test_all_are_listed_at_once_with_their_places() -> None:
    loaded = load_config([], [*FRESH, "judge={}", "export.gguf={}", "export.coreml={}"])
    with pytest.raises(ConfigError) as caught:
        require_supported(loaded, ["sft", "export"])
    assert [problem.where for problem in caught.value.problems] == [
        "--set export.coreml (export.coreml)",
        "--set export.gguf (export.gguf)",
        "--set judge (judge)",
    ]
    assert caught.value.what.startswith("3 keys")
    assert len(unsupported_keys(loaded.config, ["sft", "export"])) == 3


def test_every_mark_is_mapped_to_stages_or_is_a_whole_section() -> None:
    marked = {key.path for key in marked_keys()}
    assert set(STAGES_OF_KEY) <= marked
    assert {path for path in marked - set(STAGES_OF_KEY) if "." in path} == set()
