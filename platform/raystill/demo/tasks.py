"""Verifiable tasks for the demo: pick a tool and fill its arguments, or do short arithmetic in steps.

Everything here is a pure function of a seed. A task is a user message and the one right answer,
so a completion can be checked without a judge:

* ``tool_call``: the answer is a JSON object ``{"name": ..., "arguments": {...}}``. A completion is
  right if it parses to the same object, whatever its whitespace or key order.
* ``exact``: the answer is the worked steps, such as ``3 + 8 = 11, 11 - 2 = 9``. A completion is
  right if it equals the reference once both are stripped.

`slip_answer` makes the plausible mistakes (a wrong digit, another city) that give the demo
teacher something to be unsure about; references never contain one.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

TaskKind = Literal["tool_call", "exact"]

DATA_DIR = Path(__file__).parent / "data"
PROMPTS_PATH = DATA_DIR / "prompts.jsonl"
TOOL_SCHEMA_PATH = DATA_DIR / "tool_schema.json"

PROMPT_COUNT = 3_000
# The prompt file and the teacher's training data come from different seeds; in addition
# `iter_tasks(exclude=...)` keeps any chance repeat of a prompt out of the training data.
PROMPT_SEED = 20_260
EXACT_FRACTION = 0.4

MAX_NUMBER = 999
MAX_OPERAND = 9
_OPERATORS: dict[str, Callable[[int, int], int]] = {"+": int.__add__, "-": int.__sub__}

_POOLS = {
    kind: words.split()
    for kind, words in {
        "name": (
            "Alice Bruno Chloe David Elena Felix Grace Hugo Irene Jonas Karin Liam Maria Nadia Oscar Paula "
            "Quinn Rosa Simon Tara Umar Vera Walter Xenia Yusuf Zoe Anton Bella Carlos Dora Emil Fiona"
        ),
        "city": (
            "Athens Berlin Cairo Dublin Essen Florence Geneva Havana Istanbul Jakarta Kyoto Lisbon Madrid "
            "Nairobi Oslo Paris Quito Rome Seoul Tokyo Utrecht Vienna Warsaw York Zurich Bergen Cork Delhi "
            "Lima Milan Porto Turin"
        ),
        "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    }.items()
}


@dataclass(frozen=True)
class Tool:
    """A tool: what it does, the kind of each argument, and ways to ask for it."""

    description: str
    arguments: Mapping[str, str]
    phrasings: tuple[str, ...]


TOOLS: dict[str, Tool] = {
    "get_weather": Tool(
        "Forecast for a city on a day.",
        {"city": "city", "day": "day"},
        (
            "What is the weather in {city} on {day}?",
            "Will it rain in {city} on {day}?",
            "On {day}, how warm will it be in {city}?",
            "Weather for {city}, {day}, please.",
            "I am in {city} on {day}. Do I need a coat?",
        ),
    ),
    "send_money": Tool(
        "Pay a person an amount in euros.",
        {"to": "name", "amount": "number"},
        (
            "Send {amount} euros to {to}.",
            "Pay {to} {amount} euros.",
            "I owe {to} {amount} euros, please settle it.",
            "Please transfer {amount} to {to}.",
            "{to} should get {amount} euros from me.",
        ),
    ),
    "book_train": Tool(
        "Book a train from one city to another on a day.",
        {"origin": "city", "destination": "city", "day": "day"},
        (
            "Book a train from {origin} to {destination} on {day}.",
            "On {day} I go from {origin} to {destination} by train.",
            "I need a train to {destination} from {origin} on {day}.",
            "Train ticket for {day}, {origin} to {destination}, please.",
            "Get me to {destination} by train on {day}. I leave from {origin}.",
        ),
    ),
    "set_timer": Tool(
        "Start a countdown in minutes.",
        {"minutes": "number"},
        (
            "Set a timer for {minutes} minutes.",
            "Wake me in {minutes} minutes, please.",
            "Start a countdown of {minutes} minutes.",
            "Tell me when {minutes} minutes are over.",
            "In {minutes} minutes I need a signal.",
        ),
    ),
    "schedule_call": Tool(
        "Put a call with a person in the calendar.",
        {"person": "name", "day": "day"},
        (
            "Schedule a call with {person} on {day}.",
            "Remind me to call {person} on {day}.",
            "I want to talk to {person} on {day}.",
            "Put {person} in my calendar for {day}.",
            "On {day} I have a call with {person}, note it.",
        ),
    ),
    "reserve_seats": Tool(
        "Reserve seats in a city under a person's name.",
        {"person": "name", "seats": "number", "city": "city"},
        (
            "Reserve {seats} seats in {city} for {person}.",
            "{person} needs {seats} seats in {city}.",
            "In {city}, keep {seats} seats for {person}, please.",
            "We want {seats} seats under {person} in {city}.",
            "Get {person} {seats} seats in {city}.",
        ),
    ),
}

_EXACT_PHRASINGS = (
    "What is {expression}?",
    "Compute {expression}.",
    "Work out {expression} in steps.",
    "How much is {expression}?",
    "Please solve {expression}.",
    "Calculate {expression}, showing each step.",
)


@dataclass(frozen=True)
class Task:
    """A user message and the one right answer to it."""

    kind: TaskKind
    prompt: str
    reference: str


def _draw_number(rng: random.Random) -> int:
    """A number with one, two or three digits, each length equally likely."""
    digits = rng.randint(1, len(str(MAX_NUMBER)))
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def _draw_value(kind: str, rng: random.Random) -> str | int:
    return _draw_number(rng) if kind == "number" else rng.choice(_POOLS[kind])


def draw_tool_call(rng: random.Random) -> Task:
    """One request that exactly one tool call satisfies."""
    name = rng.choice(list(TOOLS))
    tool = TOOLS[name]
    arguments = {key: _draw_value(kind, rng) for key, kind in tool.arguments.items()}
    while arguments.get("origin", "") == arguments.get("destination"):
        arguments["destination"] = rng.choice(_POOLS["city"])
    prompt = rng.choice(tool.phrasings).format(**arguments)
    return Task("tool_call", prompt, json.dumps({"name": name, "arguments": arguments}))


def draw_exact(rng: random.Random) -> Task:
    """One sum of two to four single-digit operands whose running total never goes below zero."""
    operands = [rng.randint(1, MAX_OPERAND)]
    operators: list[str] = []
    total = operands[0]
    for _ in range(rng.choice((1, 2, 2, 3))):
        operators.append(rng.choice([op for op in _OPERATORS if op == "+" or total > 0]))
        limit = MAX_OPERAND if operators[-1] == "+" else min(MAX_OPERAND, total)
        operands.append(rng.randint(1, limit))
        total = _OPERATORS[operators[-1]](total, operands[-1])
    expression = str(operands[0])
    for operator, operand in zip(operators, operands[1:], strict=True):
        expression += f" {operator} {operand}"
    prompt = rng.choice(_EXACT_PHRASINGS).format(expression=expression)
    return Task("exact", prompt, solve(expression))


def solve(expression: str, slip: Callable[[int], int] = lambda total: total) -> str:
    """The worked steps of ``a + b - c``; `slip` may change each result, and later steps follow it."""
    first, *rest = expression.split()
    total = int(first)
    steps = []
    for operator, operand in zip(rest[::2], rest[1::2], strict=True):
        result = slip(_OPERATORS[operator](total, int(operand)))
        steps.append(f"{total} {operator} {operand} = {result}")
        total = result
    return ", ".join(steps)


def iter_tasks(seed: int, exclude: frozenset[str] = frozenset()) -> Iterator[Task]:
    """An endless stream of tasks; one whose prompt is in `exclude` never appears."""
    rng = random.Random(seed)
    while True:
        task = draw_exact(rng) if rng.random() < EXACT_FRACTION else draw_tool_call(rng)
        if task.prompt not in exclude:
            yield task


def slip_answer(task: Task, rng: random.Random, rate: float) -> str:
    """The task's answer in which each value is, with probability `rate`, plausibly wrong."""
    if task.kind == "exact":
        expression = re.search(r"\d[\d +-]*\d", task.prompt)
        assert expression is not None, f"no expression in {task.prompt!r}"
        # Only upwards: a wrong total must not push a later step below zero.
        return solve(expression[0], lambda total: total + _draw_error(rng, rate))
    call = json.loads(task.reference)
    kinds = TOOLS[call["name"]].arguments
    for key, kind in kinds.items():
        value = call["arguments"][key]
        if kind == "number":
            call["arguments"][key] = _slip_digits(value, rng, rate)
        elif rng.random() < rate:
            call["arguments"][key] = rng.choice(_POOLS[kind])
    return json.dumps(call)


