"""Prepare, end to end: a user's own file in each shape, and everything that is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raystill.errors import ConfigError, DataError, RaystillError
from raystill.prompts.table import REJECT_SCHEMA
from raystill.text.chat import load_chat_format
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import load_prompts

Write = Callable[..., Path]


def row(text: str, **columns: Any) -> str:
    return json.dumps({"prompt": text, **columns})


def by_user_text(prompts: list[Prompt]) -> dict[str, Prompt]:
    return {prompt.messages[-1]["content"]: prompt for prompt in prompts}


def test_messages(prepared: Any, prompt_fixtures: Path) -> None:
    outcome = prepared.prepare({"path": str(prompt_fixtures / "messages.jsonl")})
    assert outcome.manifest.counts["kept"] == outcome.manifest.counts["rows_in"] == 5
    prompts = {prompt.id: prompt for prompt in load_prompts(prepared.paths.prompt_table)}
    assert prompts["capital-1"].reference == "Paris"
    assert prompts["capital-1"].task == "exact"
    assert [message["role"] for message in prompts["capital-1"].messages] == ["system", "user"]
    assert [message["content"] for message in prompts["multi-1"].messages][1:] == ["7", "And a larger one?"]
    assert prompts["multi-1"].reference is None
    assert json.loads(prompts["tool-1"].reference or "")["arguments"] == {"city": "Öslo"}
    assert "🎉" in prompts["code-1"].messages[0]["content"]


def test_prompt_csv(prepared: Any, prompt_fixtures: Path) -> None:
    prepared.prepare({"path": str(prompt_fixtures / "prompt.csv")})
    prompts = {prompt.id: prompt for prompt in load_prompts(prepared.paths.prompt_table)}
    assert set(prompts) == {"1", "2", "3", "4"}
    assert prompts["2"].messages == [{"role": "user", "content": 'Say "hi", then\nstop.'}]
    assert prompts["1"].reference == "5"
    assert prompts["4"].reference is None


def test_instruction_of_the_datasets_section(prepared: Any, prompt_fixtures: Path) -> None:
    path = str(prompt_fixtures / "instruction.jsonl")
    outcome = prepared.prepare(datasets=[{"name": "quiz", "key": "question", "external_local_path": path}])
    assert outcome.manifest.counts["duplicates"] == 1
    assert outcome.manifest.counts["kept"] == 3
    prompts = by_user_text(load_prompts(prepared.paths.prompt_table))
    assert {prompt.source for prompt in prompts.values()} == {"quiz"}
    assert prompts["Sort these numbers: 3 1 2."].reference == "1 2 3"


def test_alpaca_array(prepared: Any, prompt_fixtures: Path) -> None:
    prepared.prepare({"path": str(prompt_fixtures / "alpaca.json")})
    prompts = by_user_text(load_prompts(prepared.paths.prompt_table))
    assert prompts["Translate to German.\n\nGood morning"].reference == "Guten Morgen"
    assert prompts["Name three fruits."].reference == "apple, pear, plum"
    assert "Summarise the text.\n\nA fox jumped.\nIt ran away." in prompts


def test_sharegpt(prepared: Any, prompt_fixtures: Path) -> None:
    outcome = prepared.prepare({"path": str(prompt_fixtures / "sharegpt.jsonl")})
    prompts = by_user_text(load_prompts(prepared.paths.prompt_table))
    assert [m["role"] for m in prompts["For what?"].messages] == ["system", "user", "assistant", "user"]
    assert prompts["For what?"].reference == "Distributed Python."
    assert prompts["Goodbye!"].reference is None
    assert all(len(prompt.id) == 24 for prompt in prompts.values())  # id c2 repeats: content decides
    assert "gaps or repeats" in outcome.manifest.metrics["notes"][0]


def test_all_shapes_together_are_counted_rendered_and_split(prepared: Any, prompt_fixtures: Path) -> None:
    names = ("messages.jsonl", "prompt.csv", "alpaca.json", "sharegpt.jsonl")
    sources = [{"path": str(prompt_fixtures / name)} for name in names]
    counts = prepared.prepare(*sources, prompts={"eval_size": 4, "system": "Be kind."}).manifest.counts
    assert counts["rows_in"] == 5 + 4 + 3 + 3 == counts["kept"]
    assert (counts["train"], counts["eval"]) == (11, 4)
    prompts = load_prompts(prepared.paths.prompt_table)
    assert [prompt.id for prompt in prompts] == sorted(prompt.id for prompt in prompts)
    chat = load_chat_format(str(prepared.tokenizer_dir))
    for prompt in prompts:
        assert prompt.num_tokens == len(chat.render_prompt_ids(prompt.messages))
        assert prompt.messages[0]["role"] == "system"
    systems = {prompt.messages[0]["content"] for prompt in prompts}
    assert systems == {"Be kind.", "Be brief.", "Answer in one word."}


def test_rerun_skips_and_changed_or_missing_sources(prepared: Any, write_lines: Write) -> None:
    path = write_lines(row("one"), row("two"))
    source = {"path": str(path)}
    first = prepared.prepare(source).manifest
    assert prepared.prepare(source).skipped
    content = path.read_bytes()
    path.write_bytes(content + row("three").encode() + b"\n")
    with pytest.raises(ConfigError, match=r"data\.jsonl: made from another version"):
        prepared.prepare(source)
    again = prepared.prepare(source, fresh=True).manifest
    assert again.counts["kept"] == 3
    assert again.fingerprint != first.fingerprint
    path.unlink()
    assert prepared.prepare(source).skipped
    with pytest.raises(DataError, match="does not exist"):
        prepared.prepare(source, fresh=True)
    assert len(load_prompts(prepared.paths.prompt_table)) == 3  # a fresh run that can't start removes nothing


def test_changed_tokenizer_is_noticed(
    prepared: Any, write_lines: Write, build_tokenizer: Any, tmp_path: Path
) -> None:
    prepared.tokenizer_dir = tmp_path / "own_tokenizer"
    build_tokenizer().save_pretrained(str(prepared.tokenizer_dir))
    source = {"path": str(write_lines(row("one"), row("two")))}
    prepared.prepare(source)
    build_tokenizer(texts=("one two",)).save_pretrained(str(prepared.tokenizer_dir))
    with pytest.raises(ConfigError, match="teacher tokenizer: made from another version"):
        prepared.prepare(source)


def test_settings_can_be_corrected_after_a_refusal(prepared: Any, write_lines: Write) -> None:
    """I15."""
    source = {"path": str(write_lines(row("one"), "{bad", row("two")))}
    with pytest.raises(DataError, match="not JSON"):
        prepared.prepare(source)
    counts = prepared.prepare(source, prompts={"max_bad_rows": 1}).manifest.counts
    assert (counts["rows_in"], counts["kept"], counts["rejected"]) == (3, 2, 1)
    rejects = pq.read_table(prepared.paths.prompt_rejects)
    assert rejects.schema.equals(REJECT_SCHEMA)
    (reject,) = rejects.to_pylist()
    assert reject["row"].endswith("data.jsonl:2")
    assert (reject["code"], reject["excerpt"]) == ("json", "{bad")


def test_equal_rows_give_an_equal_fingerprint_in_any_order(prepared: Any, write_lines: Write) -> None:
    lines = [row(f"prompt {index}") for index in range(20)]
    source = {"path": str(write_lines(*lines))}
    first = prepared.prepare(source).manifest
    write_lines(*reversed(lines))
    second = prepared.prepare(source, fresh=True).manifest
    assert first.fingerprint == second.fingerprint
    assert first.inputs != second.inputs


KILLED_RUN = """
import json, sys
from raystill.config.schema import Config
from raystill.prompts.stage import STAGE
from raystill.run.paths import RunPaths
from raystill.run.stage import execute
config = Config.model_validate(json.loads(sys.argv[1]))
execute(STAGE, config, RunPaths.from_config(config))
"""


def test_killed_before_the_manifest_and_run_again(prepared: Any, write_lines: Write) -> None:
    source = {"path": str(write_lines(*[row(f"prompt {index}") for index in range(20)]))}
    settings = prepared.config(source).model_dump_json(include={"run", "prompts", "teacher"})
    # Files in order: the record of the start, rejects, prompts, the manifest.
    environment = {**os.environ, "RAYSTILL_FAILPOINT": "publish_file:before_rename:4"}
    command = [sys.executable, "-c", KILLED_RUN, settings]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert prepared.paths.prompt_table.exists()
    output = prepared.paths.stage_dir("prepare")
    assert not (output / "manifest.json").exists()
    outcome = prepared.prepare(source)
    assert not outcome.skipped
    assert outcome.manifest.counts["kept"] == 20
    assert [path.name for path in output.iterdir() if path.name.startswith(".tmp-")] == []


def test_over_length_policies(prepared: Any, write_lines: Write) -> None:
    source = {"path": str(write_lines(row("short"), row("long " * 100), row("brief")))}
    limit = {"base": {"prompt_length": 60}}
    # The template and the configured system message are not the prompt's own length.
    kept = prepared.prepare(source, teacher=limit, prompts={"system": "be kind " * 90}).manifest.counts
    assert (kept["kept"], kept["over_length"], kept["dropped"]) == (3, 1, 0)
    drop = prepared.prepare(
        source, teacher=limit, prompts={"over_length": "drop", "system": "be kind " * 90}, fresh=True
    ).manifest.counts
    assert (drop["kept"], drop["over_length"], drop["dropped"], drop["rows_in"]) == (2, 1, 1, 3)
    (reject,) = pq.read_table(prepared.paths.prompt_rejects).to_pylist()
    assert reject["code"] == "over_length"
    assert "prompt_length is 60" in reject["reason"]
    with pytest.raises(DataError, match=r"1 prompts are longer than 60 tokens.*data\.jsonl:2"):
        prepared.prepare(source, teacher=limit, prompts={"over_length": "error"}, fresh=True)


def test_parquet_and_folders_of_files(prepared: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for index in range(2):
        table = pa.table({"text": [f"a{index}", f"b{index}"], "id": [2 * index, 2 * index + 1]})
        pq.write_table(table, folder / f"part-{index}.parquet")
    prepared.prepare({"path": str(folder), "key": "text", "id_column": "id"})
    prompts = load_prompts(prepared.paths.prompt_table)
    assert {prompt.id: prompt.messages[0]["content"] for prompt in prompts} == {
        "0": "a0",
        "1": "b0",
        "2": "a1",
        "3": "b1",
    }


def test_limit_takes_the_first_rows(prepared: Any, write_lines: Write) -> None:
    source = {"path": str(write_lines(row("one"), row("two"), "{bad")), "limit": 2}
    assert prepared.prepare(source).manifest.counts["rows_in"] == 2


LONE_SURROGATE = '{"prompt": "\\ud83d"}'
NUL = '{"prompt": "a\\u0000b"}'


def messages(*turns: dict[str, Any]) -> str:
    return json.dumps({"messages": list(turns)})


USER = {"role": "user", "content": "hi"}

BAD_ROWS = {
    "trailing comma": ('{"prompt": "x",}', ":2: not JSON: trailing comma at column"),
    "cut line": ('{"prompt": "x', ":2: not JSON"),
    "not an object": ('["x"]', ":2: a list instead of an object"),
    "long line": ('{"prompt": ' + "x" * 500, "x" * 60 + r"x+\.\.\.\n"),
    "invalid UTF-8": (b'{"prompt": "\xff"}', ":2: not UTF-8"),
    "lone surrogate": (LONE_SURROGATE, ":2: prompt holds a lone surrogate at character 0"),
    "NUL": (NUL, ":2: prompt holds a NUL"),
    "empty": (row("  \n"), ":2: prompt is empty"),
    "number": ('{"prompt": 7}', ":2: prompt is a int instead of text"),
    "missing": ('{"other": "x"}', ":2: prompt is missing"),
    "unknown task": (row("x", task="essay"), ":2: unknown task 'essay'; known: .*exact"),
    "no reference": (row("x", task="exact"), ":2: task exact needs a reference"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_row_stops_with_its_place_and_rule(prepared: Any, write_lines: Write, case: str) -> None:
    """F27, I15, I20, I41: stopped at, or skipped where bad rows are allowed."""
    line, message = BAD_ROWS[case]
    source = {"path": str(write_lines(row("good"), line, row("better")))}
    with pytest.raises(DataError, match=message) as error:
        prepared.prepare(source)
    assert error.value.exit_code == 3
    assert "1 bad rows among 3 read" in str(error.value)
    assert "max_bad_rows" in str(error.value)
    assert prepared.left_behind() == []
    assert prepared.prepare(source, prompts={"max_bad_rows": 1}).manifest.counts["rejected"] == 1


BAD_MESSAGES = {
    "unknown role": (messages({"role": "robot", "content": "x"}), "turn 0 has the unknown role 'robot'"),
    "assistant only": (messages({"role": "assistant", "content": "x"}), "must end with the user's turn"),
    "ends with system": (messages(USER, {"role": "system", "content": "x"}), "it ends with system"),
    "system in the middle": (messages(USER, {"role": "system", "content": "x"}, USER), "may only come first"),
    "empty content": (messages({"role": "user", "content": ""}), "turn 0 is empty"),
    "null content": (messages({"role": "user", "content": None}), "turn 0 is missing instead of text"),
    "content list": (
        messages({"role": "user", "content": [{"type": "text", "text": "x"}]}),
        "turn 0 has a list of content parts; only text",
    ),
    "tool calls": (
        messages(USER, {"role": "assistant", "content": "", "tool_calls": [{}]}, USER),
        "tool calls",
    ),
    "no content": (messages({"role": "user"}), "not an object with role and content"),
    "empty list": (messages(), "not a list of turns"),
    "text": ('{"messages": "hi"}', "not a list of turns"),
}


@pytest.mark.parametrize("case", BAD_MESSAGES)
def test_bad_messages(prepared: Any, write_lines: Write, case: str) -> None:
    """I18."""
    line, message = BAD_MESSAGES[case]
    with pytest.raises(DataError, match=message) as error:
        prepared.prepare({"path": str(write_lines(messages(USER), line))})
    assert "data.jsonl:2" in str(error.value)
    assert prepared.left_behind() == []


def test_only_the_first_bad_rows_are_shown_with_the_total(prepared: Any, write_lines: Write) -> None:
    """I15."""
    with pytest.raises(DataError, match="30 bad rows among 31 read") as error:
        prepared.prepare({"path": str(write_lines(row("good"), *["{bad"] * 30))})
    assert str(error.value).count("not JSON") == 5


def test_a_file_of_the_wrong_kind_is_not_read_to_its_end(prepared: Any, write_lines: Write) -> None:
    """I15."""
    with pytest.raises(DataError, match="at least 101 bad rows"):
        prepared.prepare({"path": str(write_lines(row("good"), *["{bad"] * 5000))})


def test_byte_order_mark_crlf_and_blank_lines_are_fine(prepared: Any, write_lines: Write) -> None:
    """I15."""
    path = write_lines(b"\xef\xbb\xbf" + row("one\r\ntwo").encode(), "", row("three"), end=b"\r\n")
    counts = prepared.prepare({"path": str(path)}).manifest.counts
    assert (counts["rows_in"], counts["kept"]) == (2, 2)
    assert "one\ntwo" in by_user_text(load_prompts(prepared.paths.prompt_table))


def test_mixed_dialects_are_refused_whatever_max_bad_rows_says(prepared: Any, write_lines: Write) -> None:
    """I19."""
    sharegpt = json.dumps({"conversations": [{"from": "human", "value": "hi"}]})
    openai = json.dumps({"conversations": [USER]})
    source = {"path": str(write_lines(sharegpt, sharegpt, openai))}
    with pytest.raises(
        DataError, match=r"mix two shapes: .*:1 has from/value, .*:3 has role/content"
    ) as error:
        prepared.prepare(source, prompts={"max_bad_rows": 50})
    assert error.value.exit_code == 3
    assert prepared.left_behind() == []


@pytest.mark.parametrize(
    ("lines", "setting", "message"),
    [
        (['{"text": "x"}'], {}, r"no column says the prompt: have text; want messages or prompt"),
        (['{"prompt": "x"}'], {"key": "text"}, "no column 'text': have prompt; want text"),
        (['{"prompt": "x"}'], {"id_column": "uid"}, "no column 'uid': have prompt; want uid"),
        (['{"prompt": "x"}'], {"shape": "alpaca"}, "have prompt; want instruction"),
        (['{"instruction": "x"}'], {"shape": "alpaca"}, "no column 'input'"),
        ([messages(USER)], {"shape": "sharegpt", "key": "messages"}, "role/content turns, which is not"),
    ],
)
def test_missing_columns_say_have_and_want(
    prepared: Any, write_lines: Write, lines: list[str], setting: dict[str, str], message: str
) -> None:
    """I16."""
    with pytest.raises(DataError, match=message) as error:
        prepared.prepare({"path": str(write_lines(*lines)), **setting})
    assert "prompts.sources[0]" in str(error.value)
    assert prepared.left_behind() == []


def test_missing_columns_of_csv_and_parquet(prepared: Any, write_lines: Write, tmp_path: Path) -> None:
    """I16."""
    for path in (write_lines("a,b", "1,2", name="x.csv"), tmp_path / "x.parquet"):
        if path.suffix == ".parquet":
            pq.write_table(pa.table({"a": ["1"], "b": ["2"]}), path)
        with pytest.raises(DataError, match="have a, b; want messages") as error:
            prepared.prepare({"path": str(path)})
        assert "`key: a`" in error.value.problems[0].fix
    assert prepared.left_behind() == []


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "a", "b", "b", "c"], r"2 ids are used by different prompts \('a' at .*:1, .*:2; 'b' at"),
        (["a", None, None, None, None], r"4 rows have no id \(.*:2, .*:3, .*:4\)"),
    ],
)
def test_configured_ids_must_be_complete_and_unique(
    prepared: Any, write_lines: Write, ids: list[str | None], message: str
) -> None:
    """I17."""
    lines = [json.dumps({"uid": row_id, "prompt": f"p{index}"}) for index, row_id in enumerate(ids)]
    with pytest.raises(DataError, match=message) as error:
        prepared.prepare({"path": str(write_lines(*lines)), "id_column": "uid"})
    assert error.value.exit_code == 3
    assert prepared.left_behind() == []


def test_repeated_ids_of_equal_prompts_are_only_duplicates(prepared: Any, write_lines: Write) -> None:
    source = {"path": str(write_lines(row("x", uid=1), row("x", uid=1), row("y", uid=2))), "id_column": "uid"}
    assert prepared.prepare(source).manifest.counts["duplicates"] == 1


PATHS: dict[str, tuple[dict[str, Any], type[RaystillError], str]] = {
    "missing": ({"path": "{tmp}/none.jsonl"}, DataError, "does not exist"),
    "too long": ({"path": "{tmp}/" + "abcdefghij/" * 500}, DataError, "does not exist"),
    "directory for a file": (
        {"path": "{tmp}/dir", "format": "jsonl"},
        DataError,
        "is a directory, and",
    ),
    "file for a directory": (
        {"path": "{tmp}/a.jsonl", "format": "hf"},
        DataError,
        "is a file, and",
    ),
    "empty file": ({"path": "{tmp}/empty.jsonl"}, DataError, "is empty"),
    "empty directory": ({"path": "{tmp}/dir"}, DataError, "holds no"),
    "unknown suffix": ({"path": "{tmp}/a.txt"}, DataError, "doesn't tell its format"),
    "keys for python": (
        {"path": "stdlib", "format": "python_source", "key": "x"},
        ConfigError,
        "mean nothing",
    ),
    "run inside": ({"path": "{tmp}", "format": "hf"}, ConfigError, "lies inside this source"),
    "no header": ({"path": "{tmp}/twice.csv"}, DataError, "name every column once"),
    "not parquet": ({"path": "{tmp}/a.jsonl", "format": "parquet"}, DataError, "Parquet file can't be read"),
}


@pytest.mark.parametrize("case", PATHS)
def test_paths_that_cannot_be_sources(prepared: Any, write_lines: Write, tmp_path: Path, case: str) -> None:
    """I14, I36, I37."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "empty.jsonl").touch()
    write_lines(row("x"), name="a.jsonl")
    write_lines(row("x"), name="a.txt")
    write_lines("a,a", "1,2", name="twice.csv")
    settings, kind, message = PATHS[case]
    source = {key: value.replace("{tmp}", str(tmp_path)) for key, value in settings.items()}
    with pytest.raises(kind, match=message) as error:
        prepared.prepare(source)
    assert error.value.problems[0].where
    assert prepared.left_behind() == []


