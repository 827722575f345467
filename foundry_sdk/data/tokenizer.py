"""The tokenizer of a run: loaded without surprises, and recognized again by a fingerprint."""

import hashlib
import json
import os
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from foundry_sdk import hub
from foundry_sdk.data.contract import TokenizerSpec
from foundry_sdk.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNLIMITED_LENGTH: Final = int(1e30)
"""``model_max_length`` when nobody sets one: concatenating long documents is no mistake."""

_PROBES: Final = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "  two  spaces\tand\ttabs\n\n  and a new line\r\n",
    "naïve café ﬁ Å \uff11\uff12\uff13 ½ 漢字 かな العربية हिन्दी 🙂👩‍👩‍👧",
    "def f(x: int) -> str:\n    return f'{x!r:>8}'  # 1e-4 0xFF a_b CamelCase",
    "don't WON'T I'll 1,234,567.89 http://example.org/?q=a&b=c",
    "",
)
"""Texts whose ids show normalization, splitting and special tokens, however they are stored."""


def load_tokenizer(spec: TokenizerSpec) -> "PreTrainedTokenizerBase":
    """Return the tokenizer that ``spec`` names, a folder or a name on the hub.

    A folder is read without the network. Code that a repository carries is never run.

    Raises:
        DataError: there is no such folder or hub name, the network is off and the name is not
            in the local cache, the files make no tokenizer, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    if spec.kwargs.get("trust_remote_code"):
        raise DataError(
            f"tokenizer.kwargs.trust_remote_code: code from {spec.name!r} is not run here; "
            "leave the key out, or save the tokenizer as a tokenizer.json and name its folder"
        )
    folder = Path(spec.name).expanduser()
    is_folder = folder.is_dir()
    if not is_folder and looks_like_path(spec.name):
        raise DataError(
            f"tokenizer.name: there is no folder {spec.name!r} (working directory {Path.cwd()}); "
            "give an existing folder with tokenizer.json, or a name on the hub such as 'gpt2'"
        )
    options: dict[str, Any] = {"model_max_length": UNLIMITED_LENGTH, **spec.kwargs}
    options["trust_remote_code"] = False
    options["local_files_only"] = is_folder or not hub.can_be_reached()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder) if is_folder else spec.name, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DataError(_loading_failed(spec.name, is_folder=is_folder, error=error)) from error
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"tokenizer {spec.name!r} has no end-of-sequence token, so documents could not be "
            "told apart; name one: tokenizer.kwargs.eos_token: '<|endoftext|>'"
        )
    return tokenizer


def fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the sha256 (64 hex digits) of what decides how ``tokenizer`` makes ids of text.

    Hashed are the vocabulary with scores and added tokens, the merges, and the ids of fixed
    probe texts, not the file: the same tokenizer has the same fingerprint wherever it lies,
    whichever version of transformers loaded it, and whatever truncation or padding it was last
    called with.
    """
    parts = _fast_parts(tokenizer) if _backend(tokenizer) is not None else _slow_parts(tokenizer)
    text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _backend(tokenizer: "PreTrainedTokenizerBase") -> Any:  # noqa: ANN401
    return getattr(tokenizer, "backend_tokenizer", None)


def _fast_parts(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Take a Rust tokenizer apart, on a copy: encoding may change the original's settings."""
    from tokenizers import Tokenizer

    serialized: str = _backend(tokenizer).to_str()
    copy = Tokenizer.from_str(serialized)
    copy.no_truncation()
    copy.no_padding()
    content: dict[str, Any] = json.loads(serialized)
    model = content["model"]
    return {
        "vocabulary": _vocabulary(model["vocab"]),
        "merges": list(_merges(model.get("merges") or ())),
        "added": sorted(
            [token["id"], token["content"], token["special"], token["lstrip"], token["rstrip"]]
            for token in content["added_tokens"]
        ),
        "probes": [copy.encode(probe).ids for probe in _PROBES],
    }


def _slow_parts(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Describe a tokenizer written in Python, which has no serialization."""
    probes = [tokenizer(probe, truncation=False, padding=False)["input_ids"] for probe in _PROBES]
    return {"vocabulary": _vocabulary(tokenizer.get_vocab()), "probes": probes}


def _vocabulary(vocabulary: Any) -> list[Any]:  # noqa: ANN401
    """Return [token, id] by id, or Unigram's [token, score], whose order is the ids."""
    if isinstance(vocabulary, Mapping):
        return sorted(([token, index] for token, index in vocabulary.items()), key=lambda e: e[1])
    return [[token, repr(score)] for token, score in vocabulary]


def _merges(merges: Any) -> Iterator[list[str]]:  # noqa: ANN401
    """Yield pairs: older files write a merge as one string, newer ones as two."""
    for merge in merges:
        yield merge.split(" ") if isinstance(merge, str) else list(merge)


def looks_like_path(name: str) -> bool:
    """Tell a folder that is missing from a hub name, which is ``name`` or ``owner/name``."""
    return name.startswith((".", "/", "~", os.sep)) or name.count("/") > 1 or name.endswith("/")


def _loading_failed(name: str, *, is_folder: bool, error: BaseException) -> str:
    reason = next((line for line in str(error).splitlines() if line.strip()), repr(error)).strip()
    reason = textwrap.shorten(reason, 200)
    if is_folder:
        return (
            f"tokenizer.name: the folder {name!r} holds no tokenizer that can be loaded "
            f"({reason}); it needs tokenizer.json and tokenizer_config.json, as "
            "save_pretrained() writes them"
        )
    return (
        f"tokenizer.name: {name!r} is no local folder and could not be read from the hub: the "
        f"network is disabled or the name does not exist ({reason}); give the folder of a "
        "tokenizer (with tokenizer.json), or check the name"
    )
