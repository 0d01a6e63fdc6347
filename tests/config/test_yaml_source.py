"""The YAML reader: YAML 1.2 scalars, positions, limits, and refusals that say file, line and column."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raystill.config.yaml_source import MAX_BYTES, load_yaml_file, parse_yaml, scalar_of
from raystill.errors import ConfigError


@pytest.fixture(params=["libyaml", "python"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both of PyYAML's parsers: wheels for some platforms come without libyaml."""
    if request.param == "python":
        monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    elif not hasattr(yaml, "CSafeLoader"):
        pytest.skip("PyYAML without libyaml")
    return str(request.param)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("5e-5", 5e-5), ("1E3", 1000.0), ("2.0e-4", 2e-4), (".5", 0.5), ("1.", 1.0),
        ("-1.5", -1.5), ("+7", 7), ("012", 12), ("0o17", 15), ("0x1F", 31),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("off", "off"), ("yes", "yes"), ("On", "On"), ("1_000", "1_000"), ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"), ("0b1", "0b1"), ("e5", "e5"), (".", "."), ("'1'", "1"),
        ('"true"', "true"), ("!!str 5", "5"), ("!!float 3", 3.0),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(parser: str, text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}\n", "x.yaml").plain()["key"]
    assert found == value
    assert type(found) is type(value)


def test_infinity_and_nan_are_read_as_such() -> None:
    assert scalar_of(".inf") == math.inf
    assert scalar_of("-.INF") == -math.inf
    assert math.isnan(float(scalar_of(".nan") or 0.0))


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["{!r}", "{:e}", "{:E}", "{:.3g}"]))
def test_every_way_to_write_a_float_is_a_number(value: float, form: str) -> None:
    text = form.format(value)
    found = scalar_of(text)
    assert isinstance(found, int | float)
    assert found == float(text)


@given(st.integers(min_value=-(10**30), max_value=10**30))
def test_integers_stay_exact(value: int) -> None:
    assert scalar_of(str(value)) == value


def test_a_huge_run_of_digits_is_text_and_no_crash() -> None:
    assert scalar_of("9" * 10_000) == "9" * 10_000


def test_every_value_knows_its_line_and_column(parser: str) -> None:
    tree = parse_yaml("a:\n  b: 1\n  c:\n    - x: 2\n    - |\n      text\n", "f.yaml")
    a = tree.value["a"]  # type: ignore[index, call-overload]
    assert str(a.value["b"].place) == "f.yaml:2:6"
    assert str(a.key_places["c"]) == "f.yaml:3:3"
    assert str(a.value["c"].value[0].value["x"].place) == "f.yaml:4:10"
    assert a.value["c"].value[1].value == "text\n"


def test_aliases_are_read_within_limits(parser: str) -> None:
    tree = parse_yaml("base: &b {x: 1}\ncopy: *b\n", "f.yaml")
    assert tree.plain() == {"base": {"x": 1}, "copy": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "what", "place"),
    [
        ("a:\n\t b: 1\n", "syntax", "f.yaml:2:1"),
        ("a: b: c\n", "mapping values", "f.yaml:1:5"),
        ("a: [1,\n", "syntax", "f.yaml:1:7"),
        ("a: 1\nb: 2\na: 3\n", "given twice", "f.yaml:3:1"),
        ("a:\n  x: 1\n  x: 1\n", "given twice", "f.yaml:3:3"),
        ("a: !!python/object/apply:os.system ['true']\n", "!!python/object/apply:os.system", "f.yaml:1:4"),
        ("a: !Custom x\n", "!Custom", "f.yaml:1:4"),
        ("a: !!str [1]\n", "!!str", "f.yaml:1:4"),
        ("a: *nobody\n", "no anchor", "f.yaml:1:4"),
        ("a: &x [*x]\n", "no anchor", "f.yaml:1:8"),
        ("a: 1\n---\nb: 2\n", "second YAML document", "f.yaml:2:1"),
        ("? [a]\n: 1\n", "can't be a key", "f.yaml:1:3"),
        ("1: x\n", "can't be a key", "f.yaml:1:1"),
        ("<<: {a: 1}\n", "merge keys", "f.yaml:1:1"),
        ("a: @x\n", "syntax", "f.yaml:1:4"),
        ("a: !!int x\n", "not a !!int", "f.yaml:1:4"),
        ('a: "\\0"\n', "U+0000", "f.yaml:1:4"),
        ("a: b\x07\n", "U+0007", "f.yaml:1:5"),
        ("- 1\n", "a list", "f.yaml:1:1"),
        ("just text\n", "a single value", "f.yaml:1:1"),
        ("[" * 200, "deeper than 64", "f.yaml:1:65"),
        ("a: 'sk-abcdefghijklmnopqrstuvwxyz\n", "sk-***", "f.yaml:1:4"),
    ],
)
def test_what_is_refused_says_where_and_how_to_repair(
    parser: str, text: str, what: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_yaml_file("f.yaml")
    problem = caught.value.problems[0]
    assert what in problem.what
    assert problem.where.startswith(place)
    assert problem.fix
    assert "abcdefghijkl" not in str(caught.value)


def test_a_syntax_error_shows_the_line_with_a_caret(parser: str) -> None:
    """I1."""
    with pytest.raises(ConfigError, match=r"2 \| b: c: d\n +\^"):
        parse_yaml("a: 1\nb: c: d\n", "f.yaml")


def test_tabs_are_named(parser: str) -> None:
    """I1."""
    with pytest.raises(ConfigError) as caught:
        parse_yaml("a:\n\tb: 1\n", "f.yaml")
    assert "spaces" in caught.value.problems[0].fix


def test_an_alias_bomb_is_refused_at_once(parser: str) -> None:
    """I5."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(ConfigError, match="aliases"):
        parse_yaml("\n".join(lines), "bomb.yaml")


@pytest.mark.parametrize("content", [b"", b"# only a comment\n", b"---\n", b"\xef\xbb\xbf", b"null\n"])
def test_an_empty_file_is_an_empty_configuration(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "empty.yaml"
    path.write_bytes(content)
    assert load_yaml_file(path).plain() == {}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbfrun: {seed: 1}\r\n")
    assert load_yaml_file(path).plain() == {"run": {"seed": 1}}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"a: \xff\n", "not UTF-8"),
        ("a: 1\n".encode("utf-16"), "not UTF-8"),
        (b"a: \x00\n", "U+0000"),
        (b"#" * (MAX_BYTES + 1), "larger than 2 MiB"),
    ],
)
def test_files_that_are_no_text_or_too_large(tmp_path: Path, content: bytes, what: str) -> None:
    """I5."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml") as caught:
        load_yaml_file(path)
    assert what in caught.value.what
    assert caught.value.problems[0].fix


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "kd_recipe.yaml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"did you mean .*kd_recipe\.yaml"):
        load_yaml_file(tmp_path / "kd_recpie.yaml")


@pytest.mark.parametrize("name", ["", ".", "a\0b", "x" * 5000])
def test_names_that_are_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        load_yaml_file(name)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_yaml(text, "any.yaml")
    except ConfigError as error:
        assert error.problems[0].where.startswith("any.yaml")
