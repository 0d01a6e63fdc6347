"""What importing must not bring: the stdlib's platform stays, layers hold, --help is light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "ray", "vllm", "transformers", "pyarrow", "numpy", "pandas"}


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after running `code`."""
    program = f"{code}\nimport sys, json\nprint(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, timeout=300
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("cwd", [ROOT, ROOT / "platform"])
def test_the_stdlib_platform_is_importable_from_here(cwd: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.system())"],
        capture_output=True, text=True, check=True, cwd=cwd, timeout=300,
    )  # fmt: skip
    assert done.stdout.strip()


def test_the_configuration_loads_without_heavy_libraries() -> None:
    found = modules_after("import raystill.config.load, raystill.config.support, raystill.config.explain")
    assert found & HEAVY == set()


def test_the_command_line_imports_nothing_heavy() -> None:
    found = modules_after("from raystill.cli.main import build_app; build_app()")
    assert found & HEAVY == set()


def test_the_stage_graph_imports_no_engine() -> None:
    code = (
        "from raystill.config.load import load_config\n"
        "from raystill.pipeline import STAGE_NAMES, load_stage\n"
        "[load_stage(name) for name in STAGE_NAMES]"
    )
    assert modules_after(code) & {"torch", "ray", "vllm", "transformers"} == set()


def test_layers_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
