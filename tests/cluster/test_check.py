"""The doctor: what is sound is said to be, and every defect is found with its repair and its exit code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from raystill.testing.scripted_api import ScriptedApi
from raystill.testing.scripted_chat import Capabilities

DEMO = Path(__file__).resolve().parents[2] / "platform" / "raystill" / "demo"


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """A sound configuration, with other sections where they are given."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def make(**sections: Any) -> Config:
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
        return Config.model_validate(values | sections)

    return make


@pytest.fixture
def check(configuration: Callable[..., Config]) -> Callable[..., CheckResult]:
    def run(asks_endpoints: bool = False, **sections: Any) -> CheckResult:
        config = configuration(**sections)
        return run_check(config, plan_run(LoadedConfig(config)), asks_endpoints=asks_endpoints)

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
    """I7, I14, I33, I34, I44: before anything is started or paid for."""
    result = check(**sections)
    assert result.exit_code == code, result.findings
    found = next(f for f in result.findings if f.level == "error" and message in f.what + f.where + f.fix)
    assert found.fix


def test_too_little_disk_and_memory_are_found_with_both_numbers(
    configuration: Callable[..., Config],
) -> None:
    """I35: disk that isn't there is in the way; memory is an estimate, and a warning."""
    config = configuration()
    plan = plan_run(LoadedConfig(config))
    assert plan.disk_bytes > 0 and plan.memory_bytes
    enough = plan.free_disk_bytes
    plan = replace(plan, disk_bytes=enough + 5 * 10**9, memory_bytes=2**50)
    result = run_check(config, plan)
    assert result.exit_code == 4
    found = next(f for f in result.findings if f.level == "error")
    assert f"{plan.disk_bytes / 1e9:.1f} GB" in found.what and f"{enough / 1e9:.1f} GB are free" in found.what
    assert found.where == plan.run_dir and "run.dir" in found.fix
    assert "1048576.0 GiB" in said(result, "environment", "warning")


def test_whatever_is_not_sound_comes_with_its_repair(check: Callable[..., CheckResult]) -> None:
    """Warnings too."""
    opened = {"model": {"name": str(DEMO / "teacher")}, "pipeline": {"max_new_tokens": 400}}
    result = check(
        teacher={"engine": "transformers", "open": opened, "base": {"prompt_length": 2}},
        student={"base_model_name": str(DEMO / "teacher")},
        training={"max_seq_len": 100, "checkpoint_cleanup": {"min_free_space_gb": 1e6}},
    )
    found = [finding for finding in result.findings if finding.level != "ok"]
    assert len(found) >= 4 and [finding for finding in found if not finding.fix] == []


def said(result: CheckResult, area: str, level: str = "ok") -> str:
    return " | ".join(f.what for f in result.findings if (f.area, f.level) == (area, level))


def closed(api: ScriptedApi, **more: Any) -> dict[str, Any]:
    endpoint = {"base_url": api.base_url, "api_key_env": None, "request_timeout_s": 60}
    prices = {"prompt": 1.0, "completion": 2.0}
    return {"model": {"name": "scripted"}, "endpoint": endpoint, "prices": prices, **more}


def test_what_endpoints_can_do_is_asked_only_when_that_is_wanted(check: Callable[..., CheckResult]) -> None:
    with ScriptedApi(capabilities=Capabilities(max_top_logprobs=5)) as api:
        sections = {
            "teacher": {
                "closed": closed(api, model={"name": "scripted", "tokenizer": str(DEMO / "teacher")})
            },
            "grade": {"closed": closed(api)},
        }
        silent = check(**sections)
        assert api.counts.requests == 0
        for area in ("endpoint", "judge"):
            assert "not asked" in said(silent, area) and "--probe" in said(silent, area)
            assert "at most 17 small requests, at most $0.0" in said(silent, area)
        asked = check(asks_endpoints=True, **sections)
        assert 0 < api.counts.requests <= 2 * 17
    found = said(asked, "endpoint")
    assert "a seed" in found and "JSON Schemas" in found and "several answers per request (n)" in found
    assert "top 5 logprobs of 20 wanted" in found and "requests, $0.0" in found
    assert "at most 5 logprobs per token" in said(asked, "endpoint", "warning")
    assert "JSON Schemas" in said(asked, "judge")


def test_a_judge_that_cannot_be_forced_and_one_that_is_not_there(check: Callable[..., CheckResult]) -> None:
    with ScriptedApi(capabilities=Capabilities(has_json_schema=False)) as api:
        judge = closed(api)
        result = check(asks_endpoints=True, grade={"closed": judge, "structured": True})
    assert "JSON Schema" in said(result, "judge", "warning")
    assert "not JSON Schemas" in said(result, "judge")
    gone = check(grade={"closed": judge})
    assert "nobody answers" in said(gone, "judge", "error") and gone.exit_code == 5


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
