"""`raystill generate`, and its --preview: a few completions before the whole job."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from raystill.cli.arguments import (
    AcceptNewData,
    ConfigFiles,
    Debug,
    DryRun,
    Fresh,
    Json,
    Overrides,
    load_from_options,
)
from raystill.cli.environment import quiet_libraries
from raystill.cli.run_commands import STAGE_HELP, run_steps
from raystill.cli.terminal import RESULTS, human_seconds, print_json

if TYPE_CHECKING:
    from raystill.config.loaded import LoadedConfig
    from raystill.teacher.preview import Estimate, Preview, Sample

_EXCERPT = 2000
PreviewRows = Annotated[
    int | None,
    typer.Option(
        "--preview", metavar="N", min=1, help="Complete N prompts, show and store them, project the rest."
    ),
]


def generate(
    config: ConfigFiles = None,
    overrides: Overrides = None,
    preview: PreviewRows = None,
    fresh: Fresh = False,
    accept_new_data: AcceptNewData = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    loaded = load_from_options(config, overrides)
    if preview is None or dry_run:
        run_steps("generate", loaded, None, fresh, dry_run, as_json, accept_new_data=accept_new_data)
    else:
        _show_preview(loaded, preview, as_json)


generate.__doc__ = STAGE_HELP["generate"]


def _show_preview(loaded: LoadedConfig, number: int, as_json: bool) -> None:
    quiet_libraries()
    from raystill.cli.progress import TerminalObserver
    from raystill.pipeline import preview_generation

    found = preview_generation(loaded, number, observer=TerminalObserver())
    if as_json:
        print_json(asdict(found))
        return
    for position, sample in enumerate(found.samples, 1):
        _print_sample(sample, f"{position}/{len(found.samples)}")
    _print_projection(found)


def _print_sample(sample: Sample, position: str) -> None:
    RESULTS.print(Text(f"\n[{position}] {sample.prompt_id}", style="bold"))
    if sample.reject is not None:
        RESULTS.print(Text(f"rejected: {sample.reject}", style="yellow"))
        return
    for name, text in (
        ("prompt", sample.prompt),
        ("reasoning", sample.reasoning),
        ("completion", sample.completion),
    ):
        if text:
            RESULTS.print(Text.assemble((f"{name}: ", "dim"), _shortened(text)))
    cost = f", ${sample.cost_usd:.6f}" if sample.cost_usd else ""
    flags = f", {', '.join(sample.flags)}" if sample.flags else ""
    RESULTS.print(
        Text(
            f"{sample.prompt_tokens:,} + {sample.completion_tokens:,} tokens, {human_seconds(sample.seconds)}"
            f"{cost}, ended by {sample.finish_reason}{flags}",
            style="dim",
        )
    )


def _print_projection(found: Preview) -> None:
    left = found.left
    RESULTS.print()
    lines = [
        ("stored", f"{len(found.samples):,} samples; the whole job goes on from them"),
        ("left", f"{left.requests:,} of {found.num_requests:,} requests"),
        ("tokens", _with_margin(left.completion_tokens, left.completion_tokens_margin, "{:,.0f}")),
    ]
    if left.cost_usd:
        lines.append(("cost", "$" + _with_margin(left.cost_usd, left.cost_usd_margin, "{:,.4f}")))
    lines.append(("time", _projected_time(left)))
    for name, text in lines:
        RESULTS.print(f"{name:<12} {text}", markup=False)


def _projected_time(left: Estimate) -> str:
    if left.seconds is None:
        return "?"
    return f"at most {human_seconds(left.seconds)} (at the speed of these few; full batches are faster)"


def _with_margin(value: float, margin: float | None, shape: str) -> str:
    if margin is None:
        return f"about {shape.format(value)}"
    return f"{shape.format(value)} ± {shape.format(margin)} (95 %)"


def _shortened(text: str) -> str:
    """The beginning of a text; what a model writes must not steer the terminal."""
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text[:_EXCERPT])
    return shown if len(text) <= _EXCERPT else f"{shown} ... ({len(text):,} characters)"
