"""What two models answer to the same prompts, and how many answers are functions."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from foundry_sdk.errors import RunError

_NEW_TOKENS: Final = 100
_ASKED: Final = 32
SHOWN: Final = 3


@attrs.frozen(kw_only=True)
class Answer:
    """What was answered to a prompt that neither model has been trained on.

    Attributes:
        prompt: a docstring in the form of the pairs.
        before: greedy continuation by the pretrained model.
        after: the same by the finetuned one.
        original: the response that belongs to it.
    """

    prompt: str
    before: str
    after: str
    original: str


def ask(
    pairs: Sequence[Mapping[str, str]], *, before: str | Path, after: str | Path
) -> tuple[Answer, ...]:
    """Let two runs answer the shortest prompts of ``pairs``.

    Args:
        pairs: with ``prompt`` and ``response``.
        before: folder of a run.
        after: folder of another one.

    Raises:
        RunError: one of them is not.
        CheckpointError: one of them has no whole checkpoint.
    """
    chosen = sorted(pairs, key=lambda pair: (len(pair["prompt"]), pair["prompt"]))[:_ASKED]
    prompts = [pair["prompt"] for pair in chosen]
    return tuple(
        Answer(prompt=pair["prompt"], before=first, after=second, original=pair["response"])
        for pair, first, second in zip(
            chosen, _answers(before, prompts), _answers(after, prompts), strict=True
        )
    )


def is_function(text: str) -> bool:
    """Tell whether ``text`` is one whole Python function, and nothing else."""
    try:
        found = ast.parse(text).body
    except (SyntaxError, ValueError):  # a null byte is a ValueError
        return False
    return len(found) == 1 and isinstance(found[0], ast.FunctionDef | ast.AsyncFunctionDef)


def _answers(run: str | Path, prompts: Sequence[str]) -> list[str]:
    from foundry_sdk.export.trained import load_trained
    from foundry_sdk.models.generation import generate

    trained = load_trained(run)
    if trained.tokenizer is None:
        raise RunError(f"{run}: not the folder of a run: no spec.yaml says which tokenizer it has")
    return generate(trained.model, trained.tokenizer, prompts, max_new_tokens=_NEW_TOKENS)
