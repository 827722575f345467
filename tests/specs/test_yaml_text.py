"""YAML 1.2 scalars, refusals and limits."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry_sdk.specs.yaml_text import YamlError, parse, scalar
from foundry_sdk.specs.yaml_writer import dump


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("6.0e-4", 6e-4),
        (".5", 0.5),
        ("-3.", -3.0),
        ("+12", 12),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("true", True),
        ("FALSE", False),
        ("tRue", "tRue"),
        ("~", None),
        ("", None),
        ("null", None),
        ("-.inf", -math.inf),
        ("1_000", "1_000"),
        ("2026-11-24", "2026-11-24"),
        ("1.2.3", "1.2.3"),
        ("100ba", "100ba"),
        ("e5", "e5"),
    ],
)
def test_plain_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = scalar(text)
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(scalar(".nan"))  # type: ignore[arg-type]


def test_quoted_scalars_are_texts() -> None:
    assert parse("a: '1'\nb: \"true\"\nc: |\n  1\n").values == {"a": "1", "b": "true", "c": "1\n"}


def test_each_key_and_item_has_its_line() -> None:
    parsed = parse("a:\n  b: 1\n\n  c:\n  - x\n  - y: 2\n")
    assert parsed.lines == {
        (): 1,
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 4,
        ("a", "c", 0): 5,
        ("a", "c", 1): 6,
        ("a", "c", 1, "y"): 6,
    }


def test_merge_keys_give_way_to_own_and_to_earlier_ones() -> None:
    text = "one: &one {a: 1, b: 1}\ntwo: &two {b: 2, c: 2}\nall:\n  <<: [*one, *two]\n  a: 0\n"
    parsed = parse(text)
    assert parsed.values["all"] == {"a": 0, "b": 1, "c": 2}
    assert parsed.lines["all", "c"] == 2


def test_aliases_are_copies() -> None:
    values = parse("a: &x {k: [1]}\nb: *x\n").values
    values["a"]["k"].append(2)
    assert values["b"] == {"k": [1]}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 20)
)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("a: [1\nb: 2", "bad YAML: ", 2),
        ("a: b: c", "mapping values are not allowed here", 1),
        ("a:\n\tb: 1", "a tab where YAML wants spaces", 2),
        ("a: 1\nb: 2\na: 3", "key 'a' is given twice: lines 1 and 3", 3),
        ("a:\n  x: 1\n  x: 2", "key 'x' is given twice: lines 2 and 3", 3),
        ("a: !!python/object/apply:os.system [ls]", "tag refused: !!python/object/apply:os", 1),
        ("a: !include x.yaml", "tag refused: !include", 1),
        ("a: !!int x", "'x' is no int", 1),
        ("a: 1\n---\nb: 2", "a second document begins here", 2),
        ("a: *x", "alias *x has no anchor before it", 1),
        ("a: &a [*a]", "alias *a has no anchor before it", 1),
        ("? [a, b]\n: c", "a key must be a name", 1),
        ("a:\n  <<: 3", "<<: takes a mapping", 2),
        ("[" * 3000, "nested deeper than 64 levels", 1),
        (BOMB, "expansion limit", None),
        (MERGE_BOMB, "expansion limit", None),
        ("a: \x00", "special characters are not allowed", None),
    ],
)
def test_what_is_no_such_yaml_is_refused_with_its_line(
    text: str, message: str, line: int | None
) -> None:
    with pytest.raises(YamlError) as caught:
        parse(text)
    assert message in caught.value.message
    assert line is None or caught.value.line == line


def test_core_tags_say_what_they_say() -> None:
    assert parse("a: !!str 5\nb: !!float 3\nc: !!map {}\n").values == {"a": "5", "b": 3.0, "c": {}}


KEYS = st.text(max_size=60)  # YAML's simple keys end at 1024 characters


def plain(*, infinity: bool) -> st.SearchStrategy[dict[str, object]]:
    numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=infinity)
    values = st.recursive(
        st.none() | st.booleans() | numbers | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    )
    return st.dictionaries(KEYS, values, max_size=4)


@given(plain(infinity=False))
def test_json_is_read_as_json(values: dict[str, object]) -> None:
    """JSON is YAML 1.2: an independent writer, read back."""
    assert parse(json.dumps(values)).values == values


@given(plain(infinity=True))
def test_what_is_written_is_read_back(values: dict[str, object]) -> None:
    assert parse(dump(values)).values == values
