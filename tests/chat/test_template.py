"""Chat templates: the very tokens of transformers, and where an answer ends."""

from pathlib import Path
from typing import Any

import pytest

from foundry_sdk.chat.template import ChatTemplate, Message, find_template
from foundry_sdk.data.finetuning.encode import ExampleEncoder
from foundry_sdk.data.tokenizer import load_tokenizer
from foundry_sdk.errors import SpecError
from foundry_sdk.testing import tiny_tokenizer

MESSAGES: list[Message] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And {{ 3 }} + 3?"},
]
HEADERS = """{{ bos_token }}{% for message in messages %}
<|head|>{{ message.role }}

{{ message.content | trim }}<|eot|>
{%- endfor %}
{% if add_generation_prompt %}<|head|>assistant

{% endif %}"""
WITHOUT_SYSTEM = """{% for message in messages %}
{% if message.role == "system" %}{{ raise_exception("System role not supported") }}{% endif %}
### {{ message.role }}: {{ message.content }}
{% endfor %}"""
IGNORES_SYSTEM = """{% for message in messages if message.role != "system" %}
[{{ message.role }}] {{ message.content }}{{ eos_token if message.role == "assistant" }}
{% endfor %}"""


@pytest.fixture
def tokenizer(tmp_path: Path) -> Any:
    """Bytes, two special tokens that templates use, and one before each text."""
    from tokenizers.processors import TemplateProcessing

    made: Any = load_tokenizer(tiny_tokenizer(tmp_path / "tokenizer"))
    special = ["<|head|>", "<|eot|>"]
    made.add_special_tokens({"additional_special_tokens": special, "bos_token": "<bos>"})
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", made.bos_token_id)]
    )
    assert made("a")["input_ids"][0] == made.bos_token_id
    return made


def of(tokenizer: Any, jinja: str | None, folder: Path) -> ChatTemplate:
    if jinja is None:
        found = find_template(tokenizer, "chatml", model="m")
    else:
        (folder / "template.jinja").write_text(jinja)
        found = find_template(tokenizer, str(folder / "template.jinja"), model="m")
    assert found is not None
    return found


@pytest.mark.parametrize("jinja", [None, HEADERS, IGNORES_SYSTEM])
def test_the_prompt_is_that_of_apply_chat_template(
    tokenizer: Any, jinja: str | None, tmp_path: Path
) -> None:
    template = of(tokenizer, jinja, tmp_path)
    for count in (2, 4):
        expected = tokenizer.apply_chat_template(
            MESSAGES[:count],
            chat_template=template.jinja,
            tokenize=True,
            return_dict=False,
            add_generation_prompt=True,
        )
        assert template.ids(MESSAGES[:count]) == expected


def test_chatml_is_what_finetuning_has_read(tokenizer: Any, tmp_path: Path) -> None:
    template = of(tokenizer, None, tmp_path)
    chat = [*MESSAGES, {"role": "assistant", "content": "6"}]
    (turns,) = ExampleEncoder(tokenizer).encode([{"messages": chat}], None, ["row"])
    read = [token for context, target in turns for token in (*context, *target)]
    answer = tokenizer("6<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert template.ids(MESSAGES) == [int(token) for token in read[: -len(answer)]]


def test_the_tokenizers_own_template_goes_before_none(tokenizer: Any) -> None:
    assert find_template(tokenizer, None, model="m") is None
    tokenizer.chat_template = HEADERS
    own = find_template(tokenizer, None, model="m")
    assert own is not None
    assert own.ids(MESSAGES) == tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False
    )


def test_an_answer_ends_at_what_the_template_writes_behind_it(
    tokenizer: Any, tmp_path: Path
) -> None:
    def ends(jinja: str | None) -> tuple[frozenset[int], str | None]:
        return of(tokenizer, jinja, tmp_path).end_of_turn()

    assert ends(HEADERS) == ({tokenizer.convert_tokens_to_ids("<|eot|>")}, None)
    assert ends(IGNORES_SYSTEM) == ({tokenizer.eos_token_id}, None)
    assert ends(None) == (set(), "<|im_end|>")  # no token of this tokenizer
    assert ends(WITHOUT_SYSTEM) == (set(), None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    assert ends(None) == ({tokenizer.convert_tokens_to_ids("<|im_end|>")}, None)


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        (WITHOUT_SYSTEM, r"'Be short\.'.*System role not supported.*leave it out"),
        (IGNORES_SYSTEM, "leaves system messages out"),
    ],
)
def test_a_system_message_that_would_be_lost_is_refused(
    tokenizer: Any, jinja: str, message: str, tmp_path: Path
) -> None:
    template = of(tokenizer, jinja, tmp_path)
    with pytest.raises(SpecError, match=message):
        template.check_system("Be short.")
    of(tokenizer, HEADERS, tmp_path).check_system("Be short.")


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        ("{% for message in messages %}", "refuses the conversation"),
        ("Hello", "leaves the user's messages out"),
        ("{{ messages[0].nothing.at_all }}", "refuses the conversation"),
        ("{{ ''.__class__.__mro__ }}{{ messages }}", "refuses the conversation"),
    ],
)
def test_a_template_that_cannot_be_used(
    tokenizer: Any, jinja: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        of(tokenizer, jinja, tmp_path)


def test_a_template_that_is_not_there_or_not_chosen(tokenizer: Any) -> None:
    with pytest.raises(SpecError, match="expected chatml or a file with a Jinja template"):
        find_template(tokenizer, "nowhere.jinja", model="m")
    tokenizer.chat_template = {"tool_use": HEADERS, "rag": HEADERS}
    with pytest.raises(SpecError, match="the tokenizer of m"):
        find_template(tokenizer, None, model="m")
    tokenizer.chat_template = {"default": HEADERS, "rag": IGNORES_SYSTEM}
    chosen = find_template(tokenizer, None, model="m")
    assert chosen is not None
    assert chosen.jinja == HEADERS
