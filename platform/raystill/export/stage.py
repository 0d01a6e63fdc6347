"""Stage export: the trained student as a directory that other programs load, verified before it appears.

The model directory appears whole or not at all: weights, tokenizer and card are written beside it, vLLM is
asked for proof, and only then it is renamed into place.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError
from raystill.run.manifest import Manifest, installed_packages, load_manifest
from raystill.run.paths import RunPaths, StageName
from raystill.run.publish import publish_directory, sha256_file, write_json
from raystill.run.stage import Stage, StageContext, StageResult

if TYPE_CHECKING:
    from raystill.export.verdict import Verdict, Verification
    from raystill.export.verify import VerificationTask

_MAX_VERIFY_TOKENS = 256
CARD_NAME = "README.md"


def exported_stage(config: Config) -> StageName:
    """The training stage whose model is exported: distillation where there is one, else SFT."""
    return "distill" if config.train.distillation is not None else "sft"


def required_stages(config: Config) -> tuple[StageName, ...]:
    """The model, the prompts that prove it, and the evaluation that its card reports."""
    return ("prepare", exported_stage(config), "evaluate")


def run_export(context: StageContext) -> StageResult:
    """Write, verify and publish the model.

    Raises DataError if vLLM completes a prompt differently, EnvironmentFault if vLLM fails; in each case no
    model directory is left.
    """
    config, paths = context.config, context.paths
    copy_to = _copy_target(config)
    target = paths.model("export")
    with publish_directory(target) as directory:
        verdict = _fill(context, directory)
    write_json(paths.export_verdict, verdict.model_dump(mode="json"))
    if copy_to is not None:
        with publish_directory(copy_to) as directory:
            shutil.copytree(target, directory, dirs_exist_ok=True)
    if config.student.repo is not None:
        context.events.emit("not_uploaded", upload_with=f"hf upload {config.student.repo} {target}")
    files = sorted(path for path in target.rglob("*") if path.is_file())
    proof = verdict.verification
    return StageResult(
        counts={
            "parameters": verdict.parameters,
            "prompts_compared": proof.prompts,
            "prompts_equal": proof.equal,
        },
        metrics={"verified": proof.verified, "reason": proof.reason, "dtype": verdict.dtype},
        files=[*files, paths.export_verdict],
    )


def _fill(context: StageContext, directory: Path) -> Verdict:
    from raystill.export.card import CardFacts, render_card
    from raystill.export.verdict import VERDICT_NAME, Verdict
    from raystill.export.weights import load_source, save_model

    config, paths = context.config, context.paths
    stage = exported_stage(config)
    source = paths.model(stage)
    model, tokenizer = load_source(source, config.export.dtype)
    save_model(model, tokenizer, directory)
    context.events.emit("weights_written", dtype=config.export.dtype)
    verification = _verify(context, model, tokenizer, directory)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    verdict = Verdict(
        source_stage=stage,
        source_sha256=_weight_checksums(source),
        exported_sha256=_weight_checksums(directory),
        dtype=config.export.dtype,
        parameters=parameters,
        packages=installed_packages(),
        verification=verification,
    )
    card = render_card(
        CardFacts(
            config=config,
            architecture=model.config.architectures[0]
            if model.config.architectures
            else model.config.model_type,
            parameters=parameters,
            dtype=config.export.dtype,
            results=_load_results(paths),
            manifests=_load_manifests(paths),
            verification=verification,
        )
    )
    (directory / CARD_NAME).write_text(card, encoding="utf-8")
    write_json(directory / VERDICT_NAME, verdict.model_dump(mode="json"))
    return verdict


def _verify(context: StageContext, model: Any, tokenizer: Any, directory: Path) -> Verification:
    from raystill.export.verdict import Verification
    from raystill.export.verify import unavailable_reason, verify_export

    reason = unavailable_reason(context.config.export.verify_prompts)
    if reason is not None:
        context.events.emit("verification_skipped", reason=reason)
        return Verification(verified=False, reason=reason)
    task = _build_task(context, model, tokenizer)
    context.events.emit("verification_started", prompts=len(task.prompts))
    verification = verify_export(model, directory, task)
    context.events.emit("verified", reason=verification.reason)
    return verification


def _build_task(context: StageContext, model: Any, tokenizer: Any) -> VerificationTask:
    from raystill.export.verify import VerificationTask
    from raystill.export.weights import stop_token_ids
    from raystill.text.chat import ChatFormat
    from raystill.text.prompt_table import load_prompts

    config = context.config
    chat = ChatFormat(tokenizer)
    room = int(model.config.get_text_config().max_position_embeddings)
    prompt_ids: list[str] = []
    prompts: list[list[int]] = []
    for prompt in load_prompts(context.paths.prompt_table, "eval"):
        token_ids = chat.render_prompt_ids(prompt.messages)
        if 0 < len(token_ids) < room and len(prompts) < config.export.verify_prompts:
            prompt_ids.append(prompt.id)
            prompts.append(token_ids)
    if not prompts:
        raise DataError(
            "no held-out prompt fits the student's context, so the export can't be verified",
            where=str(context.paths.prompt_table),
            fix="hold out prompts with prompts.eval_size, or set export.verify_prompts to 0",
        )
    teacher = config.teacher.open
    longest = config.evaluation.max_new_tokens or (teacher.pipeline.max_new_tokens if teacher else 0)
    return VerificationTask(
        prompt_ids=prompt_ids,
        prompts=prompts,
        max_new_tokens=min(longest or _MAX_VERIFY_TOKENS, _MAX_VERIFY_TOKENS),
        eos_ids=stop_token_ids(model, tokenizer),
        dtype=config.export.dtype,
        context=room,
        kv_cache_gib=config.teacher.vllm.kv_cache_gib,
        gpu_memory_utilization=config.teacher.vllm.gpu_memory_utilization,
        log=context.paths.export_check_log,
    )


def _copy_target(config: Config) -> Path | None:
    return Path(config.student.save_path).expanduser() if config.student.save_path else None


def validate_copy_target(config: Config, paths: RunPaths) -> None:
    """Raise ConfigError if student.save_path holds anything but an earlier export."""
    from raystill.export.verdict import VERDICT_NAME

    directory = _copy_target(config)
    if directory is None or not directory.exists() or (directory / VERDICT_NAME).is_file():
        return
    if not directory.is_dir() or any(directory.iterdir()):
        raise ConfigError(
            "student.save_path holds files that are not an earlier export's; they are left as they are",
            where=str(directory),
            fix="choose an empty or new directory",
        )


def _weight_checksums(directory: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(directory.glob("*.safetensors"))}


def _load_results(paths: RunPaths) -> dict[str, Any]:
    try:
        results: dict[str, Any] = json.loads(paths.evaluation_results.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            "the evaluation's results can't be read",
            where=str(paths.evaluation_results),
            fix="raystill evaluate --fresh",
        ) from error
    return results


def _load_manifests(paths: RunPaths) -> dict[str, Manifest]:
    names: tuple[StageName, ...] = ("prepare", "generate", "score", "sft", "distill", "evaluate")
    found = {name: load_manifest(paths.stage_dir(name)) for name in names}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


STAGE = Stage(
    name="export",
    config_keys=(
        "export.dtype",
        "export.verify_prompts",
        "student.save_path",
        "student.repo",
        "evaluation.max_new_tokens",
        "teacher.open.pipeline.max_new_tokens",
    ),
    inputs=required_stages,
    body=run_export,
    loads_models=True,
    preflight=validate_copy_target,
    foresee=validate_copy_target,
)
