"""Questions with several choices → a prompt that lists them, and the right one as response."""

from collections.abc import Mapping
from typing import Any


def multiple_choice(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the example of a row with ``query``, ``choices`` and ``gold``."""
    options = "".join(f"\n - {choice}" for choice in row["choices"])
    return {
        "prompt": f"{row['query']}\nOptions:{options}\nAnswer: ",
        "response": row["choices"][row["gold"]],
    }