@pytest.mark.parametrize(
    ("lines", "sections", "message"),
    [
        ([""], {}, "no prompt is left: 0 rows read"),
        (["{bad"], {"prompts": {"max_bad_rows": 9}}, "no prompt is left: 1 rows read, 1 rejected"),
        (
            [row("x y z"), row("x y z")],
            {"prompts": {"over_length": "drop"}, "teacher": {"base": {"prompt_length": 1}}},
            "2 rows read, 0 rejected, 1 duplicates, 1 dropped",
        ),
    ],
)
def test_nothing_left_says_where_the_rows_went(
    prepared: Any, write_lines: Write, lines: list[str], sections: dict[str, Any], message: str
) -> None:
    """I14."""
    with pytest.raises(DataError, match=message):
        prepared.prepare({"path": str(write_lines(*lines))}, **sections)
    assert prepared.left_behind() == []


def test_settings_without_meaning_are_refused(prepared: Any, write_lines: Write) -> None:
    source = {"path": str(write_lines(row("x"), row("y")))}
    with pytest.raises(ConfigError, match="both empty"):
        prepared.prepare()
    with pytest.raises(ConfigError, match="no length to compare"):
        prepared.prepare(source, prompts={"over_length": "drop"})
    with pytest.raises(ConfigError, match="all 2 prompts would be held out"):
        prepared.prepare(source, prompts={"eval_size": 2})
    with pytest.raises(ConfigError, match="there is no teacher"):
        prepared.prepare(source, teacher={"open": None})
    assert prepared.left_behind() == []


