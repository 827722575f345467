"""``foundry check`` and ``foundry schema``."""

import json
from pathlib import Path
from typing import Annotated

import typer

from foundry_sdk.errors import SpecError


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("check")(check_spec)
    app.command("schema")(print_schema)


def check_spec(
    spec: Annotated[str, typer.Argument(help="A run's YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Such as optimizer.lr=1e-4."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only notices and mistakes.")
    ] = False,
) -> None:
    """Check a spec and print it as it would run: every option, defaults and ${...} filled in.

    Nothing is built, downloaded or read besides the file. Mistakes are listed
    all at once, with their lines, and the exit code is 2. Keys that have no
    effect are listed after the spec.

    Examples:
      foundry check pretrain.yaml
      foundry check pretrain.yaml optimizer.lr=3e-4 max_duration=100ba
      foundry check pretrain.yaml > resolved.yaml
    """
    from foundry_sdk.runs.redact import redact, redact_text
    from foundry_sdk.specs.structure import read, spec_class, unstructure
    from foundry_sdk.specs.yaml_writer import dump

    found, notices = read(spec, spec_class(spec, overrides or ()), overrides or ())
    if not quiet:
        typer.echo(dump(redact(unstructure(found))), nl=False)
    for notice in notices:
        typer.echo(f"notice: {redact_text(notice)}", err=True)


def print_schema(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write it to this file instead.")
    ] = None,
) -> None:
    """Print the JSON Schema of a run's YAML file, installed plugins included.

    Editors complete and check YAML with it. The YAML language server takes it
    from the first line of the file:
    # yaml-language-server: $schema=foundry.schema.json

    Examples:
      foundry schema --out foundry.schema.json
    """
    from foundry_sdk.plugin.host import PluginHost
    from foundry_sdk.specs.run import PretrainSpec
    from foundry_sdk.specs.schema import spec_schema

    catalog = PluginHost.from_environment().catalog()
    text = json.dumps(spec_schema(PretrainSpec, catalog), indent=2, ensure_ascii=False) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"--out {out}: cannot be written: {error}") from error
    typer.echo(f"wrote {out}")
