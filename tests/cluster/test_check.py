"""The doctor: what is sound is said to be, and every defect is found with its repair and its exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raystill.cluster import check_environment
from raystill.cluster.check import CheckResult, run_check
from raystill.cluster.findings import Findings
from raystill.config.loaded import LoadedConfig
from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError, EnvironmentFault
from raystill.pipeline import plan_run

DEMO = Path(__file__).resolve().parents[2] / "platform" / "raystill" / "demo"


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CheckResult]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(**sections: Any) -> CheckResult:
        values: dict[str, Any] = {
            "run": {"name": "r", "dir": str(tmp_path / "runs")},
            "device": {"type": "cpu"},
            "prompts": {"sources": [{"path": str(DEMO / "data" / "prompts.jsonl")}]},
            "teacher": {
                "engine": "transformers",
                "open": {"model": {"name": str(DEMO / "teacher")}, "pipeline": {"max_new_tokens": 40}},
            },
            "student": {
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            },
            "train": {"sft": {}},
            "training": {"checkpoint_cleanup": {"min_free_space_gb": 0.1}},
        }  # fmt: skip
        config = Config.model_validate(values | sections)
        return run_check(config, plan_run(LoadedConfig(config)))

    return run


def errors(result: CheckResult) -> list[str]:
    return [finding.what for finding in result.findings if finding.level == "error"]


def test_a_sound_configuration_passes_and_shows_an_example(check: Callable[..., CheckResult]) -> None:
    result = check()
    assert errors(result) == [] and result.exit_code == 0
    assert {"environment", "ray", "data", "templates"} <= {finding.area for finding in result.findings}
    assert result.example is not None
    mask = result.example.loss_mask
    assert mask[0] == 0 and mask[-1] == 1 and sorted(mask) == mask  # the prompt, then what carries loss
    assert result.example.texts[-1] == "<|im_end|>"
    assert len(result.to_json()["example"]["token_ids"]) == len(mask)


@pytest.mark.parametrize(
    ("sections", "code", "message"),
    [
        ({"prompts": {"sources": [{"path": "/nowhere.jsonl"}]}}, 3, "nowhere"),
        ({"training": {"max_seq_len": 20}}, 3, "no room for a completion"),
        ({"device": {"type": "cuda"}}, 4, "no GPU"),
        ({"training": {"num_workers": 99}}, 2, "99 CPU"),
        ({"cluster": {"address": "127.0.0.1:1"}}, 5, "no Ray cluster answers"),
        ({"teacher": {"closed": {"model": {"name": "gpt"}}}}, 2, "OPENAI_API_KEY"),
    ],
)
def test_a_defect_is_found_with_its_repair(
    check: Callable[..., CheckResult], sections: dict[str, Any], code: int, message: str
) -> None:
    result = check(**sections)
    assert result.exit_code == code, result.findings
    found = next(f for f in result.findings if f.level == "error" and message in f.what + f.where + f.fix)
    assert found.fix


def test_the_exit_code_is_that_of_what_stands_first_in_the_way() -> None:
    findings = Findings()
    for error in (ConfigError("c"), DataError("d"), EnvironmentFault("e")):
        findings.fail("x", error)
    assert findings.exit_code == 4
    assert Findings().exit_code == 0


def test_a_token_is_found_where_ray_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert not check_environment.has_token()
    (tmp_path / "token").write_text("t" * 32, encoding="utf-8")
    assert check_environment.has_token()


def test_the_installed_packages_are_the_tested_ones() -> None:
    assert check_environment.find_version_conflicts() == []
