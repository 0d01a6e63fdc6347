"""From the configuration to a running engine. Runs in the worker that will hold the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from raystill.config.schema import Config
from raystill.errors import ConfigError
from raystill.teacher.device import export_cuda_settings
from raystill.teacher.engine import TeacherEngine
from raystill.teacher.fake_engine import FAKE_ROWS_IN_FLIGHT, FakeEngine
from raystill.teacher.preflight import EngineFacts, require_open_teacher

if TYPE_CHECKING:
    from raystill.teacher.transformers_engine import TransformersSettings

_TRANSFORMERS_BATCH_SIZE = 16


@dataclass(frozen=True)
class EngineBlueprint:
    """Everything a worker needs to build an engine; small, and sent to every worker.

    `stop_token_ids` end a completion; `pad_token_id` fills batches; `scoring` tunes for teacher forcing;
    `structured_outputs` prepares for rows that are forced into a JSON Schema.
    """

    config: Config
    facts: EngineFacts
    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    num_logprobs: int
    scoring: bool
    structured_outputs: bool = False


def expected_rows_in_flight(blueprint: EngineBlueprint) -> int:
    """What the engine's `rows_in_flight` will be, known before it starts."""
    if blueprint.facts.engine == "vllm":
        from raystill.teacher.vllm_engine import rows_in_flight

        return rows_in_flight(blueprint.config, blueprint.facts, scoring=blueprint.scoring)
    if blueprint.facts.engine == "transformers":
        return 2 * _transformers_batch_size(blueprint)
    return _fake_rows_in_flight(blueprint)


def _transformers_batch_size(blueprint: EngineBlueprint) -> int:
    teacher = require_open_teacher(blueprint.config)
    return (teacher.pipeline.batch_size or _TRANSFORMERS_BATCH_SIZE) if teacher.tokenizer.padding else 1


def build_engine(blueprint: EngineBlueprint) -> TeacherEngine:
    """Start the engine; call it inside the event loop that will use it.

    Raises EnvironmentFault where the engine can't start, ConfigError for an engine that doesn't exist yet.
    """
    facts = blueprint.facts
    if facts.device == "cuda":
        export_cuda_settings(blueprint.config)
    if facts.engine == "fake":
        return _build_fake(blueprint)
    if facts.engine == "vllm":
        return _build_vllm(blueprint)
    if facts.engine == "transformers":
        return _build_transformers(blueprint)
    raise ConfigError(f"the engine {facts.engine!r} is not supported yet", where="teacher.engine")


def _fake_rows_in_flight(blueprint: EngineBlueprint) -> int:
    return require_open_teacher(blueprint.config).pipeline.batch_size or FAKE_ROWS_IN_FLIGHT


def _build_fake(blueprint: EngineBlueprint) -> TeacherEngine:
    facts = blueprint.facts
    return FakeEngine(
        facts.files.vocab_size,
        facts.context_length,
        blueprint.stop_token_ids,
        rows_in_flight=_fake_rows_in_flight(blueprint),
    )


def _build_vllm(blueprint: EngineBlueprint) -> TeacherEngine:
    from raystill.teacher.vllm_engine import VllmEngine, vllm_settings

    return VllmEngine(
        vllm_settings(
            blueprint.config,
            blueprint.facts,
            blueprint.stop_token_ids,
            num_logprobs=blueprint.num_logprobs,
            scoring=blueprint.scoring,
            structured_outputs=blueprint.structured_outputs,
        )
    )


def _build_transformers(blueprint: EngineBlueprint) -> TeacherEngine:
    from raystill.teacher.transformers_engine import TransformersEngine

    return TransformersEngine(transformers_settings(blueprint))


def transformers_settings(blueprint: EngineBlueprint) -> TransformersSettings:
    """How the transformers engine loads and batches, from the configuration.

    Raises ConfigError for padding on the right, where generation would go on from it.
    """
    from raystill.teacher.transformers_engine import TransformersSettings, available_attention

    facts, teacher = blueprint.facts, require_open_teacher(blueprint.config)
    if teacher.tokenizer.padding_side == "right" and teacher.tokenizer.padding and not blueprint.scoring:
        raise ConfigError(
            "padding_side: right would put padding between a prompt and its completion",
            where="teacher.open.tokenizer.padding_side",
            fix="set it to left, or teacher.open.tokenizer.padding: false to run rows one by one",
        )
    attention, _ = available_attention(teacher.model.attn_implementation, facts.device)
    return TransformersSettings(
        directory=facts.files.directory,
        device=facts.device,
        dtype=facts.dtype,
        attn_implementation=attention,
        trust_remote_code=teacher.model.trust_remote_code,
        batch_size=_transformers_batch_size(blueprint),
        use_cache=teacher.pipeline.use_cache,
        context_length=facts.context_length,
        stop_token_ids=blueprint.stop_token_ids,
        pad_token_id=blueprint.pad_token_id,
    )
