"""What travels with a job: measured as Ray zips it, refused above the limit, and never a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystill.cluster import upload as module
from raystill.cluster.jobs import build_entrypoint, job_name, require_lasting
from raystill.cluster.upload import load_runtime_env, measure_upload
from raystill.config.schema import Config
from raystill.errors import ConfigError, EnvironmentFault


def test_ignored_files_stay_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".gitignore").write_text("/runs/\n", encoding="utf-8")
    (tmp_path / ".rayignore").write_text("*.bin\n", encoding="utf-8")
    for name, size in {"runs/big": 500, "model.bin": 500, "a.py": 30, "b/c.py": 70, "d.log": 9}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
    found = measure_upload(tmp_path, ["*.log"])
    names = [str(path) for path, _ in found.files]
    assert names[0] == "b/c.py" and "runs/big" not in names and "model.bin" not in names
    assert "d.log" not in names and found.size_bytes < 200
    monkeypatch.setattr(module, "MOST_BYTES", 50)
    with pytest.raises(EnvironmentFault, match=r"too large.*b/c\.py"):
        measure_upload(tmp_path)


@pytest.mark.parametrize("line", ["OPENAI_API_KEY: x", "A: sk-abcdefghijklmnop", "RAY_AUTH_TOKEN: ''"])
def test_an_environment_with_a_secret_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "env.yaml"
    path.write_text(f"env_vars:\n  TOKENIZERS_PARALLELISM: 'false'\n  {line}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="secret") as caught:
        load_runtime_env(path)
    assert len(caught.value.problems) == 1


def test_a_command_has_no_secret_and_only_files_that_travel(tmp_path: Path) -> None:
    inside = tmp_path / "configs" / "a b.yaml"
    line = build_entrypoint("run", [inside], ["run.seed=1"], tmp_path)
    assert line == "python -m raystill.cli.main run --config 'configs/a b.yaml' --set run.seed=1"
    with pytest.raises(ConfigError) as caught:
        build_entrypoint("run", [Path("/etc/x.yaml")], ["a=sk-abcdefghijklmnop"], tmp_path)
    assert len(caught.value.problems) == 2
    assert "sk-abc" not in str(caught.value)


def test_a_name_is_the_same_for_the_same_request_only() -> None:
    config = Config.model_validate({"run": {"name": "r", "dir": "/shared"}})
    assert job_name(config, "run", ["a"]) == job_name(config, "run", ["a"])
    assert (
        len({job_name(config, "run", ["a"]), job_name(config, "sft", ["a"]), job_name(config, "run", [])})
        == 3
    )
    require_lasting(config)
    with pytest.raises(ConfigError, match="temporary copy"):
        require_lasting(Config())
