"""Shows what each built-in preprocessor makes of a row, by running it."""

import inspect
import json
from collections.abc import Mapping
from typing import Any, Final

from foundry_sdk.data.contract import PreprocessorSpec
from foundry_sdk.plugin.catalog import Catalog

_QUESTION: Final = "What colour is snow?"
_ANSWER: Final = "It is white."
ROWS: Final[Mapping[str, Mapping[str, Any]]] = {
    "AI-MO/NuminaMath-CoT": {
        "problem": "2 + 2?",
        "messages": [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "4"},
        ],
    },
    "HuggingFaceH4/databricks_dolly_15k": {
        "instruction": "Which colour does the text name?",
        "input": "Snow is white.",
        "output": "White.",
    },
    "Muennighoff/P3": {"inputs": _QUESTION, "targets": _ANSWER},
    "Muennighoff/flan": {"inputs": _QUESTION, "targets": _ANSWER},
    "bigscience/P3": {"inputs": "The colour of snow", "targets": "white"},
    "math-ai/StackMathQA": {"Q": "2 + 2?", "A": "4"},
    "multiple_choice": {"query": _QUESTION, "choices": ["black", "white"], "gold": 1},
    "tatsu-lab/alpaca": {
        "text": f"### Instruction:\n{_QUESTION}\n\n### Response:\n{_ANSWER}",
        "output": _ANSWER,
    },
    "teknium/OpenHermes-2.5": {
        "conversations": [
            {"from": "human", "value": _QUESTION},
            {"from": "gpt", "value": _ANSWER},
        ]
    },
}
"""A row of each dataset, by the preprocessor's kind; some with a column that is left out."""


def preprocessor_templates(catalog: Catalog) -> str:
    """Return, for each built-in preprocessor, what it takes, a row and the row's example.

    Raises:
        KeyError: ``ROWS`` has no row for one of them.
    """
    parts = []
    for (family, kind), entry in sorted(catalog.entries.items()):
        if family != PreprocessorSpec.family:
            continue
        summary = inspect.cleandoc(entry.component.__doc__ or "").splitlines()[0]
        component: Any = entry.component
        example = component().build()(ROWS[kind])
        parts.append(f"`{kind}`\n: {summary}\n")
        parts.append(_indented(f"```text\n{json.dumps(ROWS[kind])}\n→\n{_shown(example)}\n```\n"))
    return "\n".join(parts)


def _shown(example: Mapping[str, Any]) -> str:
    """Return an example with line breaks and blanks at an end that can be seen."""
    if "messages" in example:
        return "\n".join(f"{m['role']}: {m['content']}" for m in example["messages"])
    return f"{example['prompt']}⟦{example['response']}⟧"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" if line else "" for line in text.splitlines()) + "\n"
