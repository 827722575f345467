"""``foundry new-plugin``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class _Kind(StrEnum):
    PREPROCESSOR = "preprocessor"
    OPTIMIZER = "optimizer"
    LOSS = "loss"
    CALLBACK = "callback"
    SCHEDULER = "scheduler"
    MODEL = "model"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("new-plugin")(create)


def create(
    name: Annotated[
        str, typer.Argument(help="Such as my-recipes; the package is foundry-sdk-NAME.")
    ],
    kind: Annotated[
        _Kind, typer.Option("--kind", "-k", help="What the plugin offers.")
    ] = _Kind.PREPROCESSOR,
    out: Annotated[
        Path, typer.Option("--out", help="Folder in which the package's folder is made.")
    ] = Path(),
) -> None:
    """Write a plugin package that works: a component, tests that pass, a README.

    Examples:
      foundry new-plugin my-recipes
      foundry new-plugin sign-descent --kind optimizer --out plugins
    """
    from foundry_sdk.scaffold.new_plugin import new_plugin

    made = new_plugin(name, kind=kind.value, out=out)
    for file in made.files:
        typer.echo(f"{made.folder / file}")
    typer.echo(f"\ncd {made.folder} && pip install -e '.[test]' && pytest")
