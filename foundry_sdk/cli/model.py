"""``foundry export`` and ``foundry generate``: what is done with a trained model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

MODEL = "Folder of a run, a checkpoint, an export or adapters, or a name on the hub."


class Precision(StrEnum):
    """How numbers are kept."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export")(export)
    app.command("generate")(generate)


def export(
    run: Annotated[
        Path, typer.Argument(help="A run's folder, or a checkpoint's.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    precision: Annotated[Precision, typer.Option(help="Of the exported weights.")] = Precision.FP32,
    custom_code: Annotated[
        bool,
        typer.Option(
            "--custom-code", help="Write our own architecture with its code beside the weights."
        ),
    ] = False,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Add LoRA adapters to the weights; else they go alone."),
    ] = False,
) -> None:
    """Export a trained model for transformers, and prove that it is the same model.

    The newest whole checkpoint is written as the transformers architecture that
    computes the same function, with its tokenizer. A separate process then loads
    the very files, without any code of ours, and compares logits and greedy
    continuations; the result is certificate.json. Where no architecture is equal,
    the reasons are listed and nothing is written; --custom-code exports any model,
    which others then load with trust_remote_code=True. A model of transformers is
    written as what it is; of one with LoRA adapters only these, or with --merge the
    whole.

    Examples:
      foundry export runs/my-run exported
      foundry export runs/my-run/checkpoints/step-000100 exported --precision bf16
    """
    from rich.console import Console
    from rich.table import Table

    from foundry_sdk.export.exporter import export_model

    certificate = export_model(
        run, out, precision=precision.value, custom_code=custom_code, merge=merge
    )
    rows = [
        ("written to", str(out)),
        ("architecture", certificate.architecture),
        ("parameters", f"{certificate.parameters:,} in {certificate.tensors} tensors"),
        ("precision", certificate.precision),
        (
            "largest difference of a logit",
            f"{certificate.max_abs_difference:.2e} of {certificate.logit_scale:.2f}",
        ),
        ("greedy tokens compared", f"{certificate.greedy_tokens}, all equal"),
        ("transformers", certificate.versions["transformers"]),
    ]
    if certificate.chat_template:
        rows.append(("chat template", "ChatML, which the run learned; in the tokenizer's files"))
    if certificate.ties:
        rows.append(("prompts parted at equal logits", str(certificate.ties)))
    table = Table(show_header=False, box=None)
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)


def generate(
    model: Annotated[str, typer.Argument(help=MODEL, show_default=False)],
    prompt: Annotated[
        list[str], typer.Option("--prompt", "-p", help="Text to continue; may be repeated.")
    ],
    *,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Tokens to write after each prompt.")
    ] = 100,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Divides the logits; 0 = the most probable token.")
    ] = 0.0,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Draw from so many tokens.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Draw from this much probability.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="Such as cuda or cpu; by default a GPU if there is one.")
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="Of weights and computation.")
    ] = Precision.FP32,
) -> None:
    """Continue texts with a trained model, printing as it writes.

    A text ends at the end-of-sequence token, or at another one that the model's
    files name. What an encoder-decoder writes stands below the prompt: it is an
    answer and not its continuation.

    Examples:
      foundry generate runs/my-run --prompt "The capital of France is"
      foundry generate exported -p "def add(a, b):" --temperature 0.8 --top-p 0.95
      foundry generate openai-community/gpt2 -p "Once" -p "Twice" --precision bf16
    """
    from foundry_sdk.errors import SpecError
    from foundry_sdk.export.writing import open_writer

    writer = open_writer(model, device=device, precision=precision.value)
    for text in prompt:
        try:
            pieces = writer.write(
                text,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
            )
            first = next(pieces, "")  # a prompt that is too long fails before anything is printed
            shown = f"{text}\n" if writer.encoder_decoder else text
            typer.echo(shown + first, nl=False)
            for piece in pieces:
                typer.echo(piece, nl=False)
            typer.echo()
        except ValueError as error:
            raise SpecError(str(error)) from error
