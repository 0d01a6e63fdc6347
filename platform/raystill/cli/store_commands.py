"""`raystill store`: look into a teacher store, repair it, make it compact, exchange it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raystill.cli.arguments import ConfigFiles, Debug, Json, Overrides, load_from_options
from raystill.cli.batch_lines import print_batches
from raystill.cli.store_formats_commands import export_answers, import_answers
from raystill.cli.terminal import RESULTS, human_bytes, print_json
from raystill.errors import DataError, Problem

if TYPE_CHECKING:
    from raystill.store.verify import Damage

MAX_SHOWN_KEYS = 5
store_app = typer.Typer(no_args_is_help=True, help="Look into a teacher store.")
store_app.command("import")(import_answers)
store_app.command("export")(export_answers)
Quarantine = Annotated[
    bool, typer.Option("--quarantine", help="Set damaged parts aside, so that generate and score redo them.")
]
StorePath = Annotated[
    Path | None, typer.Argument(metavar="[STORE]", help="Store directory; unset: the one of --config.")
]
RowsPerPart = Annotated[int, typer.Option("--rows-per-part", min=1, help="Most rows of a merged part.")]
LeftStore = Annotated[Path, typer.Argument(metavar="A", help="Store directory.")]
RightStore = Annotated[Path, typer.Argument(metavar="B", help="Store directory to compare it with.")]
Codes = Annotated[
    list[str] | None, typer.Option("--code", help="Only rejects with this code; may be repeated.")
]


@store_app.command()
def stats(
    store: StorePath = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Count rows, tokens, signals and rejects, from the files themselves."""
    path = _store_path(store, config, overrides)
    from raystill.store.stats import compute_stats
    from raystill.store.store import load_store
    from raystill.teacher.batch_api.overview import list_live_batches

    found, batches = compute_stats(load_store(path)), list_live_batches(path)
    if as_json:
        print_json({"store": str(path), "batches": [asdict(batch) for batch in batches]} | asdict(found))
        return
    mass = found.captured_mass_mean
    lines = [
        ("store", str(path)),
        ("teacher", f"{found.teacher} ({found.teacher_id})"),
        ("rows", f"{found.num_rows:,} in {found.num_parts:,} parts of {found.num_partitions} partitions"),
        ("splits", _counts(found.splits)),
        ("tokens", f"{found.num_tokens:,} in completions, {found.num_prompt_tokens:,} in prompts"),
        ("signals", f"{found.num_scored:,} rows; logprobs stored per token: {_counts(found.logprob_widths)}"),
        ("top-k mass", "no signals" if mass is None else f"{100 * mass:.2f} % of the probability on average"),
        ("finished by", _counts(found.finish_reasons)),
        ("flags", _counts(found.flags)),
        ("rejects", f"{found.num_rejects:,}; {_counts(found.rejects_by_code)}"),
        ("disk", f"{human_bytes(found.size_bytes)}, {found.bytes_per_token:.1f} bytes per token"),
        ("left over", f"{found.num_uncommitted:,} uncommitted files, {found.num_duplicates:,} duplicates"),
    ]
    for name, text in lines:
        RESULTS.print(f"{name:<12} {text}", markup=False)
    print_batches(batches)


@store_app.command()
def verify(
    store: StorePath = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    quarantine: Quarantine = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Recompute every checksum and count. Exit code 3 if a committed part is damaged, which is then named."""
    path = _store_path(store, config, overrides)
    from raystill.store.verify import verify_store

    report = verify_store(path)
    moved = 0
    if quarantine and not report.ok:
        from raystill.store.repair import quarantine_damaged
        from raystill.store.store import load_store

        moved = len(quarantine_damaged(load_store(path), report))
        report = verify_store(path)
    if not report.ok:
        raise DataError(
            f"{len(report.damaged)} damaged parts",
            where=str(path),
            problems=tuple(_problem(damage) for damage in report.damaged),
        )
    if as_json:
        print_json(asdict(report) | {"ok": True, "num_quarantined": moved})
        return
    if moved:
        RESULTS.print(
            f"{moved:,} damaged parts moved to {path / 'quarantine'}; run generate and score with --fresh: "
            "only what is lost is asked again",
            markup=False,
        )
    RESULTS.print(
        f"verified: {report.num_rows:,} rows, {report.num_scores:,} scores and {report.num_rejects:,} "
        f"rejects in {report.num_parts:,} parts; {report.num_duplicates:,} duplicates, "
        f"{len(report.uncommitted):,} uncommitted files; the answers are those of {report.answered_by}",
        markup=False,
    )


@store_app.command()
def repack(
    store: StorePath = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    rows_per_part: RowsPerPart = 4096,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Merge small parts and drop duplicates. No run may use the store meanwhile; a crash loses nothing."""
    path = _store_path(store, config, overrides)
    from raystill.store.repack import repack_store
    from raystill.store.store import load_store

    done = repack_store(load_store(path), rows_per_part=rows_per_part)
    if as_json:
        print_json({"store": str(path)} | asdict(done))
        return
    RESULTS.print(
        f"repacked: {done.parts_before:,} parts ({human_bytes(done.bytes_before)}) are now "
        f"{done.parts_after:,} ({human_bytes(done.bytes_after)}); {done.dropped:,} duplicates dropped",
        markup=False,
    )


@store_app.command()
def diff(left: LeftStore, right: RightStore, as_json: Json = False, debug: Debug = False) -> None:
    """Compare two stores by key: what only one of them holds, and what differs."""
    from raystill.store.diff import diff_stores
    from raystill.store.store import load_store

    found = diff_stores(load_store(left), load_store(right))
    if as_json:
        print_json(asdict(found) | {"is_equal": found.is_equal})
        return
    for line in found.identity:
        RESULTS.print(f"identity     {line}", markup=False)
    for name, kind in (("rows", found.rows), ("scores", found.scores)):
        RESULTS.print(
            f"{name:<12} {kind.same:,} equal, {kind.different:,} different, "
            f"{kind.only_left:,} only in {left}, {kind.only_right:,} only in {right}",
            markup=False,
        )
        for sort, keys in kind.examples.items():
            if keys:
                RESULTS.print(f"{'':<12} {sort}: {', '.join(keys)}", markup=False)


@store_app.command()
def retry_rejects(
    store: StorePath = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    codes: Codes = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make rejected requests pending again, for the next generate. Attempts and cost go on adding up."""
    path = _store_path(store, config, overrides)
    from raystill.store.rejects import release_rejects
    from raystill.store.store import load_store

    released = release_rejects(load_store(path), codes)
    if as_json:
        print_json({"store": str(path), "released": released})
        return
    RESULTS.print(f"{released:,} rejects are pending again; run raystill generate --fresh", markup=False)


def _store_path(store: Path | None, config: list[Path] | None, overrides: list[str] | None) -> Path:
    if store is not None:
        return store
    from raystill.run.paths import RunPaths

    return RunPaths.from_config(load_from_options(config, overrides).config).store


def _problem(damage: Damage) -> Problem:
    if damage.keys is None:
        lost = "which rows are lost is unknown"
    else:
        more = "" if len(damage.keys) <= MAX_SHOWN_KEYS else ", ..."
        lost = f"{len(damage.keys)} keys are lost: {', '.join(damage.keys[:MAX_SHOWN_KEYS])}{more}"
    return Problem(
        f"{damage.what}; {lost}",
        where=str(damage.part),
        fix="restore the file from a copy, or set damage aside with --quarantine and run generate and score "
        "with --fresh: only what is lost is asked again",
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in sorted(counts.items())) or "none"
