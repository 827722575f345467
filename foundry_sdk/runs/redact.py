"""Takes secrets out of whatever is written, shown or sent: specs, commands, logs, messages."""

import os
import re
from collections.abc import Mapping
from typing import Any, Final

REDACTED: Final = "<redacted>"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SECRET_WORDS: Final = _words(
    "secret secrets password passwords passwd pwd passphrase credential credentials apikey "
    "apikeys authorization bearer cookie cookies privatekey accesskey secretkey"
)
_KEY_OWNERS: Final = _words(
    "api access private secret account signing encryption auth shared ssh license service "
    "storage wandb comet"
)
# eos_token, mask_token …: text that a tokenizer treats specially.
_TOKEN_ROLES: Final = _words(
    "eos bos pad unk sep cls mask special image audio video start end begin stop fim prefix "
    "suffix middle eot sot eod boi eoi eom word wordpiece add"
)
# token_type_ids, eos_token_id, token_budget …: numbers and layouts.
_TOKEN_NOUNS: Final = _words(
    "id ids type types encoding count counts budget limit length lengths per dropout embedding "
    "embeddings mask classification ratio share loss batch column dtype"
)
_TOKEN_OWNERS: Final = _words(
    "auth access api hf hub huggingface refresh session bearer github gitlab wandb user bot"
)
# SECRET_FILE and the like name a place, and PWD is the working directory.
_PATH_WORDS: Final = _words("file path dir folder pwd")

_VALUE_PATTERNS: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?s:-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z))",
        r"\bhf_[A-Za-z0-9]{16,}",
        r"\bapi_org_[A-Za-z0-9]{16,}",
        r"\b[sr]k[-_][A-Za-z0-9_-]{16,}",
        r"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b",
        r"\bgh[pousr]_[A-Za-z0-9]{16,}",
        r"\bgithub_pat_[A-Za-z0-9_]{16,}",
        r"\bgl(?:pat|ptt|dt|rt)-[A-Za-z0-9_-]{16,}",
        r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
        r"\bAIza[0-9A-Za-z_-]{30,}",
        r"\bya29\.[0-9A-Za-z_-]{16,}",
        r"\bGOCSPX-[0-9A-Za-z_-]{16,}",
        r"\bnpm_[A-Za-z0-9]{20,}",
        r"\bpypi-[A-Za-z0-9_-]{16,}",
        r"\bdapi[0-9a-f]{32}\b",
        r"\bdop_v1_[0-9a-f]{32,}",
        r"\bnvapi-[A-Za-z0-9_-]{16,}",
        r"\bgsk_[A-Za-z0-9]{16,}",
        r"\br8_[A-Za-z0-9]{16,}",
        r"\bwandb_v1_[A-Za-z0-9_]{16,}",
        r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
        r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",
        r"(?i:\b(?<=bearer )[A-Za-z0-9._~+/=-]{8,})",
        r"(?i:\b(?<=basic )[A-Za-z0-9+/]{8,}=*(?=\s|$|['\"]))",
    )
)
_USERINFO: Final = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]+@")
_QUERY: Final = re.compile(r"(?P<key>[?&](?P<name>[A-Za-z0-9_.-]+)=)[^&\s#'\"]+")
_QUERY_NAMES: Final = _words(
    "sig signature key auth code x-amz-signature x-amz-credential x-goog-signature x-goog- "
    "credential awsaccesskeyid googleaccessid sas"
)
_ASSIGNED: Final = re.compile(
    r"(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)['\"]?[ \t]*(?:=|:(?=[ \t'\"]))[ \t]*"
)
_ASSIGNED_VALUE: Final = re.compile(r"\"[^\"]*\"|'[^']*'|[^\s;&,'\"(){}\[\]<]+")
_WORD: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+[0-9]*|[A-Z]+|[0-9]+")
_SHORTEST_ENVIRONMENT_SECRET: Final = 8


def redact(value: Any, *, environment: Mapping[str, str] | None = None) -> Any:  # noqa: ANN401 - any plain value
    """Return a copy of ``value`` in which every secret is ``<redacted>``.

    A secret is a value under a key such as ``api_key``, ``hf_token`` or ``password`` (but not
    ``eos_token`` or ``max_new_tokens``), text that starts like a known kind of key, the user part
    and the signed part of a URL, ``key=value`` text with such a key, the argument after an option
    such as ``--token``, and the value of an environment variable with such a name, wherever it
    occurs.

    Args:
        value: plain values: mappings, sequences, strings, numbers.
        environment: where to look for secret values; the process's own by default.
    """
    known = _environment_secrets(os.environ if environment is None else environment)
    return _redact(value, known)