def _draw_error(rng: random.Random, rate: float) -> int:
    """How far off a sum is: miscounted by one or two, or a ten carried too many."""
    return rng.choice((1, 2, 10)) if rng.random() < rate else 0


def _slip_digits(value: int, rng: random.Random, rate: float) -> int:
    """`value` in which each digit is, with probability `rate`, drawn anew (never a leading zero)."""
    digits = [
        rng.choice("123456789" if index == 0 else "0123456789") if rng.random() < rate else digit
        for index, digit in enumerate(str(value))
    ]
    return int("".join(digits))


def is_correct(kind: str, reference: str, completion: str) -> bool:
    """Whether `completion` answers the task: equal JSON for ``tool_call``, equal text for ``exact``."""
    if kind == "exact":
        return completion.strip() == reference.strip()
    try:
        return bool(json.loads(completion) == json.loads(reference))
    except json.JSONDecodeError:
        return False


def to_row(task: Task, number: int) -> dict[str, Any]:
    """The prompt-file row of a task."""
    return {
        "id": f"{task.kind}-{number:05d}",
        "messages": [{"role": "user", "content": task.prompt}],
        "reference": task.reference,
        "task": task.kind,
    }


def iter_prompt_rows(count: int = PROMPT_COUNT, seed: int = PROMPT_SEED) -> Iterator[dict[str, Any]]:
    """`count` rows with distinct prompts."""
    seen: set[str] = set()
    for task in iter_tasks(seed):
        if len(seen) == count:
            return
        if task.prompt not in seen:
            seen.add(task.prompt)
            yield to_row(task, len(seen))


def write_prompts(path: Path = PROMPTS_PATH, count: int = PROMPT_COUNT) -> None:
    """Write the prompt file; the same arguments always give the same bytes."""
    lines = (json.dumps(row, ensure_ascii=True) + "\n" for row in iter_prompt_rows(count))
    path.write_text("".join(lines), encoding="utf-8")


def tool_schemas() -> list[dict[str, Any]]:
    """The tools in the function-calling schema that chat templates and API servers read."""
    types = {"number": {"type": "integer", "minimum": 0, "maximum": MAX_NUMBER}}
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": tool.description,
                "parameters": {
                    "type": "object",
                    "properties": {
                        key: types.get(kind, {"type": "string"}) for key, kind in tool.arguments.items()
                    },
                    "required": list(tool.arguments),
                    "additionalProperties": False,
                },
            },
        }
        for name, tool in TOOLS.items()
    ]


def write_tool_schemas(path: Path = TOOL_SCHEMA_PATH) -> None:
    """Write the tools as JSON."""
    path.write_text(json.dumps(tool_schemas(), indent=2) + "\n", encoding="utf-8")
