"""The vLLM engine: token ids in, token ids and flat logprobs out, rows (not batches) in flight."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raystill.config.schema import Config
from raystill.errors import EnvironmentFault
from raystill.store.records import Int32Array, TopKSignal
from raystill.teacher.engine import FinishReason, Generation, GenerationRequest, ScoreRequest
from raystill.teacher.errors import EngineDiedError, EngineRowError
from raystill.teacher.flat_logprobs import generated_signal, prompt_signal
from raystill.teacher.orphan_guard import GuardedProcesses, guard_children, list_children
from raystill.teacher.pool import engine_range
from raystill.teacher.preflight import EngineFacts, require_open_teacher

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput
    from vllm.sampling_params import SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

_FINISH_REASONS: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
# Rows beyond max_num_seqs wait inside the engine, so that a finished row is replaced in the very next step.
_QUEUED_SHARE = 1.1
_CPU_STEP_TOKENS = 4096
# Prompt logprobs hold float32 logits of every token of a step at once, unseen by vLLM's memory profiling.
_SCORING_LOGITS_BYTES = 2**30
# On a CPU vLLM takes two processes for an engine of one worker, to bind its threads, which is left to the
# system here. They wait for each other spinning, on cores that the frontend needs: with two cores one
# process writes a fifth more tokens per second, and starts ten seconds sooner.
_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


@dataclass(frozen=True)
class VllmSettings:
    """What `AsyncEngineArgs` needs beyond fixed values; see `vllm_settings`."""

    arguments: dict[str, Any]
    stop_token_ids: tuple[int, ...]
    context_length: int
    rows_in_flight: int
    cpu_threads: int | None


def vllm_settings(
    config: Config,
    facts: EngineFacts,
    stop_token_ids: tuple[int, ...],
    *,
    num_logprobs: int,
    scoring: bool,
    structured_outputs: bool = False,
) -> VllmSettings:
    """Engine arguments from the configuration. `scoring` engines bound the tokens of a step, not the rows.

    `structured_outputs` loads the tokenizer as well: grammars are made of its tokens.
    """
    teacher = require_open_teacher(config)
    vllm = config.teacher.vllm
    max_num_seqs, batched_tokens = _batch_limits(config, facts, scoring=scoring)
    arguments: dict[str, Any] = {
        "model": str(facts.files.directory),
        "skip_tokenizer_init": not structured_outputs,
        "generation_config": "vllm",
        "dtype": facts.dtype,
        "max_model_len": facts.context_length,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": batched_tokens,
        "max_logprobs": max(1, num_logprobs),
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": teacher.pipeline.use_cache and not scoring,
        "enforce_eager": vllm.enforce_eager,
        "tensor_parallel_size": vllm.tensor_parallel_size,
        "trust_remote_code": teacher.model.trust_remote_code,
        "disable_log_stats": True,
    }
    if facts.device == "cuda":
        arguments["gpu_memory_utilization"] = vllm.gpu_memory_utilization
    else:
        arguments["kv_cache_memory_bytes"] = int(vllm.kv_cache_gib * 2**30)
        if vllm.tensor_parallel_size == 1:
            arguments["distributed_executor_backend"] = _ONE_PROCESS
        if not scoring:
            # vLLM 0.32 on a CPU dies of a prompt that is cut into chunks while its row has a seed ("CPU
            # Generator does not use offset"): a step takes whole prompts.
            arguments["enable_chunked_prefill"] = False
            arguments["max_num_batched_tokens"] = max(
                batched_tokens or _CPU_STEP_TOKENS, facts.context_length
            )
    # One core is left to the frontend and its workers: threads that wait for a stolen core spin.
    threads = max(1, (_usable_cores() - 1) // engine_range(vllm)[1]) if facts.device == "cpu" else None
    in_flight = rows_in_flight(config, facts, scoring=scoring)
    return VllmSettings(arguments, stop_token_ids, facts.context_length, in_flight, threads)


def rows_in_flight(config: Config, facts: EngineFacts, *, scoring: bool) -> int:
    """Rows that keep an engine with this configuration busy: `batch_size`, or a few more than it decodes."""
    max_num_seqs, _ = _batch_limits(config, facts, scoring=scoring)
    return require_open_teacher(config).pipeline.batch_size or math.ceil(_QUEUED_SHARE * max_num_seqs)


def _batch_limits(config: Config, facts: EngineFacts, *, scoring: bool) -> tuple[int, int | None]:
    vllm = config.teacher.vllm
    if not scoring:
        return vllm.max_num_seqs, vllm.max_num_batched_tokens
    bound = _SCORING_LOGITS_BYTES // (4 * max(1, facts.files.vocab_size))
    batched_tokens = max(256, min(vllm.max_num_batched_tokens or 2048, bound, 2048))
    return min(vllm.max_num_seqs, batched_tokens), batched_tokens


class VllmEngine:
    """`TeacherEngine` on vLLM's AsyncLLM. Build it inside the event loop that will call it."""

    def __init__(self, settings: VllmSettings) -> None:
        """Start the engine process and load the model (tens of seconds).

        Raises EnvironmentFault when vLLM can't start with these settings on this machine.
        """
        _export_environment(settings)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._settings = settings
        before = list_children()
        try:
            arguments = AsyncEngineArgs(**settings.arguments)
            self._engine: AsyncLLM = AsyncLLM.from_engine_args(arguments)
        except (RuntimeError, ValueError) as error:
            raise EnvironmentFault(
                f"vLLM could not start the teacher: {_first_line(error)}",
                where=str(settings.arguments["model"]),
                fix="logs/ray of the run has the cause; where memory is short, lower "
                "teacher.vllm.max_model_len, kv_cache_gib or gpu_memory_utilization",
            ) from error
        self._processes: GuardedProcesses | None = guard_children(list_children() - before)
        # The engine's objects live as long as the process: the collector need not look at them again.
        gc.collect()
        gc.freeze()

    @property
    def rows_in_flight(self) -> int:
        """Rows that keep the engine's batch full."""
        return self._settings.rows_in_flight

    async def generate(self, request: GenerationRequest) -> Generation:
        """Complete one prompt. Raises EngineRowError for this row, EngineDiedError for the engine."""
        self._require_room(request.prompt_token_ids)
        started = time.monotonic()
        params = self._generation_params(request)
        output = await self._run(request.key, request.prompt_token_ids.tolist(), params)
        completion = output.outputs[0]
        reason = _FINISH_REASONS.get(completion.finish_reason)
        if reason is None:
            raise EngineRowError("engine_aborted", f"vLLM ended the row with {completion.finish_reason!r}")
        ids = np.asarray(completion.token_ids, dtype=np.int32)
        signal = None
        if request.num_logprobs:
            assert completion.logprobs is not None
            signal = generated_signal(completion.logprobs, len(ids), request.num_logprobs)
        return Generation(request.key, ids, reason, signal, time.monotonic() - started)

    async def score(self, request: ScoreRequest) -> TopKSignal:
        """Teacher-force one completion. Raises EngineRowError or EngineDiedError as `generate` does.

        The last token is not fed but forced as the one generated token: raw logprobs are taken before any
        mask, and a text that fills the whole context still fits.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        ids = [*request.prompt_token_ids.tolist(), *request.completion_token_ids.tolist()]
        num_prompt, num_tokens = len(request.prompt_token_ids), len(request.completion_token_ids)
        if len(ids) > self._settings.context_length:
            raise EngineRowError("too_long", f"{len(ids)} tokens, context {self._settings.context_length}")
        params = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            allowed_token_ids=[ids[-1]],
            logprobs=request.num_logprobs,
            prompt_logprobs=request.num_logprobs,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._run(request.key, ids[:-1], params)
        completion = output.outputs[0]
        if completion.logprobs is None or output.prompt_logprobs is None or len(completion.token_ids) != 1:
            raise EngineRowError("engine_aborted", f"vLLM ended the row with {completion.finish_reason!r}")
        last = generated_signal(completion.logprobs, 1, request.num_logprobs)
        if num_tokens == 1:
            return last
        forced = prompt_signal(output.prompt_logprobs, num_prompt, num_tokens - 1, request.num_logprobs)
        return _join(forced, last)

    def shutdown(self) -> None:
        """End the engine process and its workers; harmless when called twice."""
        if self._processes is None:
            return
        # Asked politely, the engine process takes five seconds and is then killed anyway; it holds no state.
        self._processes.kill()
        self._processes = None
        self._engine.shutdown(timeout=0.0)
        # Its destructor would run when the interpreter is half gone, and complain.
        del self._engine

    def _require_room(self, prompt_token_ids: Int32Array) -> None:
        if len(prompt_token_ids) >= self._settings.context_length:
            raise EngineRowError(
                "prompt_too_long",
                f"{len(prompt_token_ids)} prompt tokens leave no room in a context of "
                f"{self._settings.context_length}",
            )
        if len(prompt_token_ids) == 0:
            raise EngineRowError("prompt_empty", "the prompt has no tokens")

    def _generation_params(self, request: GenerationRequest) -> SamplingParams:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        sampling = request.sampling
        schema = sampling.json_schema
        greedy = sampling.temperature == 0.0
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=1.0 if greedy else sampling.top_p,
            top_k=0 if greedy else sampling.top_k,
            seed=None if greedy else request.seed,
            max_tokens=sampling.max_new_tokens,
            # The stop tokens are ours alone: vLLM would add those of config.json, other engines would not.
            ignore_eos=True,
            stop_token_ids=list(self._settings.stop_token_ids),
            logprobs=request.num_logprobs or None,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            structured_outputs=None if schema is None else StructuredOutputsParams(json=schema),
            # Preparing a grammar changes the parameters; only then they must be the request's own.
            skip_clone=schema is None,
        )

    async def _run(self, key: str, prompt_token_ids: list[int], params: SamplingParams) -> RequestOutput:
        from vllm.exceptions import VLLMClientError
        from vllm.inputs.engine import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        final: RequestOutput | None = None
        try:
            async for output in self._engine.generate(tokens_input(prompt_token_ids), params, key):
                final = output
        except EngineDeadError as error:
            raise EngineDiedError(_first_line(error)) from error
        except VLLMClientError as error:
            raise EngineRowError("engine_refused", _first_line(error)) from error
        if final is None:
            raise EngineRowError("engine_aborted", "vLLM returned nothing for the row")
        return final


def _join(first: TopKSignal, second: TopKSignal) -> TopKSignal:
    return TopKSignal(
        topk_ids_TK=np.concatenate([first.topk_ids_TK, second.topk_ids_TK]),
        topk_logprobs_TK=np.concatenate([first.topk_logprobs_TK, second.topk_logprobs_TK]),
        sampled_logprob_T=np.concatenate([first.sampled_logprob_T, second.sampled_logprob_T]),
        tail_logprob_T=np.concatenate([first.tail_logprob_T, second.tail_logprob_T]),
    )


def _export_environment(settings: VllmSettings) -> None:
    """Settings that vLLM and its child processes read from the environment only."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # The model is on this machine by now; a look-up on the hub could only fail or surprise.
    os.environ["HF_HUB_OFFLINE"] = "1"
    if settings.cpu_threads is not None:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ["OMP_NUM_THREADS"] = str(settings.cpu_threads)
        if settings.arguments["enforce_eager"]:
            # vLLM would still compile how it ranks sampled tokens, when the first logprobs are asked for and
            # again for other batch sizes: 2.6 s in which no row advances.
            os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


def _usable_cores() -> int:
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
