"""``foundry chat``: a conversation in the terminal, or from a file of lines."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foundry_sdk.cli.model import MODEL, Precision
from foundry_sdk.errors import FoundryError, SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from foundry_sdk.chat.conversation import Answering, Chat

_HELP = """\
/reset        forget what was said; the system message stays
/undo         take back the last message and its answer
/system TEXT  set the system message; without TEXT take it away
/save FILE    add the conversation to FILE, as a line of JSON that can be finetuned on
/help         this list
/exit         end, as Ctrl-D does
Ctrl-C breaks an answer off; what was written of it stays. A message that begins with / is
written with two of them."""

_System = Annotated[str | None, typer.Option(help="System message; comes before all others.")]
_Template = Annotated[
    str | None,
    typer.Option(
        "--chat-template", help="chatml, or a Jinja file; by default the tokenizer's own."
    ),
]
_MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="The most tokens of one answer.")
]
_Temperature = Annotated[
    float, typer.Option(min=0.0, help="Divides the logits; 0 = the most probable token.")
]
_TopK = Annotated[int | None, typer.Option("--top-k", min=1, help="Draw from so many tokens.")]
_TopP = Annotated[float | None, typer.Option("--top-p", help="Draw from this much probability.")]
_Seed = Annotated[int, typer.Option(help="Of the first answer's draw; others follow.")]
_Device = Annotated[
    str | None, typer.Option(help="Such as cuda or cpu; by default a GPU if there is one.")
]
_Precision = Annotated[Precision, typer.Option(help="Of weights and computation.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("chat")(chat)


def chat(
    model: Annotated[str, typer.Argument(help=MODEL, show_default=False)],
    *,
    system: _System = None,
    chat_template: _Template = None,
    max_new_tokens: _MaxNewTokens = 512,
    temperature: _Temperature = 0.0,
    top_k: _TopK = None,
    top_p: _TopP = None,
    seed: _Seed = 0,
    device: _Device = None,
    precision: _Precision = Precision.FP32,
) -> None:
    r"""Talk with a model, which remembers what was said and prints as it writes.

    The model is given the conversation as its tokenizer's chat template writes
    it. A run that was finetuned on chats with a tokenizer that has no template has
    learned ChatML, and it and its exports know that; for others there is
    --chat-template. Where the conversation is longer than the model takes, the
    oldest messages are left out, and it says so. An encoder-decoder without a
    template, such as T5, takes each message as a prompt of its own.

    /help lists what else can be done. Where the input is no terminal, each line
    of it is a message or a command, and only the answers are printed; what can't
    be done then ends it.

    Examples:
      foundry chat Qwen/Qwen2.5-0.5B-Instruct --precision bf16
      foundry chat runs/my-run --system "Be brief."
      foundry chat exported --temperature 0.7 --top-p 0.9 --seed 1
      printf 'Hello!\nWhat did I say?\n' | foundry chat exported
    """
    from rich.console import Console

    from foundry_sdk.chat.conversation import open_chat

    opened = open_chat(
        model,
        system=system,
        chat_template=chat_template,
        answering=_answering(max_new_tokens, temperature, top_k, top_p, seed),
        device=device,
        precision=precision.value,
    )
    interactive = sys.stdin.isatty()
    _Talk(opened, interactive=interactive, console=Console(highlight=False)).run(model)


def _answering(
    max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, seed: int
) -> "Answering":
    """Return how answers are written.

    Raises:
        SpecError: a number is out of range, or has no effect.
    """
    from foundry_sdk.chat.conversation import Answering
    from foundry_sdk.models.generation import Sampling

    try:
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    except ValueError as error:
        raise SpecError(str(error)) from error
    return Answering(max_new_tokens=max_new_tokens, sampling=sampling)


class _Talk:
    """Reads messages and commands, and prints answers and notes."""

    def __init__(self, chat: "Chat", *, interactive: bool, console: "Console") -> None:
        from rich.console import Console

        self._chat = chat
        self._interactive = interactive
        self._console = console
        self._notes = console if interactive else Console(stderr=True, highlight=False)
        self._left_out = 0

    def run(self, model: str) -> None:
        """Go on until the input ends or says so.

        Raises:
            FoundryError: something cannot be done, and nobody is there to read it.
        """
        if self._interactive:
            self._greet(model)
        for line in self._lines():
            if not line.strip():
                continue
            try:
                if not self._take(line):
                    return
            except FoundryError as error:
                if not self._interactive:
                    raise
                self._notes.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                self._console.print()
                self._note("Broken off.")

    def _greet(self, model: str) -> None:
        chat = self._chat
        length = chat.writer.max_length
        told = [model]
        if chat.template is not None:
            told.append(chat.template.name)
        else:
            told.append("an encoder-decoder: each message is a prompt of its own")
        if length is not None:
            told.append(f"{length:,} tokens")
        self._note(", ".join(told) + ". /help lists commands, Ctrl-D ends.")

    def _lines(self) -> Iterator[str]:
        if not self._interactive:
            try:
                for line in sys.stdin:
                    yield line.rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise SpecError(f"the input is not UTF-8: {error}") from error
            return
        import readline  # noqa: F401 - gives input() its line editing and history

        while True:
            try:
                yield input("\nyou: ")
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._console.print()
                self._note("Ctrl-D or /exit ends the conversation.")

    def _take(self, line: str) -> bool:
        """Do what a line says; return whether to go on."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line.partition(" ")
            return self._command(name, rest.strip())
        self._ask(line[1:] if line.startswith("//") else line)
        return True

    def _ask(self, text: str) -> None:
        chat, console = self._chat, self._console
        before = chat.left_out
        pieces = chat.ask(text)
        if chat.left_out > before:
            self._note(
                f"The oldest messages no longer fit the {chat.writer.max_length:,} tokens of the "
                f"model: from here on it does not know the first {chat.left_out} of "
                f"{len(chat.exchanges)} with their answers."
            )
        if self._interactive:
            console.print()
        for piece in pieces:
            console.out(piece, end="", highlight=False, style="cyan")
        console.print()
        if chat.ended == "max_new_tokens":
            self._note("Cut off at --max-new-tokens.")
        elif chat.ended == "length":
            self._note("Cut off: the model takes no more tokens. /undo or /reset makes room.")

    def _command(self, name: str, rest: str) -> bool:
        chat = self._chat
        if name == "/exit":
            return False
        if name == "/help":
            self._note(_HELP)
        elif name == "/reset":
            chat.reset()
            self._note("Nothing was said.")
        elif name == "/undo":
            taken = chat.undo()
            self._note("There is nothing to take back." if taken is None else "Taken back.")
        elif name == "/system":
            chat.system = rest or None
            self._note("There is a new system message." if rest else "No system message.")
        elif name == "/save":
            self._save(rest)
        else:
            raise SpecError(
                f"there is no command {name}; /help lists them, and a message that begins with / "
                f"is written with two of them: /{name}"
            )
        return True

    def _save(self, name: str) -> None:
        if not name:
            raise SpecError("/save: name a file: /save FILE")
        rows = self._chat.rows()
        if not rows:
            raise SpecError("/save: nothing was said yet")
        file = Path(name).expanduser()
        try:
            with file.open("a", encoding="utf-8") as out:
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise SpecError(f"/save: {file} cannot be written: {error.strerror}") from error
        self._note(f"Added to {file}.")

    def _note(self, text: str) -> None:
        self._notes.print(text, style="dim", markup=False, soft_wrap=True)
