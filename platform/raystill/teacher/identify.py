"""Who the teacher is: its files, its chat format, its stop tokens, and the identity of its store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raystill.config.engine import resolve_open_engine
from raystill.config.schema import Config
from raystill.errors import ConfigError
from raystill.store.identity import StoreIdentity
from raystill.teacher.build_engine import EngineBlueprint
from raystill.teacher.preflight import EngineFacts, preflight, require_open_teacher
from raystill.teacher.reasoning import ReasoningMarkers, find_markers
from raystill.text.chat import ChatFormat, load_chat_format
from raystill.text.tokenizer import chat_template_sha256, ensure_pad_token, tokenizer_sha256
from raystill.text.tool_schema import ToolSchema, load_tool_schema


@dataclass(frozen=True)
class KnownTeacher:
    """A teacher that has passed the preflight. Building it reads the weights once, to name them."""

    config: Config
    facts: EngineFacts
    chat: ChatFormat
    identity: StoreIdentity
    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    tool_schema: ToolSchema | None = None
    markers: ReasoningMarkers | None = None

    def blueprint(
        self, *, num_logprobs: int, scoring: bool, structured_outputs: bool = False
    ) -> EngineBlueprint:
        """What workers need to start the engine."""
        return EngineBlueprint(
            config=self.config,
            facts=self.facts,
            stop_token_ids=self.stop_token_ids,
            pad_token_id=self.pad_token_id,
            num_logprobs=num_logprobs,
            scoring=scoring,
            structured_outputs=structured_outputs,
        )


def identify_teacher(config: Config) -> KnownTeacher:
    """Check the teacher and say who it is.

    Raises what `preflight` and `load_chat_format` raise, ConfigError for a stop token that isn't in the
    vocabulary.
    """
    teacher = require_open_teacher(config)
    facts = preflight(config, resolve_open_engine(config))
    files = facts.files
    chat = load_chat_format(
        str(files.directory),
        files.revision or None,
        teacher.model.trust_remote_code,
        teacher.tokenizer.use_fast,
    )
    tools = config.teacher.base.tool_schema
    tool_schema = load_tool_schema(tools) if tools is not None else None
    chat = chat if tool_schema is None else chat.with_tools(tool_schema.tools)
    stops = (*chat.eos_token_ids, *_extra_stop_ids(chat, teacher.tokenizer.additional_special_tokens))
    identity = StoreIdentity(
        teacher=files.directory.name if files.is_local else teacher.model.name,
        revision=files.revision,
        weights_sha256=files.weights_sha256() if files.is_local else "",
        engine=facts.engine,
        dtype=facts.dtype,
        tokenizer_sha256=tokenizer_sha256(chat.tokenizer),
        chat_template_sha256=chat_template_sha256(chat.tokenizer) or "",
        num_logprobs=config.teacher.signals.num_logprobs,
        licence_note=read_licence(files.directory),
    )
    pad = ensure_pad_token(chat.tokenizer, chat.eos_token_ids, eos_would_be_masked=False)
    return KnownTeacher(
        config=config,
        facts=facts,
        chat=chat,
        identity=identity,
        stop_token_ids=tuple(dict.fromkeys(stops)),
        pad_token_id=pad.id,
        tool_schema=tool_schema,
        markers=find_markers(chat),
    )


def captures_signals(config: Config) -> bool:
    """Whether generation keeps the distributions; both local engines have them at hand."""
    signals = config.teacher.signals
    return signals.kind == "topk" and signals.capture != "score" and signals.num_logprobs > 0


def engine_notes(teacher: KnownTeacher) -> list[str]:
    """What runs otherwise than the configuration asks, in words for the user."""
    notes = []
    config, facts = teacher.config, teacher.facts
    asked = require_open_teacher(config).model.revision
    if facts.files.revision and facts.files.revision != asked:
        what = f"revision {asked!r} is not a commit" if asked else "no revision is given"
        notes.append(
            f"{what}, so the teacher may be another one next time; this run uses and records "
            f"{facts.files.revision}: pin it with teacher.open.model.revision"
        )
    if teacher.tool_schema is not None and teacher.tool_schema.tools and not teacher.chat.tools:
        notes.append("the teacher's chat template takes no tools: the prompts themselves must name them")
    if facts.engine == "transformers":
        from raystill.teacher.transformers_engine import available_attention

        model = require_open_teacher(config).model
        _, note = available_attention(model.attn_implementation, facts.device)
        notes += [note] if note else []
        if config.teacher.engine == "auto":
            notes.append(
                "vLLM is not installed here: the transformers engine generates, several times slower"
            )
    return notes


def read_licence(directory: Path) -> str:
    """The `license:` line of the model card's front matter, "" where there is none."""
    card = directory / "README.md"
    if not card.is_file():
        return ""
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return ""
    for line in lines[1:]:
        if line.strip() == "---":
            break
        if line.startswith("license:"):
            return line.partition(":")[2].strip().strip("'\"")
    return ""


def _extra_stop_ids(chat: ChatFormat, tokens: list[str]) -> list[int]:
    vocabulary = chat.tokenizer.get_vocab() if tokens else {}
    for token in tokens:
        if token not in vocabulary:
            raise ConfigError(
                f"the stop token {token!r} is not in the teacher's vocabulary",
                where="teacher.open.tokenizer.additional_special_tokens",
                fix="use a token that its tokenizer has, or leave it out",
            )
    return [int(vocabulary[token]) for token in tokens]
