"""The shape of the repository: folders, sizes, names, and that every module has its tests."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "platform" / "raystill"
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [*MODULES, *sorted((ROOT / "jobs").glob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FOLDERS = {"platform", "jobs", "configs", "cluster", "tests"}
BESIDE = {"docs", "requirements", "scripts"}
BANNED_NAMES = {"utils", "helpers", "common", "misc", "manager"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_five_folders_and_nothing_unexpected_beside_them() -> None:
    ignored = {
        line.strip().strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    }
    found = {
        item.name
        for item in ROOT.iterdir()
        if item.is_dir() and not item.name.startswith(".") and item.name not in ignored
    }
    assert found >= FOLDERS
    assert found - FOLDERS - BESIDE == set()


def test_the_source_root_never_becomes_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert list((ROOT / "platform").rglob("conftest.py")) == []
    assert list((ROOT / "platform").rglob("test_*.py")) == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES
    long = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    }
    assert long == {}


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_names_say_what_a_module_is(path: Path) -> None:
    assert path.stem not in BANNED_NAMES
    classes = [node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
               if isinstance(node, ast.ClassDef)]  # fmt: skip
    assert [name for name in classes if name.endswith(("Manager", "Handler", "Helper"))] == []


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_product_code_has_no_unsafe_loading_and_no_stand_ins(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for banned in (
        "pickle.load",
        "torch.load(",
        "yaml.load(",
        "unittest.mock",
        "shell=True",
        "NotImplementedError",
    ):
        assert banned not in text, banned


def test_every_package_has_tests() -> None:
    packages = {path.parent.relative_to(PACKAGE) for path in MODULES if path.name != "__init__.py"}
    untested = [
        package.as_posix()
        for package in sorted(packages)
        if package != Path(".") and not list((ROOT / "tests" / package).glob("test_*.py"))
    ]
    assert untested == []


def test_tests_mirror_the_package() -> None:
    packages = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_dir()}
    folders = {
        item.name for item in (ROOT / "tests").iterdir() if item.is_dir() and not item.name.startswith("_")
    }
    assert (
        folders - packages - {"jobs", "configs", "cluster", "scripts", "fixtures", "soak", "sweep"} == set()
    )


def test_jobs_are_thin() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert 20 <= len(text.splitlines()) <= 40, path.name
        assert "ray job submit" in (ast.get_docstring(ast.parse(text)) or ""), path.name


def test_requirements_pin_what_the_project_asks_for() -> None:
    pins = {}
    for line in (ROOT / "requirements" / "base.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition(";")[0].strip().partition("==")
            assert version, f"{line} is not pinned"
            assert "@" not in line and "+" not in version
            pins[name] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"]:
        name = requirement.split("[")[0].split("=")[0].split(">")[0].split("<")[0].strip().lower()
        assert name in pins
    assert pins["torch"] == "2.13.0"


def test_ci_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text(encoding="utf-8")
