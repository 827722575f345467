"""Files, overrides and interpolation."""

from itertools import pairwise
from pathlib import Path

import pytest

from foundry_sdk.errors import SpecError
from foundry_sdk.specs.document import from_values, load
from foundry_sdk.specs.places import dotted


def written(tmp_path: Path, text: str | bytes, name: str = "run.yaml") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_values_and_places(tmp_path: Path) -> None:
    path = written(tmp_path, "a: 1\nb:\n  c: [x, y]\n")
    document = load(path)
    assert document.values == {"a": 1, "b": {"c": ["x", "y"]}}
    assert document.where(("b", "c", 1)) == f"{path}:3"
    assert document.where(("b", "missing", "below")) == f"{path}:2"
    assert document.where(("missing",)) == str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; a spec needs at least model"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "expected a mapping (key: value) at the top, got a list"),
        ("hello", "expected a mapping (key: value) at the top, got 'hello'"),
        ("a: [1\n", "run.yaml:2:1: bad YAML"),
        ("a:\n\tb: 1", "run.yaml:2:1: bad YAML: a tab"),
        ("a: 1\na: 2", "run.yaml:2: key 'a' is given twice: lines 1 and 2"),
        (b"a: 1\nb: caf\xe9\n", "run.yaml:2: byte 11 (0xe9) is not UTF-8"),
    ],
)
def test_what_is_no_spec_file(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(written(tmp_path, text))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert load(written(tmp_path, b"\xef\xbb\xbfa: 1\n")).values == {"a": 1}


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    written(tmp_path, "a: 1", "pretrain.yaml")
    with pytest.raises(SpecError, match=r"no such file \(looked from .*did you mean '.*pretrain"):
        load(tmp_path / "pretain.yaml")
    with pytest.raises(SpecError, match="is a directory"):
        load(tmp_path)
    with pytest.raises(SpecError, match="cannot be read"):
        load("a\0b")


def test_a_file_that_is_far_too_large_is_not_parsed(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="larger than 4000000 bytes"):
        load(written(tmp_path, b"#" * 4_000_001))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=2", {"a": 2}),
        ("a=1e-4", {"a": 1e-4}),
        ("a=on", {"a": "on"}),
        ("a='1'", {"a": "1"}),
        ("a=", {"a": None}),
        ("a=x=y", {"a": "x=y"}),
        ("a=s3://bucket/key", {"a": "s3://bucket/key"}),
        ("m.k=[0.9, 0.95]", {"m": {"k": [0.9, 0.95], "l": 1}}),
        ("m={k: 2}", {"m": {"k": 2, "l": 1}}),
        ("m=null", {"m": None}),
        ("new.deep.key=v", {"new": {"deep": {"key": "v"}}}),
        ("empty.key=v", {"empty": {"key": "v"}}),
        ("list.1=z", {"list": ["x", "z"]}),
        ("list[0]=z", {"list": ["z", "y"]}),
        ("rows.0.a=5", {"rows": [{"a": 5}]}),
        ("a=${m.l}", {"a": 1}),
    ],
)
def test_an_override_is_like_a_line_of_the_file(
    tmp_path: Path, override: str, expected: dict[str, object]
) -> None:
    text = "a: 1\nm: {k: 1, l: 1}\nempty:\nlist: [x, y]\nrows:\n- a: 1\n"
    before = load(written(tmp_path, text)).values
    document = load(written(tmp_path, text), [override])
    assert document.values == {**before, **expected}
    steps = override.partition("=")[0].replace("[", ".").replace("]", "").split(".")
    path = tuple(int(step) if step.isdigit() else step for step in steps)
    if path != ("m",) or "null" in override:
        assert document.where(path) == f"override {override!r}"


