"""Lines of logs without the secrets that they may quote: addresses with keys, commands, errors."""

import logging

from foundry_sdk.runs.redact import redact_text


class WithoutSecrets(logging.Formatter):
    """Formats a line, its traceback included, and takes out what ``redact`` knows as a secret."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return redact_text(super().format(record))
