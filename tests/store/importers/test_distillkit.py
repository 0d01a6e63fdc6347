"""DistillKit's Parquet: what is refused, where completions start, and which numbers mean what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from foreign import DEMO_TEACHER, load

from raystill.errors import DataError
from raystill.store.distillkit_codec import CompressionConfig, encode_logprobs, pack_bits
from raystill.store.reader import iter_tables, load_rows

CONFIG = CompressionConfig(d=50, k=3, exact_k=3, delta_encoding=False)


def write(directory: Path, rows: list[dict[str, Any]], config: CompressionConfig | None = CONFIG) -> Path:
    path = directory / "data_0.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    if config is not None:
        text = yaml.safe_dump(config.model_dump(mode="json"))
        (directory / "compression_config.yaml").write_text(text, encoding="utf-8")
    return path


def row(num_tokens: int, num_entries: int, **columns: Any) -> dict[str, Any]:
    """Entry j says token j + 1 with probability 0.9; token i is id i + 10."""
    logprobs = np.log(np.tile([0.9, 0.05, 0.01], (num_entries, 1)))
    ids = np.arange(num_entries)[:, None] + np.array([11, 1, 2])
    return {
        "input_ids": list(range(10, 10 + num_tokens)),
        "compressed_logprobs": encode_logprobs(logprobs, CONFIG).tolist(),
        "bytepacked_indices": pack_bits(ids, CONFIG.index_bits).tolist(),
        "labels": None,
    } | columns


def test_entry_j_is_the_distribution_of_the_next_token(tmp_path: Path) -> None:
    path = write(tmp_path, [row(5, 4), row(6, 6), row(7, 6, labels=[-100, -100, -100, 13, 14, 15, 16])])
    store, counts = load(tmp_path, "distillkit", path)
    assert counts.num_signals == 3
    found = {
        len(each.prompt_token_ids) + len(each.completion_token_ids): each
        for each in load_rows(store, with_signal=True)
    }
    assert [len(found[size].prompt_token_ids) for size in (5, 6, 7)] == [1, 1, 3]
    for each in found.values():
        assert each.signal is not None
        assert each.signal.topk_ids_TK[:, 0].tolist() == each.completion_token_ids.tolist()
        np.testing.assert_allclose(each.signal.sampled_logprob_T, np.log(0.9), rtol=1e-5)
        np.testing.assert_allclose(np.exp(each.signal.tail_logprob_T), 0.04, rtol=1e-4)
        assert each.flags == ("ids_only",)
        assert each.finish_reason == "unknown"


def test_a_token_outside_the_top_k_is_flagged(tmp_path: Path) -> None:
    store, _ = load(tmp_path, "distillkit", write(tmp_path, [row(4, 3, input_ids=[10, 11, 40, 13])]))
    (found,) = load_rows(store, with_signal=True)
    assert "sampled_logprob_bound" in found.flags
    assert found.signal is not None
    assert found.signal.sampled_logprob_T[1] == pytest.approx(np.log(0.01), rel=1e-3)


def test_the_tokenizer_gives_the_text_and_drops_the_appended_pad(tmp_path: Path) -> None:
    from raystill.text.tokenizer import load_tokenizer

    pad = load_tokenizer(str(DEMO_TEACHER)).pad_token_id
    plain = row(5, 4)
    padded = row(5, 4, input_ids=[*plain["input_ids"][:4], 11 if pad is None else pad])
    path = write(tmp_path, [padded])
    store, _ = load(tmp_path, "distillkit", path, tokenizer=str(DEMO_TEACHER))
    (found,) = load_rows(store)
    assert len(found.completion_token_ids) == (4 if pad is None else 3)
    assert found.completion


def test_rows_that_contradict_themselves_are_rejected(tmp_path: Path) -> None:
    short = row(5, 4)
    short["compressed_logprobs"] = [entry[:-1] for entry in short["compressed_logprobs"]]
    ragged = row(5, 4)
    ragged["bytepacked_indices"][2] = [1]
    beyond = row(5, 4, bytepacked_indices=pack_bits(np.full((4, 3), 63), CONFIG.index_bits).tolist())
    twice = row(5, 4, bytepacked_indices=pack_bits(np.full((4, 3), 7), CONFIG.index_bits).tolist())
    heavy = row(5, 4, compressed_logprobs=encode_logprobs(np.full((4, 3), -0.2), CONFIG).tolist())
    spans = row(5, 4, labels=[-100, 11, -100, 13, 14])
    missing = row(5, 4, compressed_logprobs=None)
    path = write(
        tmp_path, [short, ragged, beyond, twice, heavy, spans, missing, row(9, 4), row(1, 0), row(5, 4)]
    )
    store, counts = load(tmp_path, "distillkit", path)
    assert counts.num_added == 1
    assert counts.rejects_by_code == {
        "codec": 2, "bad_bytes": 2, "signal": 1, "not_normalised": 1, "several_spans": 1, "misaligned": 1,
        "empty": 1,
    }  # fmt: skip
    rejects = [each for table in iter_tables(store, kind="rejects") for each in table.to_pylist()]
    assert any("data_0.parquet[3]: " in each["reason"] and "twice" in each["reason"] for each in rejects)


def test_without_its_parameters_nothing_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path, [row(5, 4)], config=None)
    with pytest.raises(DataError, match="parameters of their codec"):
        load(tmp_path, "distillkit", path)
    bad = tmp_path / "bad.yaml"
    for text in ("k: 3", "d: 50\nk: 3\nexact_k: 9", "- 1", "{", "d: 50\nk: 3\nexact_k: 3\nmore: 1"):
        bad.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="can't be read"):
            load(tmp_path, "distillkit", path, codec=bad)
    assert not (tmp_path / "store").exists()


def test_the_old_format_is_refused_with_the_reason(tmp_path: Path) -> None:
    old = {"input_ids": [1, 2], "packed_indices": [[1]], "exact_values": [[0.5]], "coeffs": [[0.1]]}
    with pytest.raises(DataError, match="centred logits"):
        load(tmp_path, "distillkit", write(tmp_path, [old]))
