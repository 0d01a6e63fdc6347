"""The README says only what is there: files of the tour, folders of the tree, commands that parse."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.partition("#")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", TEXT, flags=re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("raystill ")
]
WORKING = {"run", "prepare", "generate", "score", "sft", "distill", "evaluate", "export", "report"}


def test_the_tour_has_eight_files_that_exist() -> None:
    tour = re.findall(r"^\d\. `([^`]+)`", TEXT, flags=re.M)
    assert len(tour) == 8
    assert [path for path in tour if not (ROOT / path).is_file()] == []


def test_the_tree_is_what_is_there() -> None:
    tree = re.search(r"```text\n(.*?)```", TEXT, flags=re.S)
    assert tree is not None
    folders = [line.split()[0] for line in tree.group(1).splitlines()]
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []
    assert {"platform/raystill/", "jobs/", "configs/", "cluster/", "tests/"} <= set(folders)


def test_files_named_in_the_text_exist() -> None:
    named = re.findall(r"`((?:configs|jobs|scripts|requirements|platform)/[\w./-]+\.\w+)`", TEXT)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command: str, tmp_path: Path) -> None:
    words = shlex.split(command)[1:]
    if words[0] in WORKING:
        words.append("--dry-run")
    if words[0] == "check":  # an old run of this name here is no fault of the text
        words += ["--set", f"run.dir={tmp_path}"]
    if words[0] == "store":
        words = [*words[:2], "--help"]
    if words[0] == "tune":  # it wants a run that has answers
        words = ["config", "validate", *words[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "raystill.cli.main", *words],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    assert set(re.findall(r"\bmake ([a-z]+)", TEXT)) <= targets
    assert {"demo", "test", "check", "bench", "clean"} <= targets


def test_the_demo_output_block_is_marked_for_filling() -> None:
    assert TEXT.count("<!-- demo-output: begin -->") == TEXT.count("<!-- demo-output: end -->") == 1


def test_no_registry_hosts_and_no_machine_paths() -> None:
    for path in (ROOT / "README.md", *(ROOT / "requirements").glob("*"), *(ROOT / "scripts").glob("*")):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        assert not re.search(r"pypi\.org|pythonhosted|download\.pytorch|/root/|/home/", text), path
