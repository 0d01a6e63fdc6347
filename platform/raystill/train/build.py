"""Building the model of a training stage from the configuration: base, fresh, after SFT, with LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raystill.config.models import StudentSection
from raystill.config.schema import Config
from raystill.config.student_init import ARCHITECTURE_KEYS, resolve_student_init
from raystill.config.training import LoraSection
from raystill.errors import ConfigError, DataError, RemoteError
from raystill.run.paths import RunPaths
from raystill.text.chat import ChatFormat, load_chat_format
from raystill.text.tokenizer import ensure_pad_token, is_local_name
from raystill.text.tool_schema import offer_tools
from raystill.train.settings import TrainSettings, TrainStageName, starts_from_sft, trained_model
from raystill.train.student import Student, validate_head

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def load_student_chat(config: Config, paths: RunPaths, stage: TrainStageName) -> ChatFormat:
    """The tokenizer and chat template of the model that the stage trains.

    The SFT model's where distill starts from it; else the assistant's; else `student.tokenizer`, the base
    model's or the teacher's. Offers the tools that the teacher was offered, where its template takes tools.
    Raises ConfigError if none of them is given.
    """
    return offer_tools(_own_chat(config, paths, stage), config.teacher.base.tool_schema)


def _own_chat(config: Config, paths: RunPaths, stage: TrainStageName) -> ChatFormat:
    if stage == "distill" and starts_from_sft(config):
        return load_chat_format(str(paths.model("sft").resolve()))
    if trained_model(config, stage) == "assistant":
        assert config.assistant is not None
        return load_chat_format(config.assistant.model.name)
    student = config.student
    own = student.tokenizer or student.base_model_name
    if own is not None:
        return load_chat_format(own)
    if config.teacher.open is None:
        raise ConfigError(
            "a fresh student of a closed teacher needs a tokenizer",
            where="student.tokenizer",
            fix="set it to a directory with tokenizer.json, or set student.base_model_name",
        )
    model = config.teacher.open.model
    return load_chat_format(
        model.name, model.revision, model.trust_remote_code, config.teacher.open.tokenizer.use_fast
    )


def build_model(
    config: Config,
    paths: RunPaths,
    settings: TrainSettings,
    chat: ChatFormat,
    device: torch.device,
    notes: list[str],
) -> Any:
    """The transformers model that a stage starts from: float32 weights on `device`.

    `notes` gets what the user should hear about. Raises ConfigError for contradictory keys, DataError or
    RemoteError for a base that can't be loaded.
    """
    torch.manual_seed(settings.seed)
    attention = _attention(config, settings.stage, device, notes)
    model = _load_or_make(config, paths, settings.stage, chat, attention)
    _set_special_tokens(model, chat, notes)
    return model.to(device)


def build_student(model: Any, settings: TrainSettings) -> Student:
    """`model` ready to train, in full or with LoRA. Raises ConfigError if it can't train as asked."""
    torch.manual_seed(settings.seed)
    network = model if settings.lora is None else attach_lora(model, settings.lora, settings)
    network.train()
    student = Student(model, network)
    validate_head(student)
    return student


def _load_or_make(
    config: Config, paths: RunPaths, stage: TrainStageName, chat: ChatFormat, attention: str
) -> Any:
    if stage == "distill" and starts_from_sft(config):
        return load_causal_lm(str(paths.model("sft").resolve()), attention)
    if trained_model(config, stage) == "assistant":
        assert config.assistant is not None
        model = config.assistant.model
        return load_causal_lm(model.name, attention, save_path=model.save_path)
    if starts_from_base(config.student):
        assert config.student.base_model_name is not None
        model = load_causal_lm(config.student.base_model_name, attention)
        _refuse_other_architecture(config.student, model.config)
        return model
    return build_fresh(config.student, chat, attention)


def starts_from_base(student: StudentSection) -> bool:
    """Whether the student starts from base weights. Raises ConfigError where the keys describe no student."""
    init = resolve_student_init(student)
    if init == "shrink":
        raise ConfigError(
            "shrinking a base model to the architecture keys is not supported yet",
            where="student.init",
            fix="set it to base for the base's own size, or to fresh for new weights of the keys' size",
        )
    if init is None or (init == "base" and student.base_model_name is None):
        raise ConfigError(
            "the student is not described",
            where="student",
            fix="set student.base_model_name, or the architecture keys for a fresh one: "
            + ", ".join(ARCHITECTURE_KEYS),
        )
    return init == "base"


def load_causal_lm(name: str, attention: str, save_path: str | None = None) -> Any:
    """A checkpoint in float32.

    Raises DataError for pickle weights and unreadable files, RemoteError for a hub id that can't be fetched.
    """
    from transformers import AutoModelForCausalLM

    source = str(Path(name).expanduser()) if is_local_name(name) else name
    try:
        return AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            cache_dir=save_path,
        )
    except (OSError, ValueError) as error:
        raise _unloadable(name, error) from error


def _unloadable(name: str, error: Exception) -> DataError | RemoteError:
    first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
    if not is_local_name(name):
        return RemoteError(
            f"the model can't be fetched: {first_line}",
            where=name,
            fix="check the spelling and the network, or give the path of a local copy",
        )
    directory = Path(name).expanduser()
    if any(directory.glob(f"*{suffix}") for suffix in _PICKLE_SUFFIXES) and not any(
        directory.glob("*.safetensors")
    ):
        pickles = [item.name for item in directory.iterdir() if item.suffix in _PICKLE_SUFFIXES]
        if pickles:
            return DataError(
                f"the model has only pickle weights ({pickles[0]}); loading those can run any code",
                where=name,
                fix="convert them to safetensors on a machine you can throw away, with save_pretrained",
            )
    return DataError(
        f"the model can't be loaded: {first_line}",
        where=name,
        fix="point it at a directory that save_pretrained wrote",
    )


