"""Whatever happens to a segment's bytes, whole answers are found and flushed ones that are lost are named."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from store_builder import make_reject, make_row, same_row

from raystill.store.journal_record import (
    REJECT,
    ROW,
    Scan,
    decode_record,
    encode_group,
    encode_head,
    encode_record,
    head_facts,
    scan_segment,
)
from raystill.store.records import Reject, TeacherRow

ROWS = [make_row(i, num_tokens=i % 4, num_logprobs=None if i % 3 else 4) for i in range(9)]
GROUPS = [ROWS[start : start + 3] for start in (0, 3, 6)]
HEAD = encode_head("teacher")
GROUP_BYTES = [
    b"".join(map(encode_record, group)) + encode_group([row.key for row in group]) for group in GROUPS
]
RAW = HEAD + b"".join(GROUP_BYTES)
KEYS = [row.key for row in ROWS]


def found(scan: Scan) -> list[str]:
    return [frame.key for frame in scan.frames if frame.kind in (ROW, REJECT)]


def test_a_whole_segment_comes_back_bit_by_bit() -> None:
    scan = scan_segment(RAW)
    assert (found(scan), scan.lost, scan.is_damaged, scan.torn_bytes) == (KEYS, (), False, 0)
    assert head_facts(RAW, scan)["teacher_id"] == "teacher"
    rows = [decode_record(frame, RAW) for frame in scan.frames if frame.kind == ROW]
    for row, original in zip(rows, ROWS, strict=True):
        assert isinstance(row, TeacherRow) and same_row(row, original)


@given(st.integers(0, len(RAW)))
@settings(deadline=None)
def test_a_segment_cut_anywhere_gives_its_first_answers_and_no_damage(end: int) -> None:
    """F20."""
    scan = scan_segment(RAW[:end])
    names = found(scan)
    assert names == KEYS[: len(names)]
    assert not scan.is_damaged and scan.lost == ()
    flushed = len(HEAD)
    for number, group in enumerate(GROUP_BYTES, start=1):
        flushed += len(group)
        if flushed <= end:
            assert len(names) >= 3 * number, "a flushed group is there"


@given(st.integers(0, len(RAW) - 1), st.integers(1, 255))
@settings(deadline=None)
def test_any_changed_byte_costs_at_most_one_answer_and_it_is_named(place: int, change: int) -> None:
    """F20."""
    raw = bytearray(RAW)
    raw[place] ^= change
    scan = scan_segment(bytes(raw))
    missing = [key for key in KEYS if key not in found(scan)]
    assert list(scan.lost) == missing and len(missing) <= 1
    assert scan.is_damaged == (place < len(RAW) - len(encode_group(KEYS[6:])))


@given(st.integers(0, len(RAW)), st.integers(1, 3000))
@settings(deadline=None)
def test_a_hole_of_zeros_costs_what_it_covers_and_no_more(start: int, length: int) -> None:
    end = min(len(RAW), start + length)
    raw = RAW[:start] + bytes(end - start) + RAW[end:]
    scan = scan_segment(raw)
    position = len(HEAD)
    for group, blob in zip(GROUPS, GROUP_BYTES, strict=True):
        if start >= position + len(blob) or end <= position:
            assert {row.key for row in group} <= set(found(scan)), "a group beside the hole is whole"
        elif end <= position + len(blob) - len(encode_group([row.key for row in group])):
            lost = {row.key for row in group} - set(found(scan))
            assert lost <= set(scan.lost), "what the hole took is named"
        position += len(blob)


@given(st.binary(max_size=600))
@settings(deadline=None)
def test_any_bytes_are_a_segment_of_nothing(raw: bytes) -> None:
    assert found(scan_segment(raw)) == []


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.floats(0, 1e6))
@settings(deadline=None)
def test_any_text_and_cost_survive(text: str, cost: float) -> None:
    row = replace(make_row(1), completion=text, reasoning=text, usage=text, flags=(text,), cost_usd=cost)
    reject = replace(make_reject(2), reason=text, usage=text, cost_usd=cost)
    raw = encode_record(row) + encode_record(reject)
    back, rejected = (decode_record(frame, raw) for frame in scan_segment(raw).frames)
    assert isinstance(back, TeacherRow) and same_row(back, row)
    assert isinstance(rejected, Reject) and rejected == reject
