"""The prompts and the models: shapes and lengths of rows, rendering, EOS, and an endpoint's settings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from raystill.cluster.findings import Findings
from raystill.config.schema import Config
from raystill.errors import ConfigError, DataError
from raystill.run.paths import RunPaths

if TYPE_CHECKING:
    from raystill.prompts.shapes import RawPrompt
    from raystill.text.chat import ChatFormat

_LOOKED_AT = 200
_EXAMPLE_ANSWER = "This is where the teacher's completion stands."


@dataclass(frozen=True)
class TokenView:
    """A training example, token by token: text, id, and whether it carries loss."""

    texts: list[str]
    token_ids: list[int]
    loss_mask: list[int]

    def to_json(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {"texts": self.texts, "token_ids": self.token_ids, "loss_mask": self.loss_mask}


def check_data(config: Config, findings: Findings) -> list[RawPrompt]:
    """Look at the first rows of every source; returns prompts to render.

    Nothing is written. Rows that can't be read are named with the reason, up to prompts.max_bad_rows.
    """
    from raystill.prompts.rows import BadRow
    from raystill.prompts.shapes import iter_prompts
    from raystill.prompts.sources import check_source, iter_rows, list_sources

    if config.teacher.base.from_store is not None:
        findings.good("data", f"prompts and answers come from the store {config.teacher.base.from_store}")
        return []
    taken: list[RawPrompt] = []
    sources = []
    with findings.catching("data"):
        sources = list_sources(config)
    for index, source in enumerate(sources):
        with findings.catching("data"):
            check_source(source, RunPaths.from_config(config).root)
            rows = list(islice(iter_prompts(source, index, iter_rows(source)), _LOOKED_AT))
            bad = [row for row in rows if isinstance(row, BadRow)]
            good = [row for row in rows if not isinstance(row, BadRow)]
            if len(bad) > config.prompts.max_bad_rows:
                raise DataError(
                    f"{len(bad)} of the first {len(rows)} rows can't be used; the first: {bad[0]}",
                    where=source.path,
                    fix="repair them, or let so many be rejected: prompts.max_bad_rows",
                )
            if not good:
                raise DataError("there is no row", where=source.path, fix="name a file that holds prompts")
            taken += good
            kinds = ", ".join(sorted({row.task for row in good}))
            findings.good(
                "data", f"{source.path}: {len(good)} of {len(rows)} rows looked at are prompts ({kinds})"
            )
    return taken


def check_lengths(config: Config, prompts: list[RawPrompt], chat: ChatFormat, findings: Findings) -> None:
    """Prompt lengths in the teacher's tokens, against every limit that they meet."""
    if not prompts:
        return
    lengths = sorted(len(chat.render_prompt_ids(prompt.messages)) for prompt in prompts)
    longest, middle = lengths[-1], lengths[len(lengths) // 2]
    findings.good("data", f"prompts have {middle} tokens in the middle and {longest} at most")
    limit = config.teacher.base.prompt_length
    if limit is not None and longest > limit:
        over = sum(length > limit for length in lengths)
        findings.warn(
            "data",
            f"{over} of {len(lengths)} rendered prompts have more than teacher.base.prompt_length ({limit})",
            where="prompts.over_length",
            fix="raise it, or choose keep, drop or error",
        )
    teacher = config.teacher.closed or config.teacher.open
    room = config.training.max_seq_len
    needed = middle + (teacher.pipeline.max_new_tokens if teacher is not None else 0)
    if (config.train.sft or config.train.distillation) and longest >= room:
        raise DataError(
            f"prompts of up to {longest} tokens leave no room for a completion: max_seq_len is {room}",
            where="training.max_seq_len",
            fix=f"set it to at least {longest + needed - middle}",
        )
    if (config.train.sft or config.train.distillation) and needed > room:
        findings.warn(
            "data",
            f"a usual prompt and the longest completion have {needed} tokens, training.max_seq_len is {room}",
            where="training.max_seq_len",
            fix="longer rows are left out and counted; raise it to keep them",
        )


def check_teacher(config: Config, findings: Findings) -> ChatFormat | None:
    """An open teacher's tokenizer and template; None where there is none."""
    from raystill.text.chat import load_chat_format

    teacher = config.teacher.open
    if teacher is None:
        return None
    chat = load_chat_format(teacher.model.name, teacher.model.revision)
    ends = ", ".join(str(token) for token in chat.tokenizer.convert_ids_to_tokens(list(chat.eos_token_ids)))
    findings.good("templates", f"the teacher's template renders; completions end with {ends}")
    return chat


def check_student(config: Config, teacher: ChatFormat | None, findings: Findings) -> ChatFormat | None:
    """The trained model's tokenizer beside the teacher's: equal ids where signals need them, equal EOS."""
    from raystill.text.tokenizer import compare_tokenizers
    from raystill.train.build import load_student_chat

    if config.train.sft is None and config.train.distillation is None:
        return None
    stage: Any = "sft" if config.train.sft is not None else "distill"
    chat = load_student_chat(config, RunPaths.from_config(config), stage)
    if teacher is None:
        return chat
    compared = compare_tokenizers(teacher.tokenizer, chat.tokenizer)
    if compared.compatible:
        findings.good("templates", f"teacher and student tokenizers: {compared.describe()}")
    elif config.train.distillation is not None:
        findings.warn(
            "templates",
            f"the student's tokenizer is another one: {compared.describe()}",
            where="student.tokenizer",
            fix="signals are mapped by what tokens spell where they can be; the teacher's own loses nothing",
        )
    missing = set(teacher.eos_token_ids) - set(chat.eos_token_ids)
    if compared.compatible and missing:
        names = ", ".join(str(token) for token in teacher.tokenizer.convert_ids_to_tokens(sorted(missing)))
        raise ConfigError(
            f"the teacher may end a completion with {names}, which does not end the student's",
            where="student.tokenizer",
            fix="list it as eos_token_id in the student's generation_config.json",
        )
    if compared.compatible and teacher.turn_end_id != chat.turn_end_id:
        findings.warn(
            "templates",
            "teacher and student end a turn with different tokens",
            where="student.tokenizer",
            fix="give the student the teacher's chat template: served, its answers would end otherwise",
        )
    return chat


def view_example(chat: ChatFormat, prompt: RawPrompt) -> TokenView:
    """A row as training sees it, with its reference (or a stand-in) as the completion."""
    example = chat.training_example(prompt.messages, prompt.reference or _EXAMPLE_ANSWER)
    texts = [chat.decode([token_id], skip_special_tokens=False) for token_id in example.input_ids]
    return TokenView(texts, example.input_ids, example.loss_mask)