def build_fresh(student: StudentSection, chat: ChatFormat, attention: str) -> Any:
    """New weights of the size that the architecture keys give, from torch's current seed."""
    from transformers import AutoConfig, AutoModelForCausalLM

    missing = [key for key in ARCHITECTURE_KEYS if getattr(student, key) is None]
    if missing:
        raise ConfigError(
            f"a fresh student needs {', '.join(missing)}",
            where=", ".join(f"student.{key}" for key in missing),
            fix="set them, or set student.base_model_name to start from a checkpoint",
        )
    vocab_size = student.vocab_size or len(chat.tokenizer)
    if vocab_size < len(chat.tokenizer):
        raise ConfigError(
            f"student.vocab_size is {vocab_size}, and the tokenizer has {len(chat.tokenizer)} tokens",
            where="student.vocab_size",
            fix="unset it, or give at least the tokenizer's size (more is padding)",
        )
    heads = student.num_attention_heads
    model_config = AutoConfig.for_model(
        student.model_type,
        vocab_size=vocab_size,
        hidden_size=student.hidden_size,
        intermediate_size=student.intermediate_size,
        num_hidden_layers=student.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=student.num_key_value_heads or heads,
        max_position_embeddings=student.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": student.rope_theta},
        initializer_range=student.initializer_range,
        tie_word_embeddings=student.tie_word_embeddings,
        bos_token_id=chat.tokenizer.bos_token_id,
    )
    _refuse_uneven_heads(student)
    return AutoModelForCausalLM.from_config(model_config, dtype=torch.float32, attn_implementation=attention)


def _refuse_uneven_heads(student: StudentSection) -> None:
    hidden, heads = student.hidden_size or 0, student.num_attention_heads or 1
    groups = student.num_key_value_heads or heads
    if hidden % heads or heads % groups or (hidden // heads) % 2:
        raise ConfigError(
            f"width {hidden} over {heads} heads and {groups} key/value heads doesn't come out even",
            where="student.num_attention_heads",
            fix="make hidden_size an even multiple of the heads, and the heads of the key/value heads",
        )


def _refuse_other_architecture(student: StudentSection, base: Any) -> None:
    given = {key: getattr(student, key) for key in (*ARCHITECTURE_KEYS, "num_key_value_heads")}
    text_config = base.get_text_config()
    other = {
        key: f"{value}, the base has {getattr(text_config, key, None)}"
        for key, value in given.items()
        if value is not None and value != getattr(text_config, key, None)
    }
    if other:
        raise ConfigError(
            "the student is to start from a base of another size: "
            + "; ".join(f"{key} is {text}" for key, text in other.items()),
            where=", ".join(f"student.{key}" for key in other),
            fix="unset these keys to train the base as it is, or set student.init to fresh for new weights",
        )


def attach_lora(model: Any, lora: LoraSection, settings: TrainSettings) -> torch.nn.Module:
    """Wrap `model` with LoRA adapters. Raises ConfigError if a named module doesn't exist."""
    from peft import LoraConfig, get_peft_model

    where = "train.sft.peft.lora" if settings.stage == "sft" else "train.distillation.peft.lora"
    linear = sorted(
        {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    )
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    targets = [] if lora.target_modules == "all-linear" else list(lora.target_modules)
    unknown = [name for name in (*targets, *lora.modules_to_save) if name.rsplit(".", 1)[-1] not in names]
    if unknown or "lm_head" in targets:
        what = f"no module is called {', '.join(unknown)}" if unknown else "lm_head can't have an adapter"
        raise ConfigError(
            f"{what}; the model's linear layers are {', '.join(linear)}",
            where=f"{where}.target_modules",
            fix="use all-linear, or names from this list (modules_to_save: also embed_tokens, lm_head)",
        )
    network: torch.nn.Module = get_peft_model(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            lora_dropout=lora.lora_dropout,
            target_modules=targets or "all-linear",
            modules_to_save=lora.modules_to_save or None,
            ensure_weight_tying=bool(lora.modules_to_save and model.config.tie_word_embeddings),
            task_type=lora.task_type,
            bias=lora.bias,
        ),
    )
    return network


def _attention(config: Config, stage: TrainStageName, device: torch.device, notes: list[str]) -> str:
    """The attention implementation; flash_attention_2 falls back to sdpa where it can't run, said once."""
    if trained_model(config, stage) != "assistant" or config.assistant is None:
        return "sdpa"
    wanted = config.assistant.model.attn_implementation
    if wanted != "flash_attention_2":
        return wanted
    from transformers.utils import is_flash_attn_2_available

    if device.type == "cuda" and is_flash_attn_2_available():
        return wanted
    notes.append("flash_attention_2 is not available here; sdpa takes its place")
    return "sdpa"


def _set_special_tokens(model: Any, chat: ChatFormat, notes: list[str]) -> None:
    """Make the model stop where the teacher's completions stop, and pad with something that isn't an EOS."""
    from transformers import GenerationConfig

    end = chat.turn_end_id
    eos_ids = [end, *[token_id for token_id in chat.eos_token_ids if token_id != end]]
    pad = ensure_pad_token(chat.tokenizer, chat.eos_token_ids, eos_would_be_masked=False)
    if pad.note:
        notes.append(pad.note)
    model.config.eos_token_id = eos_ids[0]
    model.config.pad_token_id = pad.id
    model.config.use_cache = True
    model.generation_config = GenerationConfig(
        eos_token_id=eos_ids if len(eos_ids) > 1 else eos_ids[0],
        pad_token_id=pad.id,
        bos_token_id=chat.tokenizer.bos_token_id,
        do_sample=False,
    )
