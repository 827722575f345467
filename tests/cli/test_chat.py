"""``foundry chat``: scripts of lines, a terminal, and a model that has learned to answer."""

import builtins
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from foundry_sdk.cli.main import main
from foundry_sdk.export.writing import open_writer
from foundry_sdk.testing import tiny_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 258,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 256,
}


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Foundry = Callable[..., Done]


@pytest.fixture
def chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Foundry:
    """Return a function that runs ``foundry chat ARGUMENTS`` on lines, in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str, said: str = "") -> Done:
        capfd.readouterr()
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        with pytest.raises(SystemExit) as ended:
            main(("chat", *arguments))
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Done(code or 0, *capfd.readouterr())

    return call


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Llama of new weights that writes printable text, and never ends."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    tiny_tokenizer(folder)
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    letters = [tokens[letter] for letter in "abcdefghijklmnopqrstuvwxyz"]
    with torch.no_grad():
        for parameter in made.parameters():  # so that every token of a prompt counts
            parameter.add_(torch.randn_like(parameter) * 0.2)
        kept = made.lm_head.weight[letters].clone()
        made.lm_head.weight.zero_()
        made.lm_head.weight[letters] = kept * 20
    made.save_pretrained(folder)
    return folder


def reference(model: Path, prompt: str, count: int) -> str:
    """Return what transformers itself generates greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    whole = loaded.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=257)
    return str(tokenizer.decode(whole[0, ids.shape[1] :]))


OPTIONS = ("--chat-template", "chatml", "--max-new-tokens", "12")


def test_each_line_is_a_turn(chat: Foundry, model: Path) -> None:
    done = chat(str(model), *OPTIONS, said="Hello!\n\nAnd?\n")
    assert done.returncode == 0, done.stderr
    prompt = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"
    first = reference(model, prompt, 12)
    prompt += f"{first}<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    second = reference(model, prompt, 12)
    assert done.stdout == f"{first}\n{second}\n"
    assert first != second
    assert done.stderr.count("Cut off at --max-new-tokens.") == 2


def test_commands(chat: Foundry, model: Path, tmp_path: Path) -> None:
    said = ["/system Be short.", "a", "/save talk.jsonl", "b", "/undo", "//c", "/save talk.jsonl"]
    said += ["/reset", "/system", "d", "/save talk.jsonl", "/help", "/exit", "never"]
    done = chat(str(model), *OPTIONS, said="\n".join(said))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    rows = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text().splitlines()]
    spoken = [
        [each["content"] for each in row["messages"] if each["role"] != "assistant"] for row in rows
    ]
    assert spoken == [["Be short.", "a"], ["Be short.", "a", "/c"], ["d"]]
    answers = [
        each["content"]
        for each in rows[1]["messages"] + rows[2]["messages"]
        if each["role"] == "assistant"
    ]
    lines = done.stdout.splitlines()
    assert answers == [lines[0], lines[2], lines[3]]
    for word in ("/undo", "/save FILE", "Ctrl-C", "Taken back", "Added to talk.jsonl"):
        assert word in done.stderr


def test_options_are_those_of_generate(chat: Foundry, model: Path) -> None:
    drawn = (*OPTIONS, "--temperature", "1.5", "--top-k", "20", "--top-p", "0.9", "--device", "cpu")
    runs = [chat(str(model), *drawn, "--seed", seed, said="a\n").stdout for seed in "112"]
    assert runs[0] == runs[1] != runs[2]
    prompt = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    pieces = open_writer(model, device="cpu").write(
        prompt, max_new_tokens=12, temperature=1.5, top_k=20, top_p=0.9, seed=2
    )
    assert runs[2] == "".join(pieces) + "\n"


