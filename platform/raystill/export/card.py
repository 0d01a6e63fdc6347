"""The model card: what the student is, what it was made from, how good it is, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from raystill.config.schema import Config
from raystill.config.signal_source import resolve_signal_source
from raystill.config.student_init import resolve_student_init
from raystill.export.verdict import Verification
from raystill.run.manifest import Manifest, fingerprint_of


@dataclass(frozen=True)
class CardFacts:
    """What the card says. `results` is the evaluation's `results.json` as data."""

    config: Config
    architecture: str
    parameters: int
    dtype: str
    results: Mapping[str, Any]
    manifests: Mapping[str, Manifest]
    verification: Verification


def render_card(facts: CardFacts) -> str:
    """The card as Markdown with a YAML header."""
    sections = [
        _header(facts),
        f"# {_title(facts.config)}\n\n{_summary(facts)}",
        f"## Evaluation\n\n{_evaluation(facts.results)}",
        f"## How it was made\n\n{_method(facts)}",
        f"## Use\n\n{_usage(facts)}",
        f"## Limits\n\n{_limits(facts)}",
        f"## Reproduce\n\n{_reproduce(facts)}",
    ]
    return "\n\n".join(sections) + "\n"


def public_name(name: str) -> str:
    """A hub id as it is; of a path only its last part, because a card leaves the machine."""
    is_path = name.startswith(("/", "./", "../", "~")) or name.count("/") != 1 or Path(name).exists()
    return Path(name).name if is_path else name


def _title(config: Config) -> str:
    return config.student.repo.rpartition("/")[2] if config.student.repo else config.run.name


def _header(facts: CardFacts) -> str:
    header: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "raystill", "synthetic"],
    }
    base = facts.config.student.base_model_name
    if base and public_name(base) == base:
        header["base_model"] = base
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---"


def _summary(facts: CardFacts) -> str:
    base = facts.config.student.base_model_name
    how = "cut from" if resolve_student_init(facts.config.student) == "shrink" else "started from"
    origin = f"{how} `{public_name(base)}`" if base else "started from fresh weights"
    return (
        f"A {facts.architecture} student of {facts.parameters:,} parameters ({facts.dtype}), {origin} "
        f"and trained on the outputs of the teacher `{_teacher(facts)}` with raystill."
    )


def _teacher(facts: CardFacts) -> str:
    config = facts.config
    generated = facts.manifests.get("generate")
    if config.teacher.base.from_store is not None and generated is not None:
        return public_name(str(generated.metrics["teacher"]))
    if config.teacher.open is not None:
        model = config.teacher.open.model
        return public_name(model.name) + (f"@{model.revision}" if model.revision else "")
    return config.teacher.closed.model.name if config.teacher.closed else "unknown"


