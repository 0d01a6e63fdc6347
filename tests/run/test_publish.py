"""A reader sees the whole old or the whole new; failures and kills leave hidden leftovers at most."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from raystill.errors import EnvironmentFault
from raystill.run import publish
from raystill.run.publish import (
    discard_directory,
    make_directory,
    publish_directory,
    publish_file,
    sha256_file,
    sweep_temporaries,
    write_json,
)

CRASH = """
import os, sys
from pathlib import Path
from raystill.run import publish
os.environ["RAYSTILL_FAILPOINT"] = sys.argv[2]
root = Path(sys.argv[1])
if sys.argv[3] == "two renames":
    publish._exchange = lambda left, right: False
with publish.publish_file(root / "file") as temporary:
    temporary.write_text("new" * 1000)
with publish.publish_directory(root / "directory") as temporary:
    (temporary / "a").write_text("new a")
    (temporary / "b").write_text("new b")
publish.discard_directory(root / "discarded")
"""


def names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def old_state(root: Path) -> None:
    (root / "file").write_text("old", encoding="utf-8")
    for name in ("directory", "discarded"):
        (root / name).mkdir()
        (root / name / "a").write_text("old a", encoding="utf-8")


@pytest.mark.parametrize(
    ("failpoint", "how"),
    [
        ("publish_file:before_rename:1", "exchange"),
        ("publish_file:after_rename:1", "exchange"),
        ("publish_directory:before_rename:1", "exchange"),
        ("publish_directory:after_rename:1", "exchange"),
        ("publish_directory:between_renames:1", "two renames"),
        ("publish_directory:after_rename:1", "two renames"),
        ("discard_directory:renamed:1", "exchange"),
    ],
)
def test_a_kill_leaves_the_old_or_the_new(tmp_path: Path, failpoint: str, how: str) -> None:
    """F16."""
    old_state(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(tmp_path), failpoint, how], timeout=300, check=False
    )
    assert done.returncode == -9
    assert (tmp_path / "file").read_text() in ("old", "new" * 1000)
    directory = tmp_path / "directory"
    if failpoint == "publish_directory:between_renames:1":
        assert not directory.exists()
    else:
        content = {item.name: item.read_text() for item in directory.iterdir()}
        assert content in ({"a": "old a"}, {"a": "new a", "b": "new b"})
    assert not (tmp_path / "discarded").exists() or names(tmp_path / "discarded") == ["a"]
    sweep_temporaries(tmp_path)
    assert set(names(tmp_path)) <= {"file", "directory", "discarded"}


def test_a_failing_body_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    old_state(tmp_path)
    with pytest.raises(ValueError, match="no"), publish_file(tmp_path / "file") as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise ValueError("no")
    with pytest.raises(ValueError, match="no"), publish_directory(tmp_path / "directory") as temporary:
        (temporary / "half").write_text("half", encoding="utf-8")
        raise ValueError("no")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path / "directory") == ["a"]
    assert names(tmp_path) == ["directory", "discarded", "file"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_directory_is_replaced_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    old_state(tmp_path)
    if not exchange:
        monkeypatch.setattr(publish, "_exchange", lambda left, right: False)
    with publish_directory(tmp_path / "directory") as temporary:
        (temporary / "deep" / "er").mkdir(parents=True)
        (temporary / "deep" / "er" / "x").write_text("x", encoding="utf-8")
        assert names(tmp_path / "directory") == ["a"]
    assert names(tmp_path / "directory") == ["deep"]
    assert names(tmp_path) == ["directory", "discarded", "file"]


def test_on_linux_the_exchange_really_is_one_step(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is Linux's")
    old_state(tmp_path)
    (tmp_path / "other").mkdir()
    assert publish._exchange(tmp_path / "directory", tmp_path / "other")
    assert (names(tmp_path / "directory"), names(tmp_path / "other")) == ([], ["a"])


def test_a_failed_second_rename_puts_the_old_directory_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F40."""
    old_state(tmp_path)
    monkeypatch.setattr(publish, "_exchange", lambda left, right: False)
    real = os.replace

    def fail_once(source: Path, target: Path) -> None:
        if target == tmp_path / "directory" and (Path(source) / "new").exists():
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with (
        pytest.raises(EnvironmentFault, match="the disk reports an error"),
        publish_directory(tmp_path / "directory") as temporary,
    ):
        (temporary / "new").write_text("x", encoding="utf-8")
    assert names(tmp_path / "directory") == ["a"]


def test_a_full_disk_is_an_environment_fault_and_leaves_nothing(tmp_path: Path) -> None:
    """F14."""
    pid = os.fork()
    if pid == 0:  # a limit on file sizes can't be taken back, so it is set in a child
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        code = 1
        try:
            with publish_file(tmp_path / "file") as temporary, temporary.open("wb") as stream:
                stream.write(b"x" * 100_000)
        except EnvironmentFault as error:
            code = 0 if error.exit_code == 4 and "disk is full" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert names(tmp_path) == []


def test_a_file_where_a_directory_is_needed_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for write in (make_directory, lambda path: write_json(path / "x.json", {})):
        with pytest.raises(EnvironmentFault) as caught:
            write(tmp_path / "file" / "below")
        assert str(tmp_path / "file" / "below") in str(caught.value)
    with pytest.raises(EnvironmentFault):
        make_directory(tmp_path / "file")


def test_a_place_that_can_not_be_written_is_an_environment_fault(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(EnvironmentFault, match="can't be written"):
        write_json(tmp_path / "locked" / "x.json", {})


def test_directories_are_made_with_their_parents_and_may_exist(tmp_path: Path) -> None:
    make_directory(tmp_path / "a" / "b" / "c")
    make_directory(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_json_is_stable_and_unicode(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "x.json").read_bytes() == '{\n  "a": "ü",\n  "b": 1\n}\n'.encode()
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"a": "ü", "b": 1}


def test_checksums_and_sweeping(tmp_path: Path) -> None:
    content = b"abc" * 1_000_000  # more than one chunk
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
    (tmp_path / ".tmp-1-x").write_text("x", encoding="utf-8")
    (tmp_path / ".tmp-2-y").mkdir()
    (tmp_path / ".tmp-2-y" / "z").write_text("x", encoding="utf-8")
    (tmp_path / ".hidden").write_text("mine", encoding="utf-8")
    assert sweep_temporaries(tmp_path) == 2
    assert names(tmp_path) == [".hidden", "x"]
    assert sweep_temporaries(tmp_path / "none") == 0


def test_discarding_what_is_not_there_is_fine(tmp_path: Path) -> None:
    discard_directory(tmp_path / "none")
    old_state(tmp_path)
    discard_directory(tmp_path / "discarded")
    assert names(tmp_path) == ["directory", "file"]