def redact_text(text: str, *, environment: Mapping[str, str] | None = None) -> str:
    """Return ``text`` without its secrets (see ``redact``)."""
    known = _environment_secrets(os.environ if environment is None else environment)
    return _redact_text(text, known)


def is_secret_key(key: str) -> bool:
    """Whether a value under ``key`` is to be kept to oneself.

    >>> [is_secret_key(key) for key in ("hf_token", "apiKey", "eos_token", "num_memory_tokens")]
    [True, True, False, False]
    """
    last = key.rsplit(".", 1)[-1]
    words = [word.lower() for word in _WORD.findall(last)]
    if last.lower() == "pass" or not _SECRET_WORDS.isdisjoint(words):
        return True
    return any(
        _is_secret_word(before, word, after)
        for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False)
    )


def _is_secret_word(before: str, word: str, after: str) -> bool:
    if word in {"key", "keys"}:
        return before in _KEY_OWNERS
    if word == "tokens":
        return before in _TOKEN_OWNERS
    if word == "token":
        return before not in _TOKEN_ROLES and after not in _TOKEN_NOUNS
    if word == "connection":
        return after == "string"
    return word.endswith("token") and word.removesuffix("token") in _TOKEN_OWNERS


def _redact(value: Any, known: tuple[str, ...]) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {
            _redact(key, known): _hide(item)
            if isinstance(key, str) and is_secret_key(key)
            else _redact(item, known)
            for key, item in value.items()
        }
    if isinstance(value, str):
        return _redact_text(value, known)
    if isinstance(value, list | tuple):
        items: list[Any] = []
        previous: Any = None
        for item in value:
            follows_option = (
                isinstance(previous, str)
                and re.fullmatch(r"--?[A-Za-z][A-Za-z0-9_.-]*", previous) is not None
                and is_secret_key(previous)
            )
            items.append(_hide(item) if follows_option else _redact(item, known))
            previous = item
        return items if isinstance(value, list) else tuple(items)
    return value


def _hide(value: Any) -> Any:  # noqa: ANN401
    """Hide everything below a secret key; None, booleans and "" tell nothing and stay."""
    if value is None or isinstance(value, bool) or value == "":
        return value
    if isinstance(value, Mapping):
        return {key: _hide(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_hide(item) for item in value)
    return REDACTED


def _redact_text(text: str, known: tuple[str, ...]) -> str:
    for secret in known:
        text = text.replace(secret, REDACTED)
    for pattern in _VALUE_PATTERNS:
        text = pattern.sub(REDACTED, text)
    text = _USERINFO.sub(rf"\g<scheme>{REDACTED}@", text)
    text = _QUERY.sub(_redact_query, text)
    return _redact_assignments(text)


def _redact_query(match: re.Match[str]) -> str:
    name = match["name"]
    secret = name.lower() in _QUERY_NAMES or is_secret_key(name)
    return f"{match['key']}{REDACTED}" if secret else match[0]


def _redact_assignments(text: str) -> str:
    # A plain substitution would swallow "api_key" as the value of "model:" before it.
    parts: list[str] = []
    done = 0
    for match in _ASSIGNED.finditer(text):
        if match.start() < done or not is_secret_key(match["name"]):
            continue
        value = _ASSIGNED_VALUE.match(text, match.end())
        if value is None or value[0] in {"true", "false", "null", "None", '""', "''"}:
            continue
        parts += [text[done : match.end()], REDACTED]
        done = value.end()
    return "".join([*parts, text[done:]])


def _environment_secrets(environment: Mapping[str, str]) -> tuple[str, ...]:
    found = {
        value
        for name, value in environment.items()
        if len(value) >= _SHORTEST_ENVIRONMENT_SECRET
        and is_secret_key(name)
        and name.lower().rsplit("_", 1)[-1] not in _PATH_WORDS
    }
    # Longest first, so that a secret that contains another one goes whole.
    return tuple(sorted(found, key=lambda secret: (-len(secret), secret)))
