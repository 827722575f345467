"""The preprocessors that ship with the SDK, under the names of LLM Foundry."""

from collections.abc import Mapping
from typing import Any

from foundry_sdk.data.contract import ChatExample, PromptResponse
from foundry_sdk.data.preprocess import preprocessor

_DOLLY = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
_ROLES = {"human": "user", "gpt": "assistant"}
_BLANKS = (" ", "\n", "\t")


@preprocessor("tatsu-lab/alpaca")
def alpaca(row: Mapping[str, Any]) -> PromptResponse:
    """Column text, cut behind its one '### Response:'."""
    mark = "### Response:"
    parts = row["text"].split(mark)
    if len(parts) != 2:
        raise ValueError(f"expected {mark!r} exactly once in text, found it {len(parts) - 1} times")
    return {"prompt": parts[0] + mark, "response": parts[1]}


@preprocessor("HuggingFaceH4/databricks_dolly_15k")
def dolly(row: Mapping[str, Any]) -> PromptResponse:
    """Columns instruction, input and output, in the template of an instruction and a response."""
    instruction = row["instruction"]
    if row["input"]:
        instruction = f"{instruction}\n{row['input']}"
    return {"prompt": _DOLLY.format(instruction=instruction), "response": row["output"]}


@preprocessor("bigscience/P3")
def p3(row: Mapping[str, Any]) -> PromptResponse:
    """Columns inputs, with a colon behind, and targets."""
    return {"prompt": f"{row['inputs']}:", "response": row["targets"]}


def _spaced(row: Mapping[str, Any]) -> PromptResponse:
    prompt, response = row["inputs"], row["targets"]
    if not prompt.endswith(_BLANKS) and not response.startswith(_BLANKS):
        response = f" {response}"
    return {"prompt": prompt, "response": response}


@preprocessor("Muennighoff/P3")
def muennighoff_p3(row: Mapping[str, Any]) -> PromptResponse:
    """Columns inputs and targets, with a blank between them where there is none."""
    return _spaced(row)


@preprocessor("Muennighoff/flan")
def flan(row: Mapping[str, Any]) -> PromptResponse:
    """Columns inputs and targets, with a blank between them where there is none."""
    return _spaced(row)


@preprocessor("teknium/OpenHermes-2.5")
def open_hermes(row: Mapping[str, Any]) -> ChatExample:
    """Column conversations of {from, value}; human and gpt become user and assistant."""
    return {
        "messages": [
            {"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
            for turn in row["conversations"]
        ]
    }


@preprocessor("math-ai/StackMathQA")
def stack_math_qa(row: Mapping[str, Any]) -> ChatExample:
    """Columns Q and A as a chat of one question and one answer."""
    return {
        "messages": [
            {"role": "user", "content": row["Q"]},
            {"role": "assistant", "content": row["A"]},
        ]
    }


@preprocessor("AI-MO/NuminaMath-CoT")
def numina_math(row: Mapping[str, Any]) -> ChatExample:
    """Column messages alone."""
    return {"messages": row["messages"]}


@preprocessor("multiple_choice")
def multiple_choice(row: Mapping[str, Any]) -> PromptResponse:
    """Columns query, choices and gold, the number of the right choice (ARC and the like)."""
    options = "".join(f"\n - {choice}" for choice in row["choices"])
    return {
        "prompt": f"{row['query']}\nOptions:{options}\nAnswer: ",
        "response": row["choices"][row["gold"]],
    }
