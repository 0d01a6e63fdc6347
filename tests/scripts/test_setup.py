"""Set-up on machines that can't: one line with the fix, exit code 4, and nothing half-made is trusted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def set_up(venv: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", str(ROOT / "scripts" / "setup.sh"), *arguments],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"PYTHON": sys.executable, "RAYSTILL_VENV": str(venv)} | environment,
    )  # fmt: skip


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stderr.strip().splitlines()[-1]


def test_an_old_python_is_named_with_the_fix(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n', encoding="utf-8"
    )
    old.chmod(0o755)
    done = set_up(tmp_path / "venv", PYTHON=str(old))
    assert done.returncode == 4
    assert "3.11 or later" in last_line(done) and "Python 3.9.2" in last_line(done)
    assert "make demo PYTHON=" in last_line(done)
    assert not (tmp_path / "venv").exists()


def test_no_python_at_all_is_named_with_the_fix(tmp_path: Path) -> None:
    done = set_up(tmp_path / "venv", PYTHON=str(tmp_path / "nowhere"))
    assert done.returncode == 4 and "no " in last_line(done) and "3.11" in last_line(done)


def test_too_little_disk_is_said_before_anything_is_made(tmp_path: Path) -> None:
    done = set_up(tmp_path / "venv", RAYSTILL_SETUP_FREE_GB="1000000000")
    assert done.returncode == 4
    assert "GB are free" in last_line(done) and "free some space" in last_line(done)
    assert not (tmp_path / "venv").exists()


def test_a_python_without_venv_is_said(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'ensurepip' else find(name, *rest)\n",
        encoding="utf-8",
    )
    done = set_up(tmp_path / "venv", PYTHONPATH=str(tmp_path))
    assert done.returncode == 4
    assert "no venv module" in last_line(done) and "python3-venv" in last_line(done)


def test_without_an_index_the_line_names_the_network(tmp_path: Path) -> None:
    done = set_up(tmp_path / "venv", PIP_NO_INDEX="1", PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    assert done.returncode == 4
    assert "network" in last_line(done) and "install.log" in last_line(done)
    assert not (tmp_path / "venv" / "raystill-setup.json").exists()


def test_a_prepared_environment_is_taken_at_once_and_only_for_what_it_has(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    stamp = subprocess.run(
        [sys.executable, "-c", "import setup_env as s; print(s.compute_stamp(s.detect_vllm()))"],
        capture_output=True, text=True, check=True, cwd=ROOT / "scripts",
    ).stdout.strip()  # fmt: skip
    done_file = venv / "raystill-setup.json"
    done_file.write_text(json.dumps({"stamp": stamp, "dev": False}), encoding="utf-8")
    assert set_up(venv).returncode == 0
    blocked = {"RAYSTILL_SETUP_FREE_GB": "1000000000"}
    assert set_up(venv, **blocked).returncode == 0
    assert set_up(venv, "--dev", **blocked).returncode == 4
    done_file.write_text(json.dumps({"stamp": "of other pins", "dev": True}), encoding="utf-8")
    assert set_up(venv, **blocked).returncode == 4


@pytest.mark.parametrize("name", ["base", "dev", "vllm-cpu", "vllm-gpu"])
def test_pins_name_no_host_and_no_path(name: str) -> None:
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    assert "://" not in text and "@" not in text
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines and all("==" in line for line in lines)
