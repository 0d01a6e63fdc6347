"""`raystill store import|export` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raystill.cli.main import main


def rows(path: Path) -> Path:
    answer = {"role": "assistant", "content": "four"}
    lines = [{"messages": [{"role": "user", "content": f"question {i}"}, answer]} for i in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"messages": []}]), encoding="utf-8")
    return path


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(tmp_path / "store")]
    first = ["store", "import", "messages", str(rows(tmp_path / "in.jsonl")), *store, "--teacher", "someone"]
    assert main(first) == 0
    assert "4 rows read: 3 added (0 with logprobs), 0 known already, 1 rejected" in capsys.readouterr().out
    assert main([*first, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_known"] == 3
    assert main(["store", "export", "openai-batch", str(tmp_path / "out.jsonl"), *store]) == 0
    assert "3 rows written" in capsys.readouterr().out
    assert len((tmp_path / "out.input.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert main(["store", "stats", str(tmp_path / "store")]) == 0
    assert "someone" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["store", "import", "csv", "x", "--store", "s", "--teacher", "t"], 2, "openai-batch, distillkit"),
        (["store", "import", "openai-batch", "x", "--store", "s", "--teacher", "t"], 2, "--input"),
        (["store", "import", "messages", "no.jsonl", "--store", "s", "--teacher", "t"], 3, "can't be read"),
        (["store", "import", "messages", "x", "--store", "s", "--teacher=t", "--codec=y"], 2, "--codec"),
        (["store", "import", "messages", "x", "--store", "s", "--teacher=t", "--split=y"], 2, "--split"),
        (["store", "export", "parquet", "x", "--store", "s"], 2, "distillkit, axolotl"),
        (["store", "export", "jsonl", "x", "--store", "missing"], 3, "no teacher store"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
