"""The page: complete, standing alone, inert whatever the data say, useful when half the run is missing."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from raystill.config.schema import Config
from raystill.report.build import build_report
from raystill.report.facts import choose_samples, load_curve
from raystill.report.sweep_facts import SweepFacts, SweepTrial
from raystill.run.paths import STAGE_NAMES, RunPaths
from raystill.run.publish import write_json
from raystill.run.sweep_paths import SweepPaths

HOSTILE = (
    "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)><style>*{display:none}</style>"
    "![shot](http://evil.example/a.png) [link](javascript:alert(3)) <a href='file:///etc/passwd'>x</a>"
    "\x1b[31mred\x1b[0m \u202eevil\u202c <!-- --> ]]> \" ' &lt;"
)
ACTIVE = {
    "script",
    "iframe",
    "img",
    "object",
    "embed",
    "link",
    "a",
    "form",
    "input",
    "video",
    "base",
    "image",
    "use",
}


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    path = Path(__file__).parent.parent / "finished_run.py"
    spec = importlib.util.spec_from_file_location("finished_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["finished_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def finished(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, RunPaths]:
    built: tuple[Config, RunPaths] = builder.build_finished_run(
        tmp_path_factory.mktemp("finished"), num_train=60, num_eval=60
    )
    return built


class Page(HTMLParser):
    """What a browser would make of the page; raises if elements do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br", "hr"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data


def read(path: Path) -> tuple[str, Page]:
    text = path.read_bytes().decode("utf-8")
    return text, Page(text)


def assert_stands_alone(text: str, page: Page) -> None:
    assert ACTIVE.isdisjoint(page.names)
    names = {name.lower() for name, _ in page.attributes}
    assert names.isdisjoint({"href", "src", "srcset", "style", "action", "xlink:href", "data", "poster"})
    assert not any(name.startswith("on") for name in names)
    for name, value in page.attributes:
        assert "://" not in (value or ""), (name, value)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    (policy,) = [
        value for name, value in page.attributes if name == "content" and "default-src" in (value or "")
    ]
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_every_section_is_there_and_says_the_numbers(finished: tuple[Config, RunPaths]) -> None:
    config, paths = finished
    text, page = read(build_report(paths, config))
    assert_stands_alone(text, page)
    headings = [
        "The gap",
        "Side by side",
        "Training",
        "Data",
        "Curation",
        "Teacher signals",
        "Time",
        "Export",
        "Reproduce",
    ]
    assert re.findall(r"<h2>(.*?)</h2>", text) == headings
    for wanted in (
        "of the gap between the untrained student and its teacher is closed in exact match",
        "60 held-out prompts",
        "Student after KD",
        "valid tool JSON",
        "all 20 greedy completions are equal, token for token".capitalize(),
        "raystill run --config resolved.yaml",
        "over_length",
        "engine_aborted",
        "logprobs per token",
        "Gradient norm",
        "1 min 38 s",
        "7 (5.8 % of all)",
        "personal data, redact",
    ):
        assert wanted in page.text, wanted


def test_the_plan_stands_beside_what_happened(finished: tuple[Config, RunPaths]) -> None:
    config, paths = finished
    paths.forecast.parent.mkdir(exist_ok=True)
    expected = {"distill": {"seconds": 161.0, "tokens": 12345, "disk_bytes": 7_800_000}}
    write_json(paths.forecast, expected)
    _, page = read(build_report(paths, config))
    paths.forecast.unlink()
    for wanted in ("planned time", "2 min 41 s", "12,345", "7.8 MB"):
        assert wanted in page.text, wanted


def test_sweeps_over_the_run_are_shown_with_their_pictures(finished: tuple[Config, RunPaths]) -> None:
    """I38: names and values of a sweep are text."""
    config, paths = finished
    sweep = SweepPaths.of(paths, "s")
    sweep.root.mkdir(parents=True)
    write_json(sweep.record, {})
    trials = [
        SweepTrial(
            n, "complete", 1.0 / (n + 1), {"a.rate": 0.1 * n, "word": HOSTILE}, [(1, 2.0), (2, 1.0)], 3.0, ""
        )
        for n in range(4)
    ]
    facts = SweepFacts(HOSTILE, "eval/ce", "min", trials, 3, [("0.25", "best eval/ce", "")], "raystill run")
    write_json(sweep.page_facts, facts.to_json())
    text, page = read(build_report(paths, config))
    shutil.rmtree(sweep.root.parent)
    assert_stands_alone(text, page)
    for wanted in ("Sweep: ", "Values and results", "What mattered", "3 (best)", "best eval/ce"):
        assert wanted in page.text, wanted


