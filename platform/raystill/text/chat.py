"""One renderer for the teacher, for training and for evaluation: messages in, token ids out.

A prompt is rendered by the tokenizer's own chat template (in transformers' sandbox) and tokenised without
adding special tokens, because the template already writes them. A training example is the prompt's ids, then
the completion's, then the token that ends the assistant's turn: exactly what a serving engine would have seen
and sampled, so the prompt is a prefix of the example by construction.

Shape letters: T tokens of one example.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from raystill.errors import ConfigError, DataError
from raystill.text.tokenizer import is_local_name, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]

_PROBE: tuple[Message, ...] = ({"role": "user", "content": "What is two plus two?"},)
_PROBE_COMPLETION = "It is four."


def load_chat_format(
    name_or_path: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    use_fast: bool = True,
) -> ChatFormat:
    """Load a tokenizer with the EOS list of its model's generation_config, and check its chat template.

    Raises what `load_tokenizer` and `ChatFormat.validate` raise.
    """
    tokenizer = load_tokenizer(name_or_path, revision, trust_remote_code, use_fast)
    chat = ChatFormat(tokenizer, generation_eos_token_ids(name_or_path, revision))
    chat.validate()
    return chat


def generation_eos_token_ids(name_or_path: str, revision: str | None = None) -> tuple[int, ...]:
    """The EOS ids that a model's generation_config.json lists; empty where it has none.

    Raises DataError if the file is there but unreadable.
    """
    path: str | None
    if is_local_name(name_or_path):
        path = str(Path(name_or_path).expanduser() / "generation_config.json")
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name_or_path, "generation_config.json", revision=revision)
        path = cached if isinstance(cached, str) else None
    if path is None or not Path(path).is_file():
        return ()
    try:
        listed = json.loads(Path(path).read_text(encoding="utf-8")).get("eos_token_id")
        return (
            ()
            if listed is None
            else tuple(int(i) for i in (listed if isinstance(listed, list) else [listed]))
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            "generation_config.json can't be read", where=path, fix="copy or download the model again"
        ) from error


class TrainingExample(NamedTuple):
    """`input_ids` (T) and `loss_mask` (T): 1 on the completion and its EOS, 0 on the prompt."""

    input_ids: list[int]
    loss_mask: list[int]


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer and its chat template. `extra_eos_token_ids` come from the model's generation config;
    `tools` (OpenAI format) are offered in every prompt, see `with_tools`.

    Construction raises ConfigError if the tokenizer has no chat template.
    """

    tokenizer: PreTrainedTokenizerBase
    extra_eos_token_ids: tuple[int, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise ConfigError(
                "the tokenizer has no chat template, so messages can't become a prompt",
                where=f"tokenizer {self.tokenizer.name_or_path}",
                fix="use the model's instruction-tuned variant, or put a chat_template.jinja beside it",
            )

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> ChatFormat:
        """This format with `tools` offered in its prompts; the format itself where its template ignores them.

        Raises DataError if the template refuses the tools.
        """
        offering = replace(self, tools=tuple(tools))
        return offering if offering.render_text(_PROBE) != self.render_text(_PROBE) else self

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion: the tokenizer's EOS first, then the generation config's."""
        own = self.tokenizer.eos_token_id
        listed = ([] if own is None else [int(own)]) + [int(index) for index in self.extra_eos_token_ids]
        return tuple(dict.fromkeys(listed))

    @cached_property
    def turn_end_id(self) -> int:
        """The EOS id that the template puts after an assistant turn; the tokenizer's EOS where it puts none.

        Raises ConfigError if there is no EOS at all.
        """
        for token_id in self._after_completion():
            if token_id in self.eos_token_ids:
                return token_id
        if not self.eos_token_ids:
            raise ConfigError(
                "the tokenizer has no EOS token, so a student could never learn to stop",
                where=f"tokenizer {self.tokenizer.name_or_path}",
                fix="set eos_token in its tokenizer_config.json",
            )
        return self.eos_token_ids[0]

    def render_text(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The prompt as text. Raises DataError if the template refuses these messages."""
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[dict(tool) for tool in self.tools] or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"the chat template refuses these messages (roles: {roles}): {error}",
                where=f"tokenizer {self.tokenizer.name_or_path}",
                fix="bring the messages into the order that the model's template asks for",
            ) from error
        return text

    def render_prompt_ids(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Token ids (T) of a prompt, ending with the assistant's header if `add_generation_prompt`."""
        return self.encode(self.render_text(messages, add_generation_prompt))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, adding no special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def encode_completion(self, text: str) -> list[int]:
        """Ids of a completion's text, in which the spelling of a special token is just characters."""
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, verbose=False
        )["input_ids"]
        return ids

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each rendered text, tokenised as one batch."""
        if not texts:
            return []
        batch: Any = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [len(ids) for ids in batch["input_ids"]]

    def decode(
        self, token_ids: Sequence[int], skip_special_tokens: bool = True, clean_up: bool = False
    ) -> str:
        """Text of a completion's ids."""
        text: str = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=clean_up
        )
        return text

    def training_example(self, messages: Sequence[Message], completion: str) -> TrainingExample:
        """The example for a completion that is only known as text; its last token is the EOS, with loss."""
        prompt_ids = self.render_prompt_ids(messages)
        completion_ids = [*self.encode_completion(completion), self.turn_end_id]
        return TrainingExample(
            input_ids=prompt_ids + completion_ids,
            loss_mask=[0] * len(prompt_ids) + [1] * len(completion_ids),
        )

    def template_problems(self) -> list[str]:
        """What is wrong with the template, each with the tokens that show it; empty if nothing is.

        Looks for a doubled BOS, and for an assistant turn that ends without an EOS.
        """
        problems = []
        prompt_ids = self.render_prompt_ids(_PROBE)
        bos = self.tokenizer.bos_token_id
        if bos is not None and prompt_ids[:2] == [bos, bos]:
            problems.append(
                f"the chat template writes BOS twice: {self._show(prompt_ids[:4])}, "
                f"where {self._show(prompt_ids[1:4])} is right"
            )
        after = self._after_completion()
        if not any(token_id in self.eos_token_ids for token_id in after):
            eos = self._show(self.eos_token_ids) or "none"
            problems.append(
                f"the chat template ends an assistant turn with {self._show(after) or 'nothing'}, "
                f"not with an EOS ({eos})"
            )
        return problems

    def validate(self) -> None:
        """Raise ConfigError with every template problem, shown in tokens."""
        problems = self.template_problems()
        if problems:
            raise ConfigError(
                "; ".join(problems),
                where=f"tokenizer {self.tokenizer.name_or_path}",
                fix="correct its chat template, or list the token that ends a turn in generation_config.json "
                "(eos_token_id)",
            )

    def _after_completion(self) -> list[int]:
        turn = [*_PROBE, {"role": "assistant", "content": _PROBE_COMPLETION}]
        text = self.render_text(turn, add_generation_prompt=False)
        _, found, rest = text.rpartition(_PROBE_COMPLETION)
        return self.encode(rest) if found else []

    def _show(self, token_ids: Sequence[int]) -> str:
        return " ".join(str(token) for token in self.tokenizer.convert_ids_to_tokens(list(token_ids)))
