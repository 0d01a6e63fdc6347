"""A hub's teacher in the cache: usable without a network, and named by its commit (F38, I11)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raystill.config.schema import Config
from raystill.config.teacher import OpenModel
from raystill.teacher.identify import engine_notes, identify_teacher
from raystill.teacher.model_files import check_model_files
from raystill.testing.ports import find_port

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# From the prompts to the teacher's identity: all that a run asks the hub for.
PROGRAM = """
import json, sys
from raystill.config.schema import Config
from raystill.prompts.stage import STAGE
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.teacher.identify import engine_notes, identify_teacher
config = Config.model_validate(json.loads(sys.argv[1]))
kept = execute(STAGE, config, RunPaths.from_config(config)).manifest.counts["kept"]
teacher = identify_teacher(config)
print(json.dumps({"kept": kept, "revision": teacher.identity.revision, "notes": engine_notes(teacher)}))
"""


@pytest.fixture
def hub_cache(tmp_path: Path, teacher_dir: Path) -> Path:
    """A hub cache that holds acme/tiny, whose branch main is at COMMIT."""
    model = tmp_path / "hub" / "models--acme--tiny"
    shutil.copytree(teacher_dir, model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT, encoding="ascii")
    return tmp_path / "hub"


def test_with_everything_in_the_cache_no_network_is_needed(hub_cache: Path, tmp_path: Path) -> None:
    """F38."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "What is {n}?"}}\n' for n in range(6)), encoding="utf-8")
    config = {
        "run": {"name": "offline", "dir": str(tmp_path / "runs")},
        "prompts": {"sources": [{"path": str(prompts)}]},
        "teacher": {"engine": "fake", "open": {"model": {"name": "acme/tiny"}}},
    }
    environment = os.environ | {
        "HF_HUB_CACHE": str(hub_cache),
        "HF_ENDPOINT": f"http://127.0.0.1:{find_port()}",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(config)],
        capture_output=True, text=True, check=False, timeout=600, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["kept"], found["revision"]) == (6, COMMIT)
    assert any("no revision is given" in note and COMMIT in note for note in found["notes"])


def test_a_branch_is_warned_of_and_its_commit_recorded(
    hub_cache: Path, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """I11."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    notes, revisions = {}, set()
    for asked in ("main", COMMIT):
        config = make_config(model=Path("acme/tiny"), model_keys={"revision": asked})
        teacher = identify_teacher(config)
        revisions.add(teacher.identity.revision)
        notes[asked] = "\n".join(engine_notes(teacher))
    assert revisions == {COMMIT}
    assert "revision 'main' is not a commit" in notes["main"] and COMMIT in notes["main"]
    assert COMMIT not in notes[COMMIT]


def test_a_download_into_an_own_directory_knows_its_commit(teacher_dir: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(teacher_dir, tmp_path / "own"))
    model = OpenModel(name="acme/tiny", revision="main", save_path=str(own))
    assert check_model_files(own, model, is_local=False).revision == "main"  # nothing says more
    records = own / ".cache" / "huggingface" / "download"
    records.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (records / f"{name}.metadata").write_text(f"{COMMIT}\netag\n1700000000.0\n", encoding="utf-8")
    assert check_model_files(own, model, is_local=False).revision == COMMIT