def test_what_no_longer_fits_is_said(chat: Foundry, model: Path) -> None:
    done = chat(str(model), *OPTIONS, said=f"{'a' * 90}\n{'b' * 90}\n")
    assert done.returncode == 0, done.stderr
    assert "does not know the first 1 of 1 with their answers" in done.stderr
    done = chat(str(model), *OPTIONS, said=f"{'a' * 300}\nnever\n")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "the model takes 256 with its answer" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said", "message"),
    [
        (("MODEL",), "", "--chat-template chatml"),
        (("MODEL", "--chat-template", "gone.jinja"), "", "got 'gone.jinja'"),
        (("MODEL", *OPTIONS, "--top-k", "3"), "", "need a temperature above 0"),
        (("MODEL", *OPTIONS), "/sytem x", "there is no command /sytem"),
        (("MODEL", *OPTIONS), "/save x", "nothing was said"),
        (("MODEL", *OPTIONS), "a\n/save", "name a file"),
        (("MODEL", *OPTIONS), "a\n/save no/such/folder", "cannot be written: No such file"),
        (("nowhere/at/all",), "", "no such file or folder"),
    ],
)
def test_what_cannot_be_done_ends_a_script(
    chat: Foundry, model: Path, arguments: tuple[str, ...], said: str, message: str
) -> None:
    done = chat(*(str(model) if each == "MODEL" else each for each in arguments), said=said)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_encoder_decoder_takes_prompts(chat: Foundry, tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    made = T5ForConditionalGeneration(
        T5Config(
            vocab_size=258,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            decoder_start_token_id=257,
            eos_token_id=256,
            pad_token_id=257,
        )
    )
    made.save_pretrained(tmp_path / "t5")
    tiny_tokenizer(tmp_path / "t5")
    done = chat(str(tmp_path / "t5"), "--max-new-tokens", "5", said="one\ntwo\none\n")
    assert done.returncode == 0, done.stderr
    expected = [
        "".join(open_writer(tmp_path / "t5").write(w, max_new_tokens=5))
        for w in ("one", "two", "one")
    ]
    assert done.stdout == "".join(f"{each}\n" for each in expected)
    refused = chat(str(tmp_path / "t5"), "--system", "Translate.", said="one\n")
    assert refused.returncode == 2
    assert "each message is a prompt of its own" in refused.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_nothing_ends_the_conversation_but_its_user(
    chat: Foundry, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from foundry_sdk.export import writing

    lines: Iterator[Any] = iter(["/nonsense", KeyboardInterrupt, "hello", "/undo", EOFError])

    def typed(prompt: str) -> str:
        assert prompt.endswith("you: ")
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", typed)
    whole = writing.stream

    def broken_off(*arguments: Any, **options: Any) -> Any:
        pieces = whole(*arguments, **options)
        yield next(pieces)
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "stream", broken_off)
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(SystemExit) as ended:
        main(("chat", str(model), *OPTIONS))
    assert ended.value.code in {None, 0}
    shown = capfd.readouterr().out
    for part in ("256 tokens", "no command /nonsense", "Ctrl-D or /exit ends", "Broken off"):
        assert part in shown
    assert "Taken back" in shown  # what was written of the answer was remembered
    assert next(lines, None) is None


@pytest.mark.slow
def test_a_real_terminal(model: Path, tmp_path: Path) -> None:
    keyboard, terminal = pty.openpty()
    endless = tmp_path / "endless"
    shutil.copytree(model, endless)
    config = json.loads((endless / "config.json").read_text())
    (endless / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": 1_000_000})
    )
    arguments = ["chat", "endless", "--chat-template", "chatml", "--max-new-tokens", "900000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "foundry_sdk", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=tmp_path,
        start_new_session=True,
        env={**os.environ, "NO_COLOR": "", "TERM": "xterm", "COLUMNS": "100"},
        # Also where these tests run in a shell's background, which ignores it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    os.close(terminal)
    shown = ""

    def until(text: str) -> None:
        nonlocal shown
        end = time.monotonic() + 100
        while text not in shown:
            assert time.monotonic() < end, shown
            if select.select([keyboard], [], [], 1.0)[0]:
                shown += os.read(keyboard, 4096).decode(errors="replace")
        shown = shown[shown.index(text) + len(text) :]

    try:
        until("you: ")
        os.write(keyboard, b"hello\n")
        until("hello")
        until("\x1b[36m")  # the colour of an answer
        process.send_signal(signal.SIGINT)
        until("Broken off.")
        until("you: ")
        process.send_signal(signal.SIGINT)
        until("Ctrl-D or /exit ends")
        until("you: ")
        os.write(keyboard, b"\x04")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(keyboard)


@pytest.mark.slow
def test_what_was_finetuned_on_chats_is_chatted_with(
    chat: Foundry, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import LlamaConfig

    LlamaConfig(**SIZES).save_pretrained(tmp_path / "config")
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    talks = [[("Who?", "Ann."), ("And then?", "Bob, of course.")], [("Where?", "Here.")]]
    with (tmp_path / "chats.jsonl").open("w") as file:
        for talk in talks * 8:
            messages = []
            for question, answer in talk:
                messages.append({"role": "user", "content": question})
                messages.append({"role": "assistant", "content": answer})
            file.write(json.dumps({"messages": messages}) + "\n")
    (tmp_path / "chat.yaml").write_text(
        f"""
run_name: talk
run_root: {tmp_path}/runs
max_seq_len: 256
precision: fp32
model: {{name: hf_causal_lm, pretrained_model_name_or_path: {tmp_path}/config, pretrained: false}}
tokenizer: {{name: {tokenizer.name}}}
train_loader:
  name: finetuning
  dataset:
    hf_name: json
    split: train
    hf_kwargs: {{data_files: {tmp_path}/chats.jsonl}}
    cache_dir: {tmp_path}/cache
    target_responses: all
    pad_to_longest: true
optimizer: {{name: decoupled_adamw, lr: 1.0e-2, weight_decay: 0.0}}
scheduler: {{name: linear_decay_with_warmup, t_warmup: 5ba, alpha_f: 0.0}}
max_duration: 100ba
global_train_batch_size: 8
device_train_microbatch_size: 8
save_interval: 100ba
"""
    )
    train = [sys.executable, "-m", "foundry_sdk", "train", "chat.yaml"]
    done = subprocess.run(train, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    with pytest.raises(SystemExit):
        main(("export", "runs/talk", "exported"))
    assert "ChatML, which the run learned" in capfd.readouterr().out
    said = "Who?\nAnd then?\n/reset\nWhere?\n"
    for place in ("runs/talk", "exported"):  # both know the template
        answered = chat(place, said=said)
        assert answered.returncode == 0, answered.stderr
        assert answered.stdout.splitlines() == ["Ann.", "Bob, of course.", "Here."]
        assert "Cut off" not in answered.stderr
