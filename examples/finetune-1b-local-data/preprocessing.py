"""Rows of questions and answers → what is read, and what is learned."""

from collections.abc import Mapping
from typing import Any


def question_and_answer(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the example of a row with ``question`` and ``answer``; other columns are left out."""
    return {"prompt": f"Question: {row['question']}\nAnswer: ", "response": row["answer"]}
