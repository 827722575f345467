"""``foundry plugins``."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("plugins")(list_plugins)


def list_plugins(
    kind: Annotated[
        str | None,
        typer.Option(
            "--kind", "--family", "-k", help="Only this family: model, loss, optimizer, callback …"
        ),
    ] = None,
    show_traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the whole traceback of each failed plugin.")
    ] = False,
) -> None:
    """List every component that a spec may name, where it is from, and plugins that failed.

    Examples:
      foundry plugins
      foundry plugins --kind preprocessor
      FOUNDRY_PLUGINS=recipes foundry plugins --traceback
    """
    from foundry_sdk.plugin.host import PluginHost
    from foundry_sdk.plugin.report import plugin_report

    catalog = PluginHost.from_environment().catalog()
    typer.echo(plugin_report(catalog, family=kind, details=show_traceback))
