"""Records of a journal segment: how they are written, and what can be read back after a crash or damage.

A segment is a sequence of frames, all numbers little-endian:

    marker  4 bytes  ff 52 53 4a; ff occurs in no UTF-8 text, so an answer can't imitate a frame
    kind    1 byte   HEAD, ROW, REJECT or GROUP
    length  uint32   bytes of the payload
    key    16 bytes  the request key of a row or reject, zeros otherwise
    crc     uint32   CRC-32 (zlib) of the payload
    check   uint32   CRC-32 (zlib) of the 29 bytes before
    payload

HEAD comes first and names the format and the teacher. Every group that was flushed together ends with a
GROUP frame that repeats its keys, so that damage to a record names exactly which answer it costs.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from raystill.errors import DataError
from raystill.store.records import Reject, TeacherRow, TopKSignal

JOURNAL_VERSION = 1
HEAD, ROW, REJECT, GROUP = range(4)
KEY_BYTES = 16
_MARKER = b"\xffRSJ"
_HEADER = struct.Struct("<4sBI16sI")
_CHECK = struct.Struct("<I")
_LENGTH = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECK.size
_NO_KEY = bytes(KEY_BYTES)
_PLAIN_FIELDS = tuple(
    field.name
    for field in fields(TeacherRow)
    if field.name not in {"key", "prompt_token_ids", "completion_token_ids", "signal"}
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame of a segment: its kind, its key as hex, and where its payload lies."""

    kind: int
    key: str
    start: int
    end: int


@dataclass(frozen=True)
class Scan:
    """What a segment holds. `lost` keys were flushed and can't be read; they must be asked again.

    `is_damaged`: something before the last whole frame can't be read. `torn_bytes` follow the last whole
    frame: a group that was never flushed.
    """

    frames: tuple[Frame, ...]
    lost: tuple[str, ...]
    is_damaged: bool
    torn_bytes: int


def encode_frame(kind: int, key: str, payload: bytes) -> bytes:
    """One frame; `key` is "" for HEAD and GROUP."""
    key_bytes = bytes.fromhex(key) if key else _NO_KEY
    header = _HEADER.pack(_MARKER, kind, len(payload), key_bytes, zlib.crc32(payload))
    return b"".join((header, _CHECK.pack(zlib.crc32(header)), payload))


def encode_head(teacher_id: str) -> bytes:
    """The first frame of a segment."""
    facts = {"journal_version": JOURNAL_VERSION, "teacher_id": teacher_id}
    return encode_frame(HEAD, "", json.dumps(facts).encode("ascii"))


def encode_group(keys: list[str]) -> bytes:
    """The last frame of a group."""
    return encode_frame(GROUP, "", b"".join(map(bytes.fromhex, keys)))


def encode_record(record: TeacherRow | Reject) -> bytes:
    """The frame of one answer. Raises DataError for text that is not valid Unicode."""
    if isinstance(record, Reject):
        facts = {name: value for name, value in vars(record).items() if name != "key"}
        return encode_frame(REJECT, record.key, _json_bytes(record.key, facts))
    facts = {name: getattr(record, name) for name in _PLAIN_FIELDS}
    signal = record.signal
    arrays: list[npt.NDArray[Any]] = [
        np.ascontiguousarray(record.prompt_token_ids, "<i4"),
        np.ascontiguousarray(record.completion_token_ids, "<i4"),
    ]
    shape = None if signal is None else list(signal.topk_ids_TK.shape)
    if signal is not None:
        arrays += [
            np.ascontiguousarray(signal.topk_ids_TK, "<i4"),
            np.ascontiguousarray(signal.topk_logprobs_TK, "<f2"),
            np.ascontiguousarray(signal.sampled_logprob_T, "<f4"),
            np.ascontiguousarray(signal.tail_logprob_T, "<f4"),
        ]
    facts["arrays"] = {"prompt": len(arrays[0]), "completion": len(arrays[1]), "signal": shape}
    text = _json_bytes(record.key, facts)
    return encode_frame(
        ROW, record.key, b"".join((_LENGTH.pack(len(text)), text, *(array.tobytes() for array in arrays)))
    )


