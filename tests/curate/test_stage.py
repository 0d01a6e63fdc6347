"""The stage on a real Ray: every filter, accounts, order independence, errors, redaction, near duplicates."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raystill.config.schema import Config
from raystill.curate.stage import STAGE
from raystill.errors import ConfigError, DataError
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
from raystill.store.selection import load_selection

pytestmark = pytest.mark.ray
LONG = "the quick brown fox jumps over the lazy dog while the band plays on and nobody looks at the clock {}"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
                "additionalProperties": False,
            },
        },
    }
]


def drops(paths: RunPaths) -> dict[str, str]:
    rows = pq.read_table(paths.curate_rejects).to_pylist()
    return {row["prompt_id"]: row["code"] for row in rows}


def kept(paths: RunPaths) -> set[str]:
    return {row.prompt_id for row in load_selection(paths.selection)}


def answers_of_every_kind(make: Any) -> list[Any]:
    held_out = (
        "how many apples does Ann have when she buys three boxes of twelve and eats exactly five of them"
    )
    return [
        make("good", "Say something about Oslo.", "Oslo is a city."),
        make("empty", "Say something about Rome.", "  \n"),
        make("cut", "Say something about Kyoto.", "Kyoto is", finish_reason="length"),
        make("short", "Say something about Lima.", "Lima.", num_tokens=1),
        make("refusal", "Say something about Cairo.", "I’m sorry, but I can't help with that."),
        make("call", "Add 3.", '{"name": "add", "arguments": {"a": 3}}', task="tool_call"),
        make("bad-call", "Add 4.", '{"name": "add", "arguments": {"a": "four"}}', task="tool_call"),
        make("mail", "Who writes?", "Write to ann@example.com, please."),
        make("leak", f"Solve this: {held_out}?", "Thirty-one."),
        make("twin-1", "Tell me a joke.", "Knock, knock."),
        make("twin-2", "tell me a  JOKE.", "knock, knock."),
        make("near-1", LONG.format("one"), LONG.format("today")),
        make("near-2", LONG.format("one"), LONG.format("tonight")),
        make("held-out", held_out, "31", split="eval", reference="31"),
        make("held-out-cut", "Say something about Quito.", "Quito", split="eval", finish_reason="length"),
    ]


@pytest.mark.usefixtures("local_ray")
class TestOnOneRay:
    def settings(self, folder: Path, **changes: Any) -> dict[str, Any]:
        tools = folder / "tools.json"
        tools.write_text(json.dumps(TOOLS), encoding="utf-8")
        return {
            "length": {"min_tokens": 2},
            "tool_calls": {"schema_path": str(tools)},
            "personal_data": "drop",
            "decontaminate": {"ngram": 8, "threshold": 0.6},
            "near_duplicates": {"threshold": 0.7, "num_permutations": 64},
            **changes,
        }

    def test_each_filter_drops_its_row_and_no_other(
        self, curate_run: Any, make_answer: Any, tmp_path: Path
    ) -> None:
        config = curate_run.config(**self.settings(tmp_path))
        answers = answers_of_every_kind(make_answer)
        paths = curate_run.build(config, answers)
        counts = execute(STAGE, config, paths).manifest.counts
        found = drops(paths)
        twin = found.keys() & {"twin-1", "twin-2"}
        near = found.keys() & {"near-1", "near-2"}
        assert len(twin) == 1 and found[twin.pop()] == "exact_duplicate"
        assert len(near) == 1 and found[near.pop()] == "near_duplicate"
        assert {key: code for key, code in found.items() if key[:4] not in ("twin", "near")} == {
            "empty": "empty",
            "cut": "finish_reason",
            "short": "too_short",
            "refusal": "refusal",
            "bad-call": "tool_call",
            "mail": "personal_data",
            "leak": "contaminated",
        }
        assert counts["rows_in"] == len(answers) == counts["kept"] + counts["dropped"]
        assert kept(paths) | found.keys() == {answer.prompt_id for answer in answers}
        assert {"held-out", "held-out-cut", "good", "call"} <= kept(paths)
        report = json.loads(paths.curate_report.read_text())
        assert report["held_out"] == {"rows": 2, "would_be_dropped": {"finish_reason": 1}}

    def test_the_cut_into_parts_and_partitions_changes_nothing(
        self, curate_run: Any, make_answer: Any, tmp_path: Path
    ) -> None:
        answers = answers_of_every_kind(make_answer)
        outputs = []
        for name, partitions, per_part in (("a", 1, 100), ("b", 5, 2)):
            config = curate_run.config(name, **self.settings(tmp_path))
            ordered = answers if name == "a" else answers[::-1]
            paths = curate_run.build(config, ordered, num_partitions=partitions, rows_per_part=per_part)
            execute(STAGE, config, paths)
            outputs.append(
                [p.read_bytes() for p in (paths.selection, paths.curate_rejects, paths.curate_report)]
            )
        assert outputs[0] == outputs[1]

    def test_redacted_rows_are_kept_with_their_new_text(
        self, curate_run: Any, make_answer: Any, tmp_path: Path
    ) -> None:
        config = curate_run.config(personal_data="redact")
        paths = curate_run.build(
            config,
            [
                make_answer("mail", "Who?", "Write to ann@example.com."),
                make_answer("plain", "Mail bob@example.com!", "Done."),
                make_answer("held-out", "Who now?", "Write to eve@example.com.", split="eval"),
            ],
        )
        manifest = execute(STAGE, config, paths).manifest
        texts = {row.prompt_id: row.completion for row in load_selection(paths.selection)}
        assert texts == {"mail": "Write to [EMAIL].", "plain": None, "held-out": None}
        assert manifest.counts["redacted"] == 1
        assert manifest.metrics["personal_data"]["in_completions"] == {"email": 2}
        assert manifest.metrics["personal_data"]["in_prompts"] == {"email": 1}

    def test_the_best_sample_by_logprob_is_kept(self, curate_run: Any, make_answer: Any) -> None:
        config = curate_run.config(best_of_n="logprob")
        samples = [(0, -0.9), (1, -0.1), (2, -0.5)]
        answers = [
            make_answer("p", "Say it.", f"It {index}.", sample_index=index, logprob=logprob)
            for index, logprob in samples
        ]
        paths = curate_run.build(config, answers)
        execute(STAGE, config, paths)
        (row,) = load_selection(paths.selection)
        table = pq.read_table(paths.curate_rejects).to_pylist()
        assert {reject["code"] for reject in table} == {"not_best"} and len(table) == 2
        assert all(row.key in reject["detail"] for reject in table)

    def test_judge_scores_and_a_mixture(
        self, curate_run: Any, make_answer: Any, answer_key: Callable[[Any], str], tmp_path: Path
    ) -> None:
        answers = [
            make_answer(f"{source}-{n}", f"Question {n} of {source}", f"Answer {n} {source}", source=source)
            for source, count in (("web", 12), ("code", 8))
            for n in range(count)
        ]
        lines = [{"key": answer_key(a), "score": 0 if a.prompt_id == "web-0" else 5} for a in answers]
        scores = tmp_path / "scores.jsonl"
        scores.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        config = curate_run.config(
            judge={"scores": str(scores), "min_score": 3.0},
            mixture={"sources": [{"source": "web", "weight": 1.0}, {"source": "code", "weight": 2.0}]},
        )
        paths = curate_run.build(config, answers)
        manifest = execute(STAGE, config, paths).manifest
        by_source = {entry["source"]: entry for entry in manifest.metrics["sources"]}
        assert (by_source["web"]["kept"], by_source["code"]["kept"]) == (4, 8)
        assert by_source["web"]["wanted_share"] == pytest.approx(1 / 3)
        assert drops(paths)["web-0"] == "judge_score"
        assert {row.judge_score for row in load_selection(paths.selection)} == {5.0}

    def test_nothing_left_is_an_error_with_the_counts(self, curate_run: Any, make_answer: Any) -> None:
        config = curate_run.config(length={"min_tokens": 50})
        paths = curate_run.build(config, [make_answer("a", "A?", "B."), make_answer("b", "C?", "  ")])
        with pytest.raises(DataError, match=r"no row to train on \(.*too_short 1") as caught:
            execute(STAGE, config, paths)
        assert "empty 1" in str(caught.value)
        assert not paths.selection.exists() and not paths.stage_dir("curate").exists()

    def test_a_wrong_judge_row_is_named(self, curate_run: Any, make_answer: Any, tmp_path: Path) -> None:
        scores = tmp_path / "scores.jsonl"
        scores.write_text('{"prompt_id": "a", "score": "high"}\n', encoding="utf-8")
        config = curate_run.config(judge={"scores": str(scores)})
        paths = curate_run.build(config, [make_answer("a", "A?", "B.")])
        with pytest.raises(DataError, match="not a number") as caught:
            execute(STAGE, config, paths)
        assert "scores.jsonl:1" in str(caught.value)


def test_a_missing_file_is_refused_before_anything_runs(curate_run: Any, make_answer: Any) -> None:
    config: Config = curate_run.config(decontaminate={"against": ["/nowhere/set.jsonl"]})
    paths = curate_run.build(config, [make_answer("a", "A?", "B.")])
    with pytest.raises(ConfigError, match="not there") as caught:
        execute(STAGE, config, paths)
    assert "curate.decontaminate.against.0" in str(caught.value)
    assert not paths.stage_dir("curate").exists()


def test_without_the_section_there_is_nothing_to_do(curate_run: Any, make_answer: Any) -> None:
    with_section = curate_run.config()
    paths = curate_run.build(with_section, [make_answer("a", "A?", "B.")])
    config = with_section.model_copy(update={"curate": None})
    with pytest.raises(ConfigError, match="not given"):
        execute(STAGE, config, paths)