def _evaluation(results: Mapping[str, Any]) -> str:
    lines = [
        f"{results['num_prompts']} held-out prompts that no stage trained on, greedy completions, 95 % "
        "intervals. KL is KL(teacher || model) in nats per token of the teacher's completions.",
        "",
        "| model | parameters | exact match | KL to teacher | top-1 agreement |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        is_teacher = row["key"] == "teacher"
        parameters = f"{row['parameters']:,}" if row["parameters"] else "n/a"
        kl = "0" if is_teacher else _nats(row["kl_to_teacher"])
        top1 = "100 %" if is_teacher else _percent(row["top1_agreement"])
        lines.append(f"| {row['label']} | {parameters} | {_percent(row['exact_match'])} | {kl} | {top1} |")
    lines += ["", *_gap_lines(results)]
    return "\n".join(lines)


def _gap_lines(results: Mapping[str, Any]) -> list[str]:
    labels = {row["key"]: row["label"] for row in results["rows"]}
    lines = []
    for gap in results["gap_closed"]:
        metric = gap["metric"].replace("_", " ")
        share = _percent(gap["estimate"]) if gap["estimate"] else f"n/a ({gap['reason']})"
        lines.append(
            f"- Gap to the teacher closed in {metric}, {labels.get(gap['row'], gap['row'])}: {share}"
        )
    return lines


def _nats(estimate: Mapping[str, Any] | None) -> str:
    return "n/a" if estimate is None else f"{estimate['value']:.4f}"


def _percent(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None:
        return "n/a"
    low, high = (
        "unbounded" if bound is None else f"{100 * bound:.1f}"
        for bound in (estimate["low"], estimate["high"])
    )
    return f"{100 * estimate['value']:.1f} % ({low} to {high})"


def _signal(config: Config) -> str:
    """What the KD term knows about the teacher, in words."""
    if resolve_signal_source(config) != "store":
        return "the distributions of a teacher in memory"
    kind = config.teacher.signals.kind
    if kind != "topk":
        draws = f"{config.teacher.signals.num_draws} draws per token from the teacher's distribution"
        return draws if kind == "sampled" else "the distributions of the teacher's stored hidden states"
    k = config.losses.num_logprobs or config.teacher.signals.num_logprobs
    rest = {
        "bucket": "what is left of the mass is one more outcome",
        "renormalised": "scaled to a mass of 1",
        "dropped": "what is left of the mass is ignored",
    }
    return f"the teacher's {k} best logprobs per token; {rest[config.losses.tail]}"


def _method(facts: CardFacts) -> str:
    config = facts.config
    lines = []
    for stage in ("prepare", "generate", "score"):
        manifest = facts.manifests.get(stage)
        if manifest is not None and manifest.counts:
            counts = ", ".join(
                f"{name.replace('_', ' ')} {value:,}" for name, value in manifest.counts.items()
            )
            lines.append(f"- {stage}: {counts}")
    if config.train.sft is not None:
        lines.append("- sft: cross entropy on the teacher's completions (sequence-level distillation)")
    if config.train.distillation is not None:
        lines.append(f"- distill: {config.losses.divergence} on {_signal(config)}")
    is_asked = config.teacher.base.from_store is None
    sampling = config.teacher.open.pipeline if config.teacher.open and is_asked else None
    if sampling is not None:
        drawn = (
            f"temperature {sampling.temperature}, top-p {sampling.top_p}, top-k {sampling.top_k}"
            if sampling.do_sample
            else "greedy"
        )
        lines.append(f"- the teacher's completions: {drawn}, at most {sampling.max_new_tokens} tokens")
    return "\n".join(lines)


def _usage(facts: CardFacts) -> str:
    proof = facts.verification
    state = (
        f"Verified with {proof.engine}: {proof.reason}."
        if proof.verified
        else f"Not verified: {proof.reason}."
    )
    place = f'("{facts.config.student.repo}")' if facts.config.student.repo else ""
    return (
        f"Loads in transformers (`AutoModelForCausalLM.from_pretrained{place}`) and in vLLM. Render prompts "
        f"with the chat template that comes with the tokenizer. {state}"
    )


def _limits(facts: CardFacts) -> str:
    tasks = ", ".join(f"{count} {task}" for task, count in facts.results["num_prompts_by_task"].items())
    return (
        f"Trained and evaluated on one distribution of prompts ({tasks} held out); nothing is known about "
        "others. What the teacher got wrong, the student was taught. No licence is claimed: the terms of "
        "the teacher, of the base model and of the prompts apply, and some teachers' terms restrict training "
        "on their outputs."
    )


def _reproduce(facts: CardFacts) -> str:
    versions = ", ".join(
        f"{name} {version}" for name, version in sorted(facts.manifests["evaluate"].packages.items())
    )
    digest = fingerprint_of(facts.config.model_dump(mode="json"))
    return (
        "The run's `resolved.yaml` holds every setting:\n\n```\nraystill run --config resolved.yaml\n```\n\n"
        f"Configuration sha256 `{digest}`; raystill {facts.manifests['evaluate'].code_version}; {versions}."
    )
