"""Combinations of values that can't both be meant: found at load, before anything is paid for.

Each check yields problems that name every path involved, and where each was given. What only a machine or a
file can tell (no GPU, a model too long for its context) is found by the stages' own preflights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import isclose

from raystill.config.answer_contradictions import find_answer_problems
from raystill.config.checkpoint_contradictions import find_checkpoint_contradictions
from raystill.config.curate_contradictions import find_curation_problems
from raystill.config.curriculum_contradictions import find_curriculum_problems
from raystill.config.engine import resolve_engine, resolve_open_engine
from raystill.config.grade_contradictions import find_grading_problems
from raystill.config.loaded import LoadedConfig
from raystill.config.losses import largest
from raystill.config.model_contradictions import find_model_contradictions
from raystill.config.signal_contradictions import find_tier_contradictions
from raystill.config.source_contradictions import find_source_contradictions
from raystill.config.storage_contradictions import find_object_storage
from raystill.config.student_init import (
    ARCHITECTURE_KEYS,
    given_architecture_keys,
    resolve_max_positions,
    resolve_student_init,
)
from raystill.config.tune_contradictions import find_tune_problems
from raystill.config.worker_range import worker_range
from raystill.errors import Problem

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOCAL_PREFIXES = ("/", "./", "../", "~")
_DISTILL = "train.distillation"
_KD = f"{_DISTILL}.knowledgedistillation"
_OPEN = "teacher.open"

# Keys that one engine alone can honour, with the reason.
_TRANSFORMERS_ONLY = {
    f"{_OPEN}.tokenizer.padding_side": "vLLM takes rows of token ids and never pads",
    f"{_OPEN}.tokenizer.padding": "vLLM takes rows of token ids and never pads",
    f"{_OPEN}.model.attn_implementation": "vLLM has its own attention",
}
_VLLM_ONLY = "teacher.vllm"
_SCHEMA_ENGINES = ("vllm", "openai")


def find_contradictions(loaded: LoadedConfig) -> list[Problem]:
    """Every contradiction in `loaded`, in the order of the checks."""
    return [problem for check in _CHECKS for problem in check(loaded)]


def _teacher_choice(loaded: LoadedConfig) -> Iterator[Problem]:
    teacher = loaded.config.teacher
    if teacher.engine == "openai" and teacher.closed is None:
        yield Problem(
            "teacher.engine is openai, and there is no teacher.closed",
            loaded.where("teacher.engine", "teacher.closed"),
            "set teacher.closed.model.name, or another engine",
        )
    elif teacher.engine not in ("auto", "openai") and teacher.closed is not None and teacher.open is None:
        yield Problem(
            f"teacher.engine is {teacher.engine}, which runs open weights, and teacher.closed is given",
            loaded.where("teacher.engine", "teacher.closed"),
            "set teacher.engine: openai, or describe the model under teacher.open",
        )
    elif teacher.engine in ("vllm", "transformers") and teacher.open is None:
        yield Problem(
            f"teacher.engine is {teacher.engine}, and there is no teacher.open",
            loaded.where("teacher.engine", "teacher.open"),
            "set teacher.open.model.name",
        )


def _engine_keys(loaded: LoadedConfig) -> Iterator[Problem]:
    engine = resolve_open_engine(loaded.config)
    picked = f"teacher.engine is {loaded.config.teacher.engine}"
    if loaded.config.teacher.engine == "auto":
        picked += f", which is {engine} on this machine"
    if engine == "vllm" and loaded.config.teacher.open is not None:
        for path, reason in _TRANSFORMERS_ONLY.items():
            if loaded.is_changed(path):
                yield Problem(
                    f"`{path}` has no effect: {picked}; {reason}",
                    loaded.where(path, "teacher.engine"),
                    "remove the key, or set teacher.engine: transformers",
                )
    teacher = loaded.config.teacher.open
    if engine == "transformers" and teacher is not None:
        tokenizer = teacher.tokenizer
        if tokenizer.padding_side == "right" and tokenizer.padding:
            yield Problem(
                f"`{_OPEN}.tokenizer.padding_side: right` would pad between a prompt and its completion",
                loaded.where(f"{_OPEN}.tokenizer.padding_side", f"{_OPEN}.tokenizer.padding"),
                "set it to left, or padding: false to run rows one by one",
            )
    # With `auto` the block acts wherever vLLM is installed, so one file serves both kinds of machine.
    teachers = loaded.config.teacher
    scores = teachers.closed is not None and teachers.open is not None
    idle = teachers.engine == "transformers" or (teachers.engine == "openai" and not scores)
    if idle and loaded.is_changed(_VLLM_ONLY):
        yield Problem(
            f"`{_VLLM_ONLY}` has no effect: {picked}",
            loaded.where(_VLLM_ONLY, "teacher.engine"),
            "remove the block, or set teacher.engine: vllm (or auto)",
        )


def _sampling(loaded: LoadedConfig) -> Iterator[Problem]:
    teacher = loaded.config.teacher
    if teacher.open is None:
        return
    path = f"{_OPEN}.pipeline"
    pipeline = teacher.open.pipeline
    if pipeline.do_sample and pipeline.temperature == 0:
        yield Problem(
            f"`{path}.do_sample` is true and `{path}.temperature` is 0: temperature 0 draws nothing",
            loaded.where(f"{path}.do_sample", f"{path}.temperature"),
            "set do_sample: false for greedy decoding, or a temperature above 0",
        )
    context = teacher.vllm.max_model_len
    if context is not None and pipeline.max_new_tokens >= context:
        yield Problem(
            f"`{path}.max_new_tokens` ({pipeline.max_new_tokens}) leaves no room for a prompt in "
            f"`teacher.vllm.max_model_len` ({context})",
            loaded.where(f"{path}.max_new_tokens", "teacher.vllm.max_model_len"),
            "raise max_model_len, or lower max_new_tokens",
        )


def _samples(loaded: LoadedConfig) -> Iterator[Problem]:
    teacher = loaded.config.teacher
    number = teacher.base.num_samples
    if number == 1:
        return
    greedy = []
    if teacher.open is not None and teacher.closed is None:
        pipeline = teacher.open.pipeline
        greedy = [f"{_OPEN}.pipeline.do_sample"] if not pipeline.do_sample else []
        greedy += [f"{_OPEN}.pipeline.temperature"] if pipeline.temperature == 0 else []
    elif teacher.closed is not None and teacher.closed.pipeline.temperature == 0:
        greedy = ["teacher.closed.pipeline.temperature"]
    if greedy:
        yield Problem(
            f"`teacher.base.num_samples` is {number} and decoding is greedy: all samples would be the same",
            loaded.where("teacher.base.num_samples", *greedy),
            "set num_samples: 1, or do_sample: true with a temperature above 0",
        )


def _tool_schema(loaded: LoadedConfig) -> Iterator[Problem]:
    base, engine = loaded.config.teacher.base, resolve_engine(loaded.config)
    if base.tool_schema is None or base.from_store is not None or engine in _SCHEMA_ENGINES:
        return
    yield Problem(
        f"`teacher.base.tool_schema` forces completions into a schema, which the {engine} engine can't do",
        loaded.where("teacher.base.tool_schema", "teacher.engine"),
        "use vLLM or a closed teacher, or remove the key and let curate drop calls that don't fit",
    )


def _engine_pool(loaded: LoadedConfig) -> Iterator[Problem]:
    engines = loaded.config.teacher.vllm.num_engines
    if isinstance(engines, list) and engines[0] > engines[1]:
        yield Problem(
            f"`teacher.vllm.num_engines` is {engines}: the least is more than the most",
            loaded.where("teacher.vllm.num_engines"),
            f"write [{engines[1]}, {engines[0]}]",
        )


def _elastic_workers(loaded: LoadedConfig) -> Iterator[Problem]:
    least, most = worker_range(loaded.config.training)
    if least > most:
        yield Problem(
            f"`training.num_workers` is [{least}, {most}]: the least is more than the most",
            loaded.where("training.num_workers"),
            f"write [{most}, {least}]",
        )
    if least < most and loaded.config.cluster.training_labels:
        yield Problem(
            "`training.num_workers` is a range, for which Ray counts nodes of every kind, and "
            "`cluster.training_labels` wants some kind of them: it would try for workers that have no node",
            loaded.where("training.num_workers", "cluster.training_labels"),
            "give one number of workers, or remove the labels",
        )


def _remote_code(loaded: LoadedConfig) -> Iterator[Problem]:
    teacher = loaded.config.teacher
    if teacher.open is None or not teacher.open.model.trust_remote_code:
        return
    model = teacher.open.model
    if model.name.startswith(_LOCAL_PREFIXES) or _COMMIT.fullmatch(model.revision or ""):
        return
    given = f"is {model.revision!r}, not a commit" if model.revision else "is not set"
    yield Problem(
        f"`{_OPEN}.model.trust_remote_code` is true and `{_OPEN}.model.revision` {given}: "
        "whatever the repository holds tomorrow would run on this machine",
        loaded.where(f"{_OPEN}.model.trust_remote_code", f"{_OPEN}.model.revision"),
        "read the code, then pin revision to the commit (40 hex digits) that you read; or set it to false",
    )


def _number_types(loaded: LoadedConfig) -> Iterator[Problem]:
    train = loaded.config.train
    stages = [
        ("train.sft", "bfloat16", train.sft and train.sft.bfloat16, train.sft and train.sft.fp16),
        (_DISTILL, "bf16", train.distillation and train.distillation.bf16,
         train.distillation and train.distillation.fp16),
    ]  # fmt: skip
    for path, name, bfloat16, fp16 in stages:
        if bfloat16 and fp16:
            yield Problem(
                f"`{path}.{name}` and `{path}.fp16` are both true; a step computes in one of them",
                loaded.where(f"{path}.{name}", f"{path}.fp16"),
                "keep bfloat16 on Ampere or later, fp16 on older GPUs, neither on a CPU",
            )
        if fp16 and loaded.config.device.type == "cpu":
            yield Problem(
                f"`{path}.fp16` is true and `device.type` is cpu; float16 with loss scaling needs CUDA",
                loaded.where(f"{path}.fp16", "device.type"),
                f"set {path}.fp16: false, or device.type: cuda",
            )


def _adapters(loaded: LoadedConfig) -> Iterator[Problem]:
    assistant, sft = loaded.config.assistant, loaded.config.train.sft
    if assistant is None or sft is None or assistant.quantization is None:
        return
    if assistant.quantization.load_in_4bit and sft.peft.lora is None and assistant.lora is None:
        yield Problem(
            "`assistant.quantization.load_in_4bit` is true and `train.sft.peft.lora` is not given: "
            "4-bit weights can't be trained, only adapters on them",
            loaded.where("assistant.quantization.load_in_4bit", "train.sft.peft.lora"),
            "add train.sft.peft.lora (or assistant.lora), or set load_in_4bit: false",
        )


def _student(loaded: LoadedConfig) -> Iterator[Problem]:
    student = loaded.config.student
    init = resolve_student_init(student)
    given = given_architecture_keys(student)
    missing = [f"student.{key}" for key in ARCHITECTURE_KEYS if key not in given]
    if init in ("fresh", "shrink") and missing:
        reason = (
            "`student.init` is"
            if student.init != "auto"
            else "architecture keys are given, so the student is"
        )
        yield Problem(
            f"{reason} {init}, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not given",
            loaded.where("student.init", *(f"student.{key}" for key in given), *missing),
            "give all four, or start from a checkpoint with student.base_model_name",
        )
    if init in ("base", "shrink") and student.base_model_name is None:
        yield Problem(
            f"`student.init` is {init}, and `student.base_model_name` is not given",
            loaded.where("student.init", "student.base_model_name"),
            "set student.base_model_name, or student.init: fresh with architecture keys",
        )
    if init in ("fresh", "shrink") and not missing:
        yield from _student_shape(loaded)
    if student.adapter is not None and student.base_model_name is None:
        yield Problem(
            "`student.adapter` is given, and there is no base that it belongs to",
            loaded.where("student.adapter", "student.base_model_name"),
            "set student.base_model_name to the model that the adapter was trained on",
        )
    longest, positions = loaded.config.training.max_seq_len, resolve_max_positions(student)
    if positions is not None and longest > positions:
        yield Problem(
            f"`training.max_seq_len` ({longest}) is longer than `student.max_position_embeddings` "
            f"({positions})",
            loaded.where("training.max_seq_len", "student.max_position_embeddings"),
            f"set training.max_seq_len: {positions}, or more positions",
        )


def _student_shape(loaded: LoadedConfig) -> Iterator[Problem]:
    student = loaded.config.student
    width, heads = student.hidden_size or 0, student.num_attention_heads or 1
    groups = student.num_key_value_heads or heads
    if student.head_dim is not None and student.head_dim % 2:
        yield Problem(
            f"`student.head_dim` ({student.head_dim}) is odd; rotary positions turn pairs",
            loaded.where("student.head_dim"),
            f"set it to {student.head_dim + 1}",
        )
    if width % heads:
        yield Problem(
            f"`student.hidden_size` ({width}) can't be divided by `student.num_attention_heads` ({heads})",
            loaded.where("student.hidden_size", "student.num_attention_heads"),
            f"make hidden_size a multiple of {heads}; {heads * max(2, round(width / heads / 2) * 2)} is near",
        )
    elif student.head_dim is None and (width // heads) % 2:
        yield Problem(
            f"`student.hidden_size` / `student.num_attention_heads` is {width // heads}, an odd head size; "
            "rotary positions turn pairs",
            loaded.where("student.hidden_size", "student.num_attention_heads"),
            f"make hidden_size a multiple of {2 * heads}",
        )
    if heads % groups:
        divisors = [number for number in range(1, heads + 1) if heads % number == 0]
        yield Problem(
            f"`student.num_attention_heads` ({heads}) can't be divided by "
            f"`student.num_key_value_heads` ({groups})",
            loaded.where("student.num_attention_heads", "student.num_key_value_heads"),
            f"choose num_key_value_heads from {', '.join(str(n) for n in divisors)}",
        )


def _distillation_start(loaded: LoadedConfig) -> Iterator[Problem]:
    config = loaded.config
    if config.train.distillation is None or config.train.distillation.init != "sft":
        return
    if config.train.sft is None:
        yield Problem(
            f"`{_DISTILL}.init` is sft, and there is no `train.sft`",
            loaded.where(f"{_DISTILL}.init", "train.sft"),
            f"add train.sft, or set {_DISTILL}.init: student",
        )
    elif config.assistant is not None:
        yield Problem(
            f"`{_DISTILL}.init` is sft, and SFT trains the `assistant`, not the student",
            loaded.where(f"{_DISTILL}.init", "assistant"),
            f"set {_DISTILL}.init: student, or remove the assistant",
        )


def _kd_terms(loaded: LoadedConfig) -> Iterator[Problem]:
    losses, distillation = loaded.config.losses, loaded.config.train.distillation
    if distillation is None:
        return
    kd = distillation.knowledgedistillation
    if kd.loss.reduction in ("sum", "none"):
        yield Problem(
            f"`{_KD}.loss.reduction` is {kd.loss.reduction}: the step size would depend on the batch",
            loaded.where(f"{_KD}.loss.reduction"),
            "set batchmean: the mean over completion tokens",
        )
    if losses.kl_weight is None or losses.ce_weight is None or not loaded.is_changed(f"{_KD}.weight"):
        return
    kl, ce = largest(losses.kl_weight), largest(losses.ce_weight)
    if not (isclose(kl, kd.weight) and isclose(ce, 1.0 - kd.weight)):
        yield Problem(
            f"`{_KD}.weight` {kd.weight:g} means KL {kd.weight:g} and CE {1 - kd.weight:g}; `losses` says KL "
            f"{kl:g} and CE {ce:g}",
            loaded.where(f"{_KD}.weight", "losses.kl_weight", "losses.ce_weight"),
            f"keep one of the two: remove {_KD}.weight, or the weights under losses",
        )


def _split(loaded: LoadedConfig) -> Iterator[Problem]:
    prompts = loaded.config.prompts
    if prompts.eval_size is not None and loaded.is_changed("prompts.eval_fraction"):
        yield Problem(
            "`prompts.eval_size` and `prompts.eval_fraction` are both given",
            loaded.where("prompts.eval_size", "prompts.eval_fraction"),
            "keep one",
        )


_CHECKS: tuple[Callable[[LoadedConfig], Iterator[Problem]], ...] = (
    _teacher_choice,
    _engine_keys,
    _sampling,
    _samples,
    _tool_schema,
    _engine_pool,
    _elastic_workers,
    find_answer_problems,
    _remote_code,
    _number_types,
    _adapters,
    find_model_contradictions,
    _student,
    _distillation_start,
    _kd_terms,
    find_source_contradictions,
    find_curriculum_problems,
    find_tier_contradictions,
    find_object_storage,
    find_checkpoint_contradictions,
    _split,
    find_curation_problems,
    find_grading_problems,
    find_tune_problems,
)
