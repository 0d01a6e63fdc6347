"""The image's recipe, as far as it can be followed without a builder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "cluster" / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()


def copied() -> list[str]:
    """What every COPY takes from the repository."""
    words = [line.split() for line in LINES if line.startswith("COPY")]
    return [name for line in words for name in line[1:-1] if not name.startswith("--")]


def test_what_is_copied_is_there_and_reaches_the_builder() -> None:
    sent = (ROOT / "cluster" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for name in copied():
        assert (ROOT / name).exists(), name
        assert f"!{name.rstrip('/')}" in sent, name


def test_every_engine_has_its_requirements() -> None:
    text = "\n".join(LINES)
    engines = set(re.findall(r"ENGINE=([a-z-]+)", text)) | {"base"}
    assert len(engines) > 1
    for engine in engines:
        assert (ROOT / "requirements" / f"{engine}.txt").is_file()


def test_the_package_builds_from_what_is_copied(tmp_path: Path) -> None:
    for name in copied():
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, target)
    out = tmp_path / "out"
    out.mkdir()
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in ("raystill/cli/main.py", "raystill/report/report.css", "raystill/demo/data/prompts.jsonl"):
        assert wanted in names
    assert any(name.startswith("raystill/demo/teacher/") and name.endswith(".safetensors") for name in names)
