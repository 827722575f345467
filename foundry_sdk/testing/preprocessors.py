"""Checks of preprocessors: a row gives a valid example, and a wrong row is refused."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

from foundry_sdk.data.contract import PreprocessorSpec
from foundry_sdk.errors import FoundryError
from foundry_sdk.testing.failure import ConformanceError, expect, name_of, through_pickle

Row = Mapping[str, Any]
_REFUSALS: Final = (FoundryError, LookupError, TypeError, ValueError, AttributeError)
_UNKNOWN: Final = {"a column that no dataset has": 1}
_PAIR: Final = {"prompt", "response"}


def check_preprocessor(spec: PreprocessorSpec, row: Row, wrong_rows: Sequence[Row]) -> None:
    """Check that rows become examples, always the same ones, in any process.

    Raises:
        ConformanceError: something is not so.
    """
    kept, given = (copy.deepcopy(dict(row)) for _ in range(2))
    example = spec.build()(given)
    _check_example(spec, example)
    expect(given == kept, spec, "it changes the row that it is given; build a new mapping instead")
    again = spec.build()(copy.deepcopy(kept))
    expect(
        again == example,
        spec,
        f"the same row gives {example!r} and then {again!r}; what it returns may depend on the "
        "row alone",
    )
    elsewhere = through_pickle(spec, spec).build()(kept)
    expect(elsewhere == example, spec, "built in another process, it gives another example")
    for wrong in (_UNKNOWN, *wrong_rows):
        _check_refusal(spec, wrong)


def _check_refusal(spec: PreprocessorSpec, wrong: Row) -> None:
    try:
        example = spec.build()(copy.deepcopy(dict(wrong)))
    except _REFUSALS:
        return
    raise ConformanceError(
        f"{name_of(spec)}: it makes {example!r} of the wrong row {dict(wrong)!r}; raise a "
        "DataError that names the columns it needs"
    )


def _check_example(spec: PreprocessorSpec, example: object) -> None:
    expect(
        isinstance(example, Mapping),
        spec,
        f"return a dict with prompt and response, or with messages; got {example!r}",
    )
    values: Mapping[str, Any] = example  # type: ignore[assignment]  # checked above
    keys = set(values)
    expect(
        keys in (_PAIR, {"messages"}),
        spec,
        f"an example has the keys prompt and response, or messages alone; got {sorted(keys)}",
    )
    if keys == _PAIR:
        for key in sorted(_PAIR):
            expect(
                isinstance(values[key], str),
                spec,
                f"{key} must be text, got {type(values[key]).__name__}",
            )
            expect(values[key], spec, f"{key} is empty; there is nothing to read or to learn from")
        return
    messages = values["messages"]
    expect(
        isinstance(messages, Sequence) and not isinstance(messages, str) and len(messages) >= 2,
        spec,
        f"messages must be a list of at least two, got {messages!r}",
    )
    for number, message in enumerate(messages):
        fine = isinstance(message, Mapping) and all(
            isinstance(message.get(key), str) for key in ("role", "content")
        )
        expect(fine, spec, f"messages[{number}] must have role and content, got {message!r}")
    expect(
        messages[-1]["role"] == "assistant",
        spec,
        f"the last message is of {messages[-1]['role']!r}; what is learned is an assistant's",
    )