def test_the_place_of_a_merged_override_is_that_of_its_keys(tmp_path: Path) -> None:
    path = written(tmp_path, "m:\n  k: 1\n  l: 1\n")
    document = load(path, ["m={k: 2}"])
    assert document.where(("m", "k")) == "override 'm={k: 2}'"
    assert document.where(("m", "l")) == f"{path}:3"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "override 'a': expected key=value"),
        ("=1", "override '=1': expected a dotted path before '='"),
        ("m..k=1", "expected a dotted path before '='"),
        ("a.b=1", "override 'a.b=1': a is 1, so there is nothing below it to set"),
        ("list.x=1", "list is a list: 'x' must be an index"),
        ("list.7=1", "list has 2 items (0 to 1), no 7"),
        ("a=@x", "needs quotes"),
        ("a=[1", "override 'a=[1': bad YAML"),
        ("a=!!python/name:os.system x", "tag refused"),
    ],
)
def test_an_override_that_does_not_fit(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(written(tmp_path, "a: 1\nm: {k: 1}\nlist: [x, y]\n"), [override])
    assert message in str(caught.value)


def test_all_bad_overrides_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(written(tmp_path, "a: 1\n"), ["x", "a.b=1", "y"])
    assert len(str(caught.value).splitlines()) == 3


def test_a_reference_takes_the_type_of_what_it_names() -> None:
    values = {
        "variables": {"lr": 1e-4, "on": True, "list": [1, {"k": "${lr}"}], "deep": {"x": 1}},
        "max_seq_len": 2048,
        "a": "${variables.lr}",
        "b": "${on}",
        "c": "${variables.list}",
        "d": "${max_seq_len}",
        "e": "${list[1].k}",
        "f": "${variables.deep}",
        "n": "${none}",
        "none": None,
    }
    filled = from_values(values).values
    assert filled["a"] == 1e-4
    assert filled["b"] is True
    assert filled["c"] == [1, {"k": 1e-4}]
    assert filled["d"] == 2048
    assert filled["e"] == 1e-4
    assert filled["f"] == {"x": 1}
    assert filled["n"] is None


def test_a_reference_inside_a_text_is_written_into_it() -> None:
    values = {
        "variables": {"root": "/data", "n": 3, "yes": True},
        "a": "${root}/c4-${n}-${yes}",
        "escaped": "\\${root} costs $5",
    }
    filled = from_values(values).values
    assert filled["a"] == "/data/c4-3-true"
    assert filled["escaped"] == "${root} costs $5"


def test_the_root_comes_before_the_variables() -> None:
    assert from_values({"variables": {"x": 1}, "x": 2, "a": "${x}"}).values["a"] == 2


def test_filled_in_mappings_are_copies() -> None:
    filled = from_values({"a": {"k": [1]}, "b": "${a}", "c": "${a}"}).values
    filled["b"]["k"].append(2)
    assert filled["a"] == filled["c"] == {"k": [1]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: ${b}",
            "a: ${b} names nothing in this document; set it under 'variables' (run.yaml:1)",
        ),
        ("variables: {seed: 1}\na: ${sed}", "did you mean ${seed}? (run.yaml:2)"),
        ("a: ${b}\nb: ${c}\nc: ${a}", "a: ${...} go round in a circle: b -> c -> a -> b"),
        ("a: x${a}", "in a circle: a -> a"),
        ("a: ${oc.env:HOME}", "${oc.env:HOME}: resolvers are not supported"),
        ("a: ${HOME}", "${HOME} names nothing"),
        ("a: x${b\nb: 1", "'${' without its '}'"),
        ("a: ${x${b}}\nb: 1", "'${' without its '}'"),
        ("a: x${b}\nb: {c: 1}", "${b} is a mapping, which cannot be part of a text"),
    ],
)
def test_what_cannot_be_filled_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        load("run.yaml")
    assert message in str(caught.value)


def test_every_reference_that_names_nothing_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(written(tmp_path, "a: ${x}\nb:\n- ${y}\n"))
    first, second = str(caught.value).splitlines()
    assert first.startswith("a: ${x}")
    assert second.startswith("b[0]: ${y}")
    assert second.endswith("run.yaml:3)")


@pytest.mark.parametrize("piece", ["${b}${b}", '["${b}", "${b}"]'])
def test_references_that_grow_without_end_hit_a_limit(tmp_path: Path, piece: str) -> None:
    names = [chr(code) for code in range(ord("a"), ord("z"))]
    lines = [f"{a}: {piece.replace('b', b)}" for a, b in pairwise(names)]
    text = "\n".join([*lines, f"{names[-1]}: {'x' * 100}"])
    with pytest.raises(SpecError, match="expansion limit"):
        load(written(tmp_path, text))


def test_dotted_paths() -> None:
    assert dotted(("a", "b", 0, "c")) == "a.b[0].c"
    assert dotted((0,)) == "[0]"