def test_a_tokenizer_without_chat_template(prepared: Any, write_lines: Write, build_tokenizer: Any) -> None:
    """I23."""
    prepared.tokenizer_dir = prepared.root / "plain"
    build_tokenizer(chat_template=None).save_pretrained(str(prepared.tokenizer_dir))
    with pytest.raises(ConfigError, match="no chat template"):
        prepared.prepare({"path": str(write_lines(row("x"), row("y")))})
    assert prepared.left_behind() == []


def test_messages_that_the_template_refuses_are_rejected_rows(
    prepared: Any, write_lines: Write, build_tokenizer: Any
) -> None:
    """F27, I18."""
    prepared.tokenizer_dir = prepared.root / "refusing"
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    tokenizer = build_tokenizer()
    tokenizer.chat_template = refusing + tokenizer.chat_template
    tokenizer.save_pretrained(str(prepared.tokenizer_dir))
    source = {"path": str(write_lines(row("x"), row("y"), row("z", system="s")))}
    with pytest.raises(DataError, match=r":3: the chat template refuses.*no system turn"):
        prepared.prepare(source)
    counts = prepared.prepare(source, prompts={"max_bad_rows": 1}).manifest.counts
    assert (counts["kept"], counts["rejected"]) == (2, 1)


def test_links_that_lead_out_of_a_folder_are_not_followed(
    prepared: Any, write_lines: Write, tmp_path: Path
) -> None:
    """I37."""
    outside = write_lines(row("secret"), name="outside.jsonl")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "in.jsonl").write_text(row("inside") + "\n" + row("also") + "\n")
    os.symlink(outside, folder / "link.jsonl")
    prepared.prepare({"path": str(folder)})
    assert set(by_user_text(load_prompts(prepared.paths.prompt_table))) == {"inside", "also"}
