"""``code_instruct``: a row with Python source becomes one prompt and one response."""

from collections.abc import Mapping
from typing import Any, Final

import attrs

from foundry_sdk.data.contract import Preprocess, PreprocessorSpec, PromptResponse
from foundry_sdk.errors import DataError
from foundry_sdk_code_instruct.functions import DocumentedFunction, documented_functions

TEMPLATE: Final = "Write a Python function.\n\n{docstring}\n\n### Code\n"
COLUMNS: Final = ("source", "text")
_SHOWN: Final = 200


def _with_docstring(_: object, attribute: "attrs.Attribute[Any]", value: str) -> None:
    if "{docstring}" not in value:
        raise ValueError(f"{attribute.name} must have {{docstring}} in it, got {value!r}")


@attrs.frozen(kw_only=True)
class CodeInstructSpec(PreprocessorSpec):
    """The docstring of a Python function is the prompt, its code the response.

    A row has a column ``source`` or ``text`` with a function or a module; of several functions
    the first one that has a docstring is taken.

    Attributes:
        template: of the prompt; ``{docstring}`` and ``{name}`` are replaced.
        methods: take methods of classes too.
    """

    kind = "code_instruct"
    template: str = attrs.field(default=TEMPLATE, validator=_with_docstring)
    methods: bool = False

    def build(self) -> Preprocess:
        """Return the function that is mapped over rows."""
        return CodeInstruct(template=self.template, methods=self.methods)


@attrs.frozen(kw_only=True)
class CodeInstruct:
    """Makes a prompt and a response of a row. Fields are those of ``CodeInstructSpec``."""

    template: str
    methods: bool

    def __call__(self, row: Mapping[str, Any]) -> PromptResponse:
        """Return the example.

        Raises:
            DataError: there is no source, it is no Python, or no function has a docstring.
        """
        present = [name for name in COLUMNS if isinstance(row.get(name), str)]
        if not present:
            raise DataError(
                f"code_instruct: expected Python source in a column {' or '.join(COLUMNS)}, "
                f"found {', '.join(row) or 'no column'}"
            )
        source = row[present[0]]
        try:
            function = next(documented_functions(source, methods=self.methods), None)
        except (SyntaxError, ValueError) as error:
            raise DataError(
                f"code_instruct: {present[0]} is no Python ({error}): {source[:_SHOWN]!r}"
            ) from error
        if function is None:
            raise DataError(
                "code_instruct: no function with a docstring and code of its own in "
                f"{source[:_SHOWN]!r}"
            )
        return example_of(function, self.template)


def example_of(function: DocumentedFunction, template: str = TEMPLATE) -> PromptResponse:
    """Return the prompt and response that a function gives."""
    prompt = template.replace("{name}", function.name)
    return {
        "prompt": prompt.replace("{docstring}", function.docstring),
        "response": function.code,
    }
