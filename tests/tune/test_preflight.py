"""What training refuses is heard from a process beside the driver, and so is that process's own end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raystill.config.schema import Config
from raystill.errors import EnvironmentFault, RaystillError
from raystill.run.paths import RunPaths
from raystill.tune.preflight import answer, begin_preflight


def test_a_refusal_comes_as_the_same_error(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "run": {"dir": str(tmp_path)},
            "student": {"base_model_name": str(tmp_path / "nowhere")},
            "train": {"sft": {}},
        }
    )
    run = RunPaths.from_config(config)
    question = {
        "config": config.model_dump_json(), "root": str(run.root), "store": str(run.store), "stage": "sft",
    }  # fmt: skip
    expected = answer(question)
    assert expected["problems"]
    with begin_preflight(config, run, "sft") as finish, pytest.raises(RaystillError) as caught:
        finish()
    assert type(caught.value).__name__ == expected["kind"]
    assert [[p.what, p.where, p.fix] for p in caught.value.problems] == expected["problems"]


def test_a_process_that_dies_is_no_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'no memory left' >&2\nexit 9\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    run = RunPaths(root=tmp_path, store=tmp_path / "store")
    with begin_preflight(Config(), run, "sft") as finish, pytest.raises(EnvironmentFault) as caught:
        finish()
    assert "exit code 9" in caught.value.what and caught.value.problems[0].where == "no memory left"
