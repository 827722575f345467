"""The preprocessor against text written out by hand, and the way it is found."""

import pytest
from foundry_sdk_chatml import chatml

from foundry_sdk.data.contract import PreprocessorSpec
from foundry_sdk.errors import DataError
from foundry_sdk.plugin.host import PluginHost
from foundry_sdk.testing import check_component

TURNS = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]


def test_it_conforms() -> None:
    check_component(
        chatml,
        row={"messages": TURNS},
        wrong_rows=[{"messages": TURNS[:1]}, {"messages": TURNS[::-1]}, {"messages": "hello"}],
    )


def test_a_conversation() -> None:
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "2"},
        ]
    }
    assert chatml().build()(row) == {
        "prompt": (
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\n1 + 1?<|im_end|>\n"
            "<|im_start|>assistant\n"
        ),
        "response": "2<|im_end|>\n",
    }


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "x"}, r"found the columns \['text'\]"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "last message is of 'user'"),
        ({"messages": [{"role": "robot", "content": "x"}] * 2}, r"messages\[0\]: expected a role"),
    ],
)
def test_rows_that_are_no_conversation(row: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        chatml().build()(row)


def test_the_installed_plugin_is_found() -> None:
    catalog = PluginHost.from_environment({"FOUNDRY_PLUGINS": "chatml"}).catalog()
    assert catalog.find(PreprocessorSpec, "chatml") is chatml