def test_every_drawing_has_a_name_for_screen_readers(finished: tuple[Config, RunPaths]) -> None:
    config, paths = finished
    text, _ = read(build_report(paths, config))
    for drawing in re.findall(r"<svg[^>]*>.*?</svg>", text, re.DOTALL):
        opening = drawing[: drawing.index(">")]
        assert "aria-label=" in opening or "<title>" in drawing or 'aria-hidden="true"' in opening


def test_hostile_text_is_inert(builder: ModuleType, tmp_path: Path) -> None:
    """I38: markup, links to files and pages, and escapes in a teacher's text."""
    config, paths = builder.build_finished_run(tmp_path, num_train=10, num_eval=30, hostile=HOSTILE)
    text, page = read(build_report(paths, config))
    assert_stands_alone(text, page)
    assert "<script>alert(1)</script>" in page.text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\u2039U+001B\u203a[31mred" in page.text


def test_without_right_answers_the_distance_leads(builder: ModuleType, tmp_path: Path) -> None:
    config, paths = builder.build_finished_run(tmp_path, num_train=10, num_eval=30, text_only=True)
    text, page = read(build_report(paths, config))
    assert_stands_alone(text, page)
    assert "is closed in KL to the teacher" in page.text
    assert "exact match" not in page.text


@pytest.mark.parametrize("complete", range(len(STAGE_NAMES) + 1))
def test_it_works_from_whatever_is_complete(
    finished: tuple[Config, RunPaths], tmp_path: Path, complete: int
) -> None:
    config, paths = finished
    shutil.copytree(paths.root, tmp_path / config.run.name)
    section = config.run.model_copy(update={"dir": str(tmp_path)})
    config = config.model_copy(update={"run": section})
    paths = RunPaths.from_config(config)
    for stage in STAGE_NAMES[complete:]:
        shutil.rmtree(paths.stage_dir(stage), ignore_errors=True)  # this run grades nothing
    text, page = read(build_report(paths, config))
    assert_stands_alone(text, page)
    assert "Reproduce" in page.text
    assert ("Not evaluated yet" in page.text) == (complete <= STAGE_NAMES.index("evaluate"))


def test_a_damaged_store_costs_its_sections_only(finished: tuple[Config, RunPaths], tmp_path: Path) -> None:
    config, paths = finished
    shutil.copytree(paths.root, tmp_path / config.run.name)
    section = config.run.model_copy(update={"dir": str(tmp_path)})
    config = config.model_copy(update={"run": section})
    paths = RunPaths.from_config(config)
    part = next((paths.store / "partitions").rglob("*.parquet"))
    part.write_bytes(b"damaged")
    text, page = read(build_report(paths, config))
    assert_stands_alone(text, page)
    assert "can't be read" in page.text
    assert "The gap" in page.text
    assert "Teacher signals" not in page.text


def test_samples_take_turns_and_do_not_depend_on_verdicts() -> None:
    rows: list[dict[str, Any]] = [
        {"prompt_id": f"p{i}", "task": "exact" if i < 20 else "tool_call", "ok": i % 2} for i in range(25)
    ]
    chosen = choose_samples(rows, 8)
    assert [row["task"] for row in chosen] == ["exact", "tool_call"] * 4
    turned = [{**row, "ok": 1 - row["ok"]} for row in reversed(rows)]
    assert [row["prompt_id"] for row in choose_samples(turned, 8)] == [row["prompt_id"] for row in chosen]
    assert len(choose_samples(rows, 100)) == 25
    assert choose_samples([], 8) == []


def test_cut_off_metric_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 2.0}\n[1]\n{"step": "x"}\n{"step": 2, "tra', encoding="utf-8")
    assert load_curve(path) == [{"step": 1, "train/loss": 2.0}]
    assert load_curve(tmp_path / "missing") == []
