"""HTML and SVG as values that can't be unsafe: text is escaped unless it was built here.

`tag` escapes every child that is a plain string and every attribute value, so text from data can only ever be
text. Characters that would act instead of being seen (escape sequences, direction overrides, lone surrogates)
are replaced by visible ones.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping

_VOID = {"meta", "br", "hr", "path", "line", "circle", "rect", "polyline", "polygon"}
_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9:-]*$")
# C0 but tab and newline, DEL and C1; direction overrides and isolates; zero-width marks; surrogates.
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ufffe\uffff]"
)
# Nothing in a report may lead anywhere or run: these attributes are never written.
_FORBIDDEN_ATTRIBUTES = {"href", "src", "srcset", "style", "action", "srcdoc"}


class Html(str):
    """Markup that `tag` or `join` built. Anything else is text and gets escaped."""

    __slots__ = ()


Child = Html | str | None


def visible(text: str) -> str:
    """`text` with acting characters made visible: ESC becomes ‹U+001B›."""
    return _ACTING.sub(_show, text)


def escape(text: str) -> Html:
    """`text` as inert HTML."""
    return Html(html.escape(visible(text), quote=True))


def tag(name: str, attributes: Mapping[str, object] | None = None, /, *children: Child) -> Html:
    """One element. Attributes whose value is None are left out; numbers are written with few digits.

    Raises ValueError for a name that isn't one, and for attributes that load, link, style or run.
    """
    written = []
    for key, value in (attributes or {}).items():
        if not _NAME.match(key) or key in _FORBIDDEN_ATTRIBUTES or key.lower().startswith("on"):
            raise ValueError(f"attribute {key!r} has no place in a report")
        if value is not None:
            written.append(
                f' {key}="{escape(format_number(value) if isinstance(value, float) else str(value))}"'
            )
    if not _NAME.match(name) or name in ("script", "iframe", "object", "embed", "link", "img"):
        raise ValueError(f"element {name!r} has no place in a report")
    opening = f"<{name}{''.join(written)}>"
    if name in _VOID and not children:
        return Html(opening if name in ("meta", "br", "hr") else f"{opening[:-1]}/>")
    return Html(f"{opening}{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Children one after the other; None is nothing."""
    return Html(
        "".join(
            child if isinstance(child, Html) else escape(child) for child in children if child is not None
        )
    )


def format_number(value: float) -> str:
    """A coordinate: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _show(match: re.Match[str]) -> str:
    return f"\u2039U+{ord(match.group()):04X}\u203a"
