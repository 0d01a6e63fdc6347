"""How much there is to do: rows and tokens, from what is on disk already or counted cheaply."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raystill.cluster.prompt_sample import PromptSample, sample_prompts
from raystill.cluster.stored_answers import BYTES_PER_TOKEN, StoredAnswers, count_answers
from raystill.config.general import PromptSource
from raystill.config.schema import Config
from raystill.run.manifest import Manifest
from raystill.run.paths import RunPaths

_SAMPLE_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Workload:
    """Rows and tokens of a run; None where nothing says. `is_measured`: read from a finished stage.

    `requests` is what the teacher is asked: several samples of a training prompt are several requests.
    """

    rows: int | None
    eval_rows: int | None
    requests: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    is_measured: bool
    notes: tuple[str, ...]

    @property
    def row_tokens(self) -> float | None:
        """Tokens of a training row: prompt and completion."""
        if not self.rows or self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens / self.rows + self.completion_tokens / (self.requests or self.rows)

    @property
    def requested_prompt_tokens(self) -> float | None:
        """Prompt tokens of all requests."""
        if not self.rows or self.prompt_tokens is None:
            return None
        return self.prompt_tokens / self.rows * (self.requests or self.rows)

    @property
    def train_rows(self) -> int | None:
        """Rows that training reads."""
        return None if self.rows is None else self.rows - (self.eval_rows or 0)


def estimate_workload(
    config: Config,
    prepared: Manifest | None,
    generated: Manifest | None,
    answer_tokens: float | None = None,
) -> Workload:
    """Rows and tokens from the manifests of prepare and generate where they exist, else from the sources.

    `answer_tokens` is how long this teacher's answers were in an earlier run.
    """
    notes: list[str] = []
    sample = None if prepared is not None and generated is not None else sample_prompts(config)
    stored = _stored_answers(config, notes) if config.teacher.base.from_store is not None else None
    if prepared is None and config.teacher.base.from_store is not None:
        rows, tokens = (None, None) if stored is None else (stored.rows, stored.prompt_tokens)
        eval_rows = None
    elif prepared is not None:
        rows = prepared.counts.get("kept")
        tokens = prepared.metrics.get("prompt_tokens", {}).get("total")
        eval_rows = prepared.counts.get("eval")
    else:
        rows, tokens = _count_sources(config, notes, sample)
        eval_rows = None
    if eval_rows is None and rows is not None:
        wanted = config.prompts.eval_size
        eval_rows = min(rows, round(rows * config.prompts.eval_fraction) if wanted is None else wanted)
    requests = (
        None if rows is None else rows + (rows - (eval_rows or 0)) * (config.teacher.base.num_samples - 1)
    )
    completion_tokens = generated.counts.get("completion_tokens") if generated is not None else None
    if config.teacher.base.from_store is not None:
        requests = None if stored is None else stored.rows
        completion_tokens = completion_tokens or (None if stored is None else stored.completion_tokens)
    elif completion_tokens is None and rows is not None:
        teacher = config.teacher.closed or config.teacher.open
        longest = teacher.pipeline.max_new_tokens if teacher is not None else None
        if longest is not None and requests is not None:
            each, why = _guess_answer_tokens(longest, answer_tokens, sample)
            completion_tokens = round(requests * each)
            notes.append(why)
    measured = prepared is not None
    return Workload(rows, eval_rows, requests, tokens, completion_tokens, measured, tuple(notes))


def _guess_answer_tokens(
    longest: int, earlier: float | None, sample: PromptSample | None
) -> tuple[float, str]:
    """Tokens of an answer, and what that rests on."""
    if earlier is not None:
        return earlier, f"completions have {earlier:.1f} tokens, as in an earlier run of this teacher"
    if sample is not None and sample.answer_tokens is not None:
        each = min(sample.answer_tokens, longest)
        return each, f"completions are assumed as long as the sources' references ({each:.0f} tokens)"
    return longest // 2, f"completions are assumed to have half of max_new_tokens ({longest // 2} tokens)"


def count_source(source: PromptSource) -> tuple[int | None, int | None]:
    """Rows and bytes of one source without parsing it; None where that isn't possible.

    Lines are counted in files up to 16 MiB and extrapolated from the first 16 MiB of larger ones; Parquet
    says its rows in its footer.
    """
    path = Path(source.path).expanduser()
    if source.format == "python_source" or path.is_dir() or not path.is_file():
        return source.limit, None
    size = path.stat().st_size
    kind = path.suffix.lower() if source.format == "auto" else f".{source.format}"
    if kind == ".parquet":
        rows = _parquet_rows(path)
    else:
        lines = _count_lines(path, size)
        rows = None if lines is None else max(0, lines - (1 if kind == ".csv" else 0))
    if rows and source.limit is not None and source.limit < rows:
        return source.limit, size * source.limit // rows
    return rows, size


def _count_sources(
    config: Config, notes: list[str], sample: PromptSample | None
) -> tuple[int | None, int | None]:
    counted = [(source.path, *_count(source, sample)) for source in config.prompts.sources]
    counted += [
        (item.name, *count_source(PromptSource(path=item.external_local_path)))
        for item in config.datasets
        if item.external_local_path is not None
    ]
    remote = [item.name for item in config.datasets if item.external_local_path is None]
    unknown = [name for name, rows, _ in counted if rows is None] + remote
    if unknown:
        notes.append(f"rows are known after prepare: {', '.join(unknown)}")
    if not counted or unknown:
        return None, None
    rows = sum(count for _, count, _ in counted if count is not None)
    how = "estimated from some files" if sample is not None and sample.counted else "the sources' lines"
    notes.append(f"rows are {how}, before duplicates and bad rows are left out")
    if sample is not None:
        if sample.kept < 1:
            notes.append(f"{1 - sample.kept:.0%} of the prompts are dropped for their length, as in a sample")
            rows = round(rows * sample.kept)
        notes.append(f"prompts have {sample.prompt_tokens:.0f} tokens, as a sample of the sources' rows")
        return rows, round(rows * sample.prompt_tokens)
    sizes = [size for _, _, size in counted]
    tokens = None if None in sizes else sum(size for size in sizes if size is not None) // BYTES_PER_TOKEN
    if tokens is not None:
        notes.append(f"prompt tokens are the sources' bytes / {BYTES_PER_TOKEN}")
    return rows, tokens


def _count(source: PromptSource, sample: PromptSample | None) -> tuple[int | None, int | None]:
    """As `count_source`, and what only a look into some files says."""
    if sample is not None and source.path in sample.counted:
        return sample.counted[source.path], None
    return count_source(source)


def _stored_answers(config: Config, notes: list[str]) -> StoredAnswers | None:
    path = RunPaths.from_config(config).store
    found = count_answers(path)
    if found is None:
        notes.append(f"{path} holds no answers yet")
        return None
    notes.append(
        f"the {found.rows:,} stored answers are those of {found.teacher} ({found.engine}): none is generated"
    )
    if found.is_guessed:
        notes.append(f"tokens of the stored answers are their texts' bytes / {BYTES_PER_TOKEN}")
    return found


def _count_lines(path: Path, size: int) -> int | None:
    lines = read = 0
    last = b"\n"
    try:
        with path.open("rb") as stream:
            while read < _SAMPLE_BYTES and (chunk := stream.read(_CHUNK_BYTES)):
                lines += chunk.count(b"\n")
                read += len(chunk)
                last = chunk[-1:]
    except OSError:
        return None
    if read < size:
        return lines * size // read
    return lines + (last != b"\n")


def _parquet_rows(path: Path) -> int | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowInvalid):
        return None
