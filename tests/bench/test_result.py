"""What a benchmark returns and what is committed of it."""

from __future__ import annotations

import json
from pathlib import Path

from raystill.bench.result import BenchRow, bench_result, markdown_table, save_result

ROW = BenchRow("k=20", "tokens/s", 4000.0, 4400.0, "vllm.LLM", 0.909, ">= 0.85", True)


def test_the_object_has_the_agreed_shape() -> None:
    result = bench_result("generation", [ROW])
    assert set(result) == {"bench", "machine", "versions", "rows"}
    keys = {"case", "metric", "ours", "peer", "peer_name", "ratio", "goal", "met"}
    assert set(result["rows"][0]) == keys
    assert "ray" in result["versions"]


def test_a_saved_result_reads_back_and_has_its_table(tmp_path: Path) -> None:
    result = bench_result("generation", [ROW])
    save_result(tmp_path, result)
    assert json.loads((tmp_path / "generation.json").read_text()) == result
    text = (tmp_path / "generation.md").read_text()
    assert text.startswith("# generation\n") and "| k=20 | tokens/s | 4000 | 4400 |" in text


def test_a_row_without_a_peer_has_empty_cells() -> None:
    row = BenchRow("seed 0", "gap closed", 0.9, None, "", None, ">= 0.80", True)
    assert markdown_table(bench_result("gap", [row])).splitlines()[-1] == (
        "| seed 0 | gap closed | 0.9 |  |  |  | >= 0.80 | True |"
    )
