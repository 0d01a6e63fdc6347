"""Samples, rows with their own sampling, and the order in which rows are done. No Ray."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raystill.config.schema import Config
from raystill.errors import DataError
from raystill.run.paths import RunPaths
from raystill.store.identity import StoreIdentity, partition_of, request_key, row_seed
from raystill.store.records import Reject
from raystill.store.requests import Request, load_requests, save_requests
from raystill.store.store import open_store
from raystill.store.writer import PartWriter
from raystill.teacher.engine import Sampling
from raystill.teacher.identify import identify_teacher
from raystill.teacher.open_requests import plan_open_requests
from raystill.teacher.plan_requests import Question, RequestPlan, RequestPlanner
from raystill.teacher.preview import choose_requests
from raystill.teacher.progress import Progress
from raystill.teacher.request_list import Origin, list_origin
from raystill.teacher.row_order import mark_tail
from raystill.teacher.sampling import num_samples_of, row_sampling, sampling_of
from raystill.teacher.shards import Shard
from raystill.text.prompt_row import Prompt
from raystill.text.prompt_table import save_prompts

MakeConfig = Callable[..., Config]
DRAWN = Sampling(0.8, 0.95, 50, 16)
IDENTITY = StoreIdentity(
    teacher="t",
    engine="fake",
    dtype="float32",
    tokenizer_sha256="a",
    chat_template_sha256="b",
    num_logprobs=0,
)


def plan_of(config: Config, prompts: list[Prompt], tmp_path: Path) -> tuple[RequestPlan, list[Any]]:
    """The plan, and the rows of its shards in order."""
    paths = RunPaths.from_config(config)
    save_prompts(paths.prompt_table, prompts)
    teacher = identify_teacher(config)
    store = open_store(tmp_path / "store", teacher.identity, 4)
    plan = plan_open_requests(
        teacher, store, paths.prompt_table, tmp_path / "plan.parquet", tmp_path / "scratch"
    )
    return plan, [row for shard in plan.shards for row in shard.read()]


def prompt(index: int, split: str = "train", words: str = "", sampling: Any = None) -> Prompt:
    messages = [{"role": "user", "content": f"{words} number {index}"}]
    return Prompt(f"p{index:03d}", "test", split, messages, "text", None, 9, sampling)  # type: ignore[arg-type]


def test_training_prompts_get_n_samples_and_held_out_ones_get_one(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    prompts = [prompt(index, "eval" if index % 5 == 0 else "train") for index in range(20)]
    plan, rows = plan_of(make_config(base={"num_samples": 3}), prompts, tmp_path)
    assert plan.num_requests == len(rows) == 4 + 16 * 3
    assert len({row["key"] for row in rows}) == len(rows)
    assert len({row_seed(row["key"]) for row in rows}) == len(rows)
    samples = defaultdict(list)
    for row in rows:
        samples[row["prompt_id"]].append((row["sample_index"], partition_of(row["key"], 4)))
    for found in samples.values():
        assert [index for index, _ in found] == list(range(len(found)))  # side by side, in order
        assert len({partition for _, partition in found}) == 1
    assert Counter(len(found) for found in samples.values()) == {1: 4, 3: 16}


def planner_of(config: Config, asked: list[str]) -> RequestPlanner:
    """A planner without a model, which notes the prompts that it renders."""

    def ask(prompt: Prompt) -> Question:
        asked.append(prompt.id)
        words = str(prompt.messages[0]["content"])
        return Question(
            DRAWN, rendered=[len(words), ord(words[-1])], facts=vars(DRAWN), prompt_token_ids=[1, 2]
        )

    return RequestPlanner(config, IDENTITY, ask, {"version": 1}, lambda rows: rows, 1)


def test_only_prompts_with_open_requests_are_rendered_again(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(base={"num_samples": 2})
    prompts = [prompt(index, "eval" if index == 4 else "train", words="w" * index) for index in range(9)]
    prompts.append(replace(prompts[3], id="alike"))  # renders like p003, so it makes no request
    save_prompts(tmp_path / "prompts.parquet", prompts)
    store = open_store(tmp_path / "store", IDENTITY, 4)
    table = tmp_path / "plan" / "requests.parquet"
    asked: list[str] = []
    planner = planner_of(config, asked)

    def plan(name: str) -> RequestPlan:
        asked.clear()
        return planner.plan(store, tmp_path / "prompts.parquet", table, tmp_path / name)

    first = plan("first")
    assert asked == [each.id for each in prompts] and first.num_requests == 8 * 2 + 1
    by_hand = {
        request_key(IDENTITY, [len("w" * i) + 9, ord(str(i))], vars(DRAWN), seed=0, sample_index=sample)
        for i in range(9)
        for sample in range(1 if i == 4 else 2)
    }
    listed = load_requests(first.table)
    assert {request.key for request in listed} == by_hand
    assert "alike" not in {request.prompt_id for request in listed}
    written = table.read_bytes()
    rows = {row["key"]: row for shard in first.shards for row in shard.read()}
    assert rows.keys() == by_hand

    answered = {request.key for request in listed if request.prompt_id not in ("p002", "p005")}
    answered |= {next(request.key for request in listed if request.prompt_id == "p005")}
    with PartWriter(store) as writer:
        for part in range(4):
            done = [reject_of(key) for key in answered if partition_of(key, 4) == part]
            if done:
                writer.commit_rejects(part, done)
    second = plan("second")
    assert asked == ["p002", "p005"]
    left = {row["key"]: row for shard in second.shards for row in shard.read()}
    assert left.keys() == by_hand - answered and all(left[key] == rows[key] for key in left)
    assert (second.num_requests, second.reused) == (17, 14) and table.read_bytes() == written

    for spoilt in (b"", written[:-9]):
        table.write_bytes(spoilt)
        assert plan(f"spoilt-{len(spoilt)}").num_requests == 17 and len(asked) == 10
        assert table.read_bytes() == written
    planner = replace(planner, facts={"version": 2})
    plan("other facts")
    assert len(asked) == 10
    save_prompts(tmp_path / "prompts.parquet", prompts[:-2])
    assert plan("fewer prompts").num_requests == 15 and asked == ["p002", "p005"]


@given(st.data())
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_changed_prompts_give_the_list_that_all_of_them_would_give_and_render_only_new_ones(
    make_config: MakeConfig, data: st.DataObject
) -> None:
    """Added, removed, reordered, and prompts that render alike, of which one may take over from another."""
    pool = [prompt(index, "eval" if index % 4 == 0 else "train", words="w" * index) for index in range(10)]
    pool += [replace(pool[index], id=f"alike-{index}") for index in (1, 2, 4)]
    drawn = st.lists(st.sampled_from(pool), min_size=1, unique_by=lambda each: each.id)
    config = make_config(base={"num_samples": 2})
    asked: list[str] = []
    planner = planner_of(config, asked)
    with TemporaryDirectory() as directory:
        here = Path(directory)
        store = open_store(here / "store", IDENTITY, 4)
        seen: set[str] = set()
        for number in range(3):
            prompts = data.draw(drawn)
            save_prompts(here / "prompts.parquet", prompts)
            asked.clear()
            grown = planner.plan(
                store, here / "prompts.parquet", here / "grown" / "list.parquet", here / f"g{number}"
            )
            known = {each.id for each in prompts} & seen
            if 2 * len(known) < len(prompts):
                assert asked == [each.id for each in prompts]
            once = here / f"once-{number}" / "list.parquet"
            planner.plan(store, here / "prompts.parquet", once, here / f"o{number}")
            assert (here / "grown" / "list.parquet").read_bytes() == once.read_bytes()
            rows = [row for shard in grown.shards for row in shard.read()]
            assert len(rows) == grown.num_requests
            seen = {each.id for each in prompts}


def test_a_thousand_more_prompts_render_a_thousand(make_config: MakeConfig, tmp_path: Path) -> None:
    asked: list[str] = []
    planner = planner_of(make_config(), asked)
    planner = replace(planner, ask=_ask_in_words(planner.ask))
    prompts = [prompt(index) for index in range(3000)]
    store = open_store(tmp_path / "store", IDENTITY, 4)
    table, source = tmp_path / "plan" / "list.parquet", tmp_path / "prompts.parquet"
    save_prompts(source, prompts[1000:])
    first = planner.plan(store, source, table, tmp_path / "first")
    with PartWriter(store) as writer:
        for part, rejects in _by_partition(load_requests(first.table)).items():
            writer.commit_rejects(part, rejects)
    asked.clear()
    save_prompts(source, prompts)
    more = planner.plan(store, source, table, tmp_path / "more")
    assert (more.num_requests, more.reused) == (3000, 2000)
    assert sum(shard.num_rows for shard in more.shards) == 1000
    # Once for their keys, once for their rows.
    assert asked == [each.id for each in prompts[:1000]] * 2


def _ask_in_words(ask: Callable[[Prompt], Question]) -> Callable[[Prompt], Question]:
    return lambda asked: replace(ask(asked), rendered=str(asked.messages[0]["content"]))


def _by_partition(requests: list[Request]) -> dict[int, list[Reject]]:
    rejects: dict[int, list[Reject]] = defaultdict(list)
    for request in requests:
        rejects[partition_of(request.key, 4)].append(reject_of(request.key))
    return rejects


def reject_of(key: str) -> Reject:
    return Reject(key, "p", "generate", "context", "too long", 1)


def test_how_a_run_is_carried_out_changes_no_plan(make_config: MakeConfig, tmp_path: Path) -> None:
    save_prompts(tmp_path / "prompts.parquet", [prompt(0)])
    config = make_config()

    def origin(**changes: Any) -> Origin:
        teacher = config.teacher.model_copy(update=changes)
        changed = config.model_copy(update={"teacher": teacher})
        return list_origin(changed, IDENTITY, tmp_path / "prompts.parquet", {})

    more_engines = config.teacher.vllm.model_copy(update={"num_engines": 7})
    assert origin() == origin(vllm=more_engines)
    more_samples = config.teacher.base.model_copy(update={"num_samples": 7})
    assert origin() != origin(base=more_samples)


def test_the_first_sample_has_the_key_of_a_run_without_samples(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    prompts = [prompt(index) for index in range(6)]
    one, _ = plan_of(make_config(), prompts, tmp_path / "one")
    three, _ = plan_of(make_config(base={"num_samples": 3}), prompts, tmp_path / "three")
    first = {request.key for request in load_requests(three.table) if request.sample_index == 0}
    assert first == {request.key for request in load_requests(one.table)}


def test_common_prefixes_are_side_by_side(make_config: MakeConfig, tmp_path: Path) -> None:
    prompts = [prompt(index, words=f"chapter {'abc'[index % 3]} of the book,") for index in range(60)]
    _, rows = plan_of(make_config(), prompts, tmp_path)
    by_partition = defaultdict(list)
    for row in rows:
        chapter = json.loads(row["messages"])[0]["content"][8]
        by_partition[partition_of(row["key"], 4)].append(chapter)
    for chapters in by_partition.values():
        changes = sum(before != after for before, after in itertools.pairwise(chapters))
        assert changes == len(set(chapters)) - 1


def test_rows_may_ask_for_their_own_sampling(make_config: MakeConfig, tmp_path: Path) -> None:
    plain, _ = plan_of(make_config(), [prompt(0)], tmp_path / "plain")
    hot, rows = plan_of(make_config(), [prompt(0, sampling={"temperature": 1.5})], tmp_path / "hot")
    assert load_requests(hot.table)[0].key != load_requests(plain.table)[0].key
    assert json.loads(rows[0]["sampling"]) == {"temperature": 1.5}
    greedy = [prompt(1, sampling={"temperature": 0.0})]
    plan, _ = plan_of(make_config(base={"num_samples": 4}), greedy, tmp_path / "greedy")
    assert plan.num_requests == 1


def test_a_schema_that_the_engine_cannot_force_is_refused_with_its_prompt(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    asked = [prompt(0), prompt(1, sampling={"json_schema": {"type": "object"}})]
    with pytest.raises(DataError, match="fake engine") as caught:
        plan_of(make_config(), asked, tmp_path)
    assert "p001" in caught.value.problems[0].where


@pytest.mark.parametrize(
    ("split", "asked", "drawn"),
    [
        ("train", None, DRAWN),
        ("train", {"temperature": 1.5, "top_k": 0}, Sampling(1.5, 0.95, 0, 16)),
        ("train", {"temperature": 0.0}, Sampling(0.0, 1.0, 0, 16)),
        ("train", {"json_schema": {"b": 1, "a": 2}}, Sampling(0.8, 0.95, 50, 16, '{"a":2,"b":1}')),
    ],
)
def test_row_sampling(split: str, asked: Any, drawn: Sampling) -> None:
    assert row_sampling(DRAWN, split, asked) == drawn


def test_held_out_prompts_stay_greedy(make_config: MakeConfig) -> None:
    config = make_config(base={"num_samples": 3})
    base = sampling_of(config, "eval")
    assert base == Sampling(0.0, 1.0, 0, 16)
    asked = row_sampling(base, "eval", {"temperature": 2.0, "max_new_tokens": 5})
    assert asked == Sampling(0.0, 1.0, 0, 5)
    assert num_samples_of(config, "eval", asked) == 1
    assert num_samples_of(config, "train", sampling_of(config, "train")) == 3


@pytest.mark.parametrize(("capacity", "tail"), [(0, 1), (10, 1), (20, 2), (25, 2), (1000, 5)])
def test_the_tail_is_what_the_engines_hold_at_the_end(capacity: int, tail: int) -> None:
    shards = [Shard("x", 0, index, 10) for index in range(5)]
    marked = mark_tail(shards, capacity)
    assert [shard.in_tail for shard in marked] == [False] * (5 - tail) + [True] * tail
    assert [shard.row_group for shard in marked] == [0, 1, 2, 3, 4]


def test_the_tail_fraction_begins_when_the_engines_are_no_longer_full() -> None:
    import pyarrow as pa

    progress = Progress(total=100, capacity=20)
    for seconds, done in ((1.0, 40), (5.0, 41), (8.0, 10), (10.0, 9)):
        progress.seconds = seconds
        progress.add(pa.table({"done": [done], "rejected": [0], "tokens": [done]}))
    assert progress.tail_fraction == pytest.approx(0.5)
    assert Progress(total=5).tail_fraction == 0.0


def test_a_preview_shows_training_prompts_once_and_always_the_same(tmp_path: Path) -> None:
    requests = [
        Request(f"{index:02d}", f"p{index}", "eval" if index < 3 else "train", index % 2)
        for index in range(12)
    ]
    save_requests(tmp_path / "requests.parquet", requests)
    chosen = choose_requests(tmp_path / "requests.parquet", 3)
    assert [request.key for request in chosen] == ["04", "06", "08"]
    everything = choose_requests(tmp_path / "requests.parquet", 100)
    assert [request.split for request in everything] == ["train"] * 4 + ["eval"] * 2