def decode_record(frame: Frame, raw: bytes) -> TeacherRow | Reject:
    """The answer of a ROW or REJECT frame of `raw`; arrays are read-only views into it."""
    if frame.kind == REJECT:
        return Reject(key=frame.key, **json.loads(raw[frame.start : frame.end]))
    (length,) = _LENGTH.unpack_from(raw, frame.start)
    position = frame.start + _LENGTH.size + length
    facts: dict[str, Any] = json.loads(raw[frame.start + _LENGTH.size : position])
    shapes = facts.pop("arrays")
    facts["flags"] = tuple(facts["flags"])

    def take(kind: str, *shape: int) -> npt.NDArray[Any]:
        nonlocal position
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(raw, kind, count, position).reshape(shape)
        position += array.nbytes
        return array

    prompt, completion = take("<i4", shapes["prompt"]), take("<i4", shapes["completion"])
    signal = None
    if shapes["signal"] is not None:
        T, K = shapes["signal"]
        signal = TopKSignal(take("<i4", T, K), take("<f2", T, K), take("<f4", T), take("<f4", T))
    return TeacherRow(
        key=frame.key, prompt_token_ids=prompt, completion_token_ids=completion, signal=signal, **facts
    )


def scan_segment(raw: bytes) -> Scan:
    """Find every whole frame, whatever the bytes are: never raises."""
    frames: list[Frame] = []
    broken: list[tuple[int, str]] = []  # where, and the key if the header tells it
    offset = 0
    while offset + HEADER_BYTES <= len(raw):
        header = _read_header(raw, offset)
        if header is None:
            broken.append((offset, ""))
            offset = _next_header(raw, offset + 1)
            continue
        kind, length, key, crc = header
        start = offset + HEADER_BYTES
        payload = raw[start : start + length]
        if len(payload) == length and zlib.crc32(payload) == crc:
            frames.append(Frame(kind, key, start, start + length))
            offset = start + length
        else:
            broken.append((offset, key))
            # The length is right, as the header's check is; but a torn write may have lost the bytes between.
            offset = _next_header(raw, start)
    whole_end = frames[-1].end if frames else 0
    damage = [key for where, key in broken if where < whole_end]
    flushed = [key for frame in frames if frame.kind == GROUP for key in _group_keys(raw, frame)]
    present = {frame.key for frame in frames if frame.kind in (ROW, REJECT)}
    lost = dict.fromkeys(key for key in [*flushed, *damage] if key and key not in present)
    return Scan(tuple(frames), tuple(lost), bool(damage or lost), len(raw) - whole_end)


def head_facts(raw: bytes, scan: Scan) -> dict[str, Any]:
    """What HEAD says; {} where it can't be read."""
    for frame in scan.frames[:1]:
        if frame.kind == HEAD:
            facts: dict[str, Any] = json.loads(raw[frame.start : frame.end])
            return facts
    return {}


def _read_header(raw: bytes, offset: int) -> tuple[int, int, str, int] | None:
    """Kind, payload length, key and checksum of the frame at `offset`, or None."""
    if offset + HEADER_BYTES > len(raw):
        return None
    marker, kind, length, key, crc = _HEADER.unpack_from(raw, offset)
    (check,) = _CHECK.unpack_from(raw, offset + _HEADER.size)
    if marker != _MARKER or check != zlib.crc32(raw[offset : offset + _HEADER.size]):
        return None
    return kind, length, key.hex() if kind in (ROW, REJECT) else "", crc


def _next_header(raw: bytes, offset: int) -> int:
    """Where the next frame with a whole header starts, at or after `offset`; the end where there is none."""
    while (offset := raw.find(_MARKER, offset)) >= 0:
        if _read_header(raw, offset) is not None:
            return offset
        offset += 1
    return len(raw)


def _group_keys(raw: bytes, frame: Frame) -> list[str]:
    return [raw[at : at + KEY_BYTES].hex() for at in range(frame.start, frame.end, KEY_BYTES)]


def _json_bytes(key: str, facts: dict[str, Any]) -> bytes:
    try:
        return json.dumps(facts, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"an answer holds text that is not valid Unicode: {error.reason}",
            where=f"key {key}",
            fix="repair the text; a lone surrogate can't be stored as UTF-8",
        ) from error
    except ValueError as error:
        raise DataError("an answer's seconds or cost is not a finite number", where=f"key {key}") from error
