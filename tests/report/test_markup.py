"""Whatever text goes in, only text comes out."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.report.markup import Html, escape, join, tag, visible


class Collector(HTMLParser):
    """Elements, attributes and text as a browser would see them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(markup: str) -> Collector:
    collector = Collector()
    collector.feed(markup)
    collector.close()
    return collector


@given(text=st.text() | st.text(alphabet="<>&\"'/!-=` sclript\x1b\u202e\ud800", max_size=40))
def test_text_stays_text_in_content_and_attributes(text: str) -> None:
    """I38."""
    page = parse(tag("p", {"title": text}, text))
    assert page.elements == [("p", {"title": visible(text)})]
    assert page.text == visible(text)
    visible(text).encode("utf-8")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", "\u2039U+001B\u203a[31mred"),
        ("a\u202eb", "a\u2039U+202E\u203ab"),
        ("a\u200bb", "a\u2039U+200B\u203ab"),
        ("\ud83d", "\u2039U+D83D\u203a"),
        ("\x00\r", "\u2039U+0000\u203a\u2039U+000D\u203a"),
        ("tab\tline\nend é 漢 😀", "tab\tline\nend é 漢 😀"),
    ],
)
def test_acting_characters_become_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize("name", ["href", "src", "style", "onload", "ONCLICK", "x y", "a=b", ""])
def test_attributes_that_act_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        tag("p", {name: "x"})


@pytest.mark.parametrize("name", ["script", "iframe", "img", "link", "p><script", ""])
def test_elements_that_act_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        tag(name)


def test_built_markup_nests_and_plain_strings_do_not() -> None:
    assert tag("p", {}, tag("b", {}, "x"), "<b>") == "<p><b>x</b>&lt;b&gt;</p>"
    assert join([None, "a", Html("<hr>")]) == "a<hr>"
    assert escape("'\"") == "&#x27;&quot;"
    assert tag("circle", {"r": 2.50001, "fill": None}) == '<circle r="2.5"/>'
