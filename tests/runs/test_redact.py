"""Forty canaries, each a secret where one may turn up, and what must stay readable."""

import json
import secrets
import typing
from typing import Any

import attrs
import pytest

from foundry_sdk.builtin import foundry_components
from foundry_sdk.runs.redact import REDACTED, is_secret_key, redact, redact_text
from foundry_sdk.specs.run import PretrainSpec

_BODY = "q9Zx7Lm2Vb8Nc4Rt6Yp1Kd3Wf5Hs0JgAQ"
_PEM = "RSA PRIVATE KEY"
_UPPER = "Q9ZX7LM2VB8NC4RT"
_HEX = "0123456789abcdef0123456789abcdef"

# name -> (the secret, a value that contains it)
CANARIES: dict[str, tuple[str, Any]] = {
    "hf_token key": ("canary1", {"hf_token": "canary1"}),
    "token key": ("canary2", {"token": "canary2"}),
    "api_key": ("canary3", {"loggers": {"wandb": {"api_key": "canary3"}}}),
    "apiKey": ("canary4", {"apiKey": "canary4"}),
    "API-KEY": ("canary5", {"API-KEY": "canary5"}),
    "password": ("canary6", {"db": [{"password": "canary6"}]}),
    "numeric password": ("73519", {"password": 73519}),
    "passphrase": ("canary7", {"ssh_passphrase": "canary7"}),
    "secret": ("canary8", {"client_secret": "canary8"}),
    "below a secret key": ("canary9", {"credentials": {"user": "canary9"}}),
    "list below a secret key": ("canary10", {"access_tokens": ["canary10"]}),
    "aws key": ("canary11", {"aws_secret_access_key": "canary11"}),
    "aws key id": ("canary12", {"aws_access_key_id": "canary12"}),
    "authorization header": ("canary13", {"headers": {"Authorization": "canary13"}}),
    "cookie": ("canary14", {"Cookie": "canary14"}),
    "connection string": ("canary15", {"azure_connection_string": "canary15"}),
    "private key": ("canary16", {"private_key": "canary16"}),
    "Hugging Face value": ("hf_" + _BODY, {"note": f"use hf_{_BODY} here"}),
    "sk value": ("sk-" + _BODY, ["sk-" + _BODY]),
    "stripe value": ("sk_live_" + _BODY, ("sk_live_" + _BODY,)),
    "AKIA value": ("AKIA" + _UPPER, {"x": "AKIA" + _UPPER}),
    "ghp value": ("ghp_" + _BODY, {"x": {"y": ["ghp_" + _BODY]}}),
    "github_pat value": ("github_pat_" + _BODY, "github_pat_" + _BODY),
    "glpat value": ("glpat-" + _BODY, "token glpat-" + _BODY),
    "slack value": ("xoxb-1234567890-" + _BODY, "xoxb-1234567890-" + _BODY),
    "google value": ("AIza" + _BODY + "x", "AIza" + _BODY + "x"),
    "databricks value": ("dapi" + _HEX, {"host": "dapi" + _HEX}),
    "nvidia value": ("nvapi-" + _BODY, "nvapi-" + _BODY),
    "npm value": ("npm_" + _BODY, "npm_" + _BODY),
    "JWT": (f"eyJ{_BODY}.eyJ{_BODY}.sig", f"jwt eyJ{_BODY}.eyJ{_BODY}.sig"),
    "bearer": (_BODY, {"header": f"Bearer {_BODY}"}),
    "PEM": ("MIICanary", f"-----BEGIN {_PEM}-----\nMIICanary\n-----END {_PEM}-----"),
    "URL userinfo": ("canary17", {"remote": "https://me:canary17@host.example/data"}),
    "URL user only": ("canary18", {"remote": "https://canary18@host.example/data"}),
    "URL signature": ("canary19", {"remote": "https://h.example/d?sv=1&sig=canary19&x=2"}),
    "URL amz": ("canary20", "https://b.example/k?X-Amz-Signature=canary20"),
    "URL token": ("canary21", "https://h.example/?a=1&access_token=canary21#part"),
    "override": ("canary22", ["train", "loggers.wandb.api_key=canary22"]),
    "option": ("canary23", ["push", "--hub-token", "canary23", "out"]),
    "option with =": ("canary24", ["push", "--hub-token=canary24"]),
    "account key in a string": ("canary25", "AccountName=a;AccountKey=canary25==;Endpoint=z"),
    "JSON in a string": ("canary26", '{"password": "canary26", "user": "me"}'),
    "YAML in a string": ("canary27", "model:\n  api_key: canary27\n"),
    "mapping key": ("ghp_" + _BODY, {"ghp_" + _BODY: 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", CANARIES)
def test_canary_is_not_found(name: str) -> None:
    secret, value = CANARIES[name]
    assert secret in json.dumps(value) or secret in str(value)
    shown = redact(value, environment={})
    assert secret not in json.dumps(shown)
    assert REDACTED in json.dumps(shown)


def test_there_are_forty_canaries() -> None:
    assert len(CANARIES) >= 40


def test_values_of_secret_environment_variables_are_hidden_anywhere() -> None:
    secret = secrets.token_hex(20)
    environment = {
        "WANDB_API_KEY": secret,
        "HOME": "/home/someone",
        "PWD": "/home/someone",
        "X_TOKEN": "short",
        "X_PASSWORD_FILE": "/home/someone",
    }
    shown = redact({"a": [f"--x={secret}"], "home": "/home/someone"}, environment=environment)
    assert shown == {"a": [f"--x={REDACTED}"], "home": "/home/someone"}
    assert redact_text(f"failed with {secret}.", environment=environment) == (
        f"failed with {REDACTED}."
    )


SPEC = {
    "model": {"name": "mpt_causal_lm", "d_model": 768, "num_memory_tokens": 4},
    "tokenizer": {"name": "EleutherAI/gpt-neox-20b", "kwargs": {"model_max_length": 2048}},
    "tokenizer_name": "gpt2",
    "max_new_tokens": 100,
    "eos_token": "<|endoftext|>",
    "pad_token_id": 0,
    "additional_special_tokens": ["<a>", "<b>"],
    "add_bos_token": True,
    "token_budget": 5,
    "total_tokens": "1_000tok",
    "tokens_per_sec": 3.5,
    "max_duration": "2.5e9tok",
    "keys": ["a", "b"],
    "key": "metrics/train",
    "monitor_key": "loss",
    "key_padding_mask": "x",
    "hf_name": "tatsu-lab/alpaca",
    "use_auth_token": None,
    "password": "",
    "secret": False,
    "remote": "s3://bucket/prefix?region=eu",
    "email": "someone@example.com",
    "command": ["foundry", "train", "a.yaml", "tokenizer.name=gpt2", "max_new_tokens=7"],
    "prompts": ["The basic idea is", "sk-learn is not a key"],
    "sha": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
    "numbers": (1, 2.5, None),
}


def test_what_is_no_secret_stays() -> None:
    assert redact(SPEC, environment={}) == SPEC


def test_the_original_is_left_alone() -> None:
    value = {"token": "x", "list": [{"password": "y"}]}
    redact(value, environment={})
    assert value == {"token": "x", "list": [{"password": "y"}]}


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("HF_TOKEN", True),
        ("my_token", True),
        ("authToken", True),
        ("wandb.api_key", True),
        ("service_account_key", True),
        ("tokenizer", False),
        ("tokenizer_kwargs", False),
        ("TOKENIZERS_PARALLELISM", False),
        ("unk_token", False),
        ("token_type_ids", False),
        ("decoder_start_token_id", False),
        ("max_tokens", False),
        ("passthrough", False),
        ("monkey", False),
    ],
)
def test_keys(key: str, secret: bool) -> None:
    assert is_secret_key(key) is secret


def fields_of(spec: type) -> set[str]:
    """Return the names of a spec's fields and of the specs that stand in its annotations."""
    names: set[str] = set()
    for field in attrs.fields(attrs.resolve_types(spec)):
        names.add(field.name)
        for part in (field.type, *typing.get_args(field.type)):
            if isinstance(part, type) and attrs.has(part) and part is not spec:
                names |= fields_of(part)
    return names


def test_no_option_of_a_built_in_component_counts_as_a_secret() -> None:
    names = {name for kind in foundry_components() for name in fields_of(kind)}
    names |= fields_of(PretrainSpec)
    assert {"lr", "max_seq_len", "tokenizer"} <= names
    assert [name for name in sorted(names) if is_secret_key(name)] == []
