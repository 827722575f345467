"""The files and commands with which a user does each step of the quickstart."""

import shlex
import shutil
from pathlib import Path
from typing import Final

from foundry_sdk.quickstart import train_tokenizer as tokenizer_script
from foundry_sdk.quickstart.pairs import mining
from foundry_sdk.quickstart.sizes import Sizes, finetune_yaml, pretrain_yaml

PRETRAIN_FILE: Final = "pretrain.yaml"
FINETUNE_FILE: Final = "finetune.yaml"
TOKENIZER_SCRIPT: Final = "train_tokenizer.py"
COMMANDS_FILE: Final = "commands.sh"
BY_HAND: Final = "by-hand"
"""Subfolder with the files above, where a user can do every step again."""
PROMPT: Final = "def __init__(self"
QUESTION: Final = "Write a Python function.\n\n{}\n\n### Code\n"
"""The form of the pairs' prompts, around a docstring."""
CHAT_TEMPLATE: Final = "question.jinja"
_DOCSTRINGS: Final = ("Return the name of the file.", "Delete a file.")


def write_files(folder: Path, sizes: Sizes, *, finetune: bool) -> None:
    """Write YAML, script and commands into ``folder``.

    Args:
        folder: is made.
        sizes: of text, model and runs.
        finetune: the steps of finetuning too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PRETRAIN_FILE).write_text(pretrain_yaml(sizes), encoding="utf-8")
    if finetune:
        (folder / FINETUNE_FILE).write_text(finetune_yaml(sizes), encoding="utf-8")
        (folder / CHAT_TEMPLATE).write_text(_chat_template(), encoding="utf-8")
    shutil.copyfile(Path(tokenizer_script.__file__), folder / TOKENIZER_SCRIPT)
    steps = steps_by_hand(sizes, finetune=finetune)
    commands = "\n\n".join(f"# {about}\n{command}" for about, command in steps)
    head = "#!/usr/bin/env bash\n# Each step of `foundry quickstart` by hand, in this folder.\n"
    enter = 'set -euo pipefail\ncd "$(dirname "${BASH_SOURCE[0]}")"\n'
    (folder / COMMANDS_FILE).write_text(f"{head}{enter}\n{commands}\n", encoding="utf-8")


def steps_by_hand(sizes: Sizes, *, finetune: bool) -> list[tuple[str, str]]:
    """Return what each step does and its command, in the folder ``BY_HAND``."""
    end = tokenizer_script.END_OF_TEXT
    convert = "\n".join(
        f"foundry data convert text --input-folder ../text/{split} --output-folder data/{split} "
        f"--concat-tokens {sizes.sequence_length} --tokenizer tokenizer --eos-text '{end}'"
        for split in ("train", "val")
    )
    tokenizer = f"python {TOKENIZER_SCRIPT} ../text/train tokenizer {sizes.vocab_size}"
    steps = [
        ("Train a tokenizer on the text", tokenizer),
        ("Convert the text to shards of tokens", convert),
        (f"Pretrain and evaluate, as {PRETRAIN_FILE} says", f"foundry train {PRETRAIN_FILE}"),
        ("Look at the run: one page with all its curves", "foundry report runs/quickstart"),
        ("Export to the format of transformers", "foundry export runs/quickstart model"),
        ("Generate", f"foundry generate model --prompt {shlex.quote(PROMPT)}"),
    ]
    return [*steps, *_finetuning(sizes)] if finetune else steps


def _finetuning(sizes: Sizes) -> list[tuple[str, str]]:
    mine = "\n".join(
        shlex.join(["python", *mining(f"../text/{split}", f"pairs/{split}.jsonl", sizes)])
        for split in ("train", "val")
    )
    question = _escaped(QUESTION.format(_DOCSTRINGS[0]))
    lines = _escaped("".join(f"{docstring}\n" for docstring in _DOCSTRINGS))
    return [
        ("Mine pairs of docstring and function from the text", mine),
        ("Look at what would be learned from them", f"foundry data check {FINETUNE_FILE}"),
        (f"Finetune the exported model, as {FINETUNE_FILE} says", f"foundry train {FINETUNE_FILE}"),
        ("Export the finetuned model", "foundry export runs/functions finetuned"),
        (
            "Ask both models the same",
            "\n".join(
                f"foundry generate {model} --prompt $'{question}'"
                for model in ("model", "finetuned")
            ),
        ),
        (
            "Give it a docstring a line; without the first part, talk with it",
            f"printf '{lines}' | foundry chat finetuned --chat-template {CHAT_TEMPLATE}",
        ),
    ]


def _escaped(text: str) -> str:
    return text.replace("\n", "\\n")


def _chat_template() -> str:
    """Return Jinja for a model that has learned single questions: only the last message counts."""
    before, after = map(_escaped, QUESTION.split("{}"))
    return f'{{{{ "{before}" + messages[-1]["content"] + "{after}" }}}}\n'
