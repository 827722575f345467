"""Rows that carry a chat among other columns → the chat."""

from collections.abc import Mapping
from typing import Any


def messages(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the example of a row with ``messages``, each with a role and its content."""
    return {"messages": row["messages"]}
