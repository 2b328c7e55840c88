"""``mlflow exim serve``."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archives_argument, asks, verbose_option
from mlflow_exim_plugin.cli.output import say
from mlflow_exim_plugin.options import Opening


@click.command(cls=Command)
@archives_argument
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at.", metavar="HOST"
)
@click.option(
    "--port",
    default=5000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen at; 0 takes a free one.",
)
@click.option("--open", is_flag=True, help="Open it in the browser.")
@click.option(
    "--cache-dir",
    metavar="FOLDER",
    help="Where to keep what is made of an archive for the next time; MLFLOW_EXIM_CACHE_DIR or "
    "the user's own cache without it.",
)
@asks("registry_uri", "artifacts_destination", opening=Opening)
@verbose_option
def serve(
    archives: tuple[str, ...],
    host: str,
    port: int,
    open: bool,  # noqa: A002 - the name of the option
    cache_dir: str | None,
    opening: Opening,
) -> None:
    """Show archives, paths or any fsspec URLs, in MLflow's own user interface, read only.

    Several are shown as one: what more than one holds is there once, as that has it which was
    packed last, and what others have otherwise is named. Clients find MLflow's REST API at the
    address that is printed. Nothing is unpacked; what writes is refused. It ends with Ctrl-C.

    Example:

      mlflow exim serve backup.tar.zst --open
    """
    import mlflow  # noqa: F401 - before Arrow, which would go without what MLflow needs

    from mlflow_exim_plugin.operations.live.archive import open_live
    from mlflow_exim_plugin.operations.live.cache import CacheFolder
    from mlflow_exim_plugin.plugins.address import Address
    from mlflow_exim_plugin.plugins.server import (
        ReadOnlyApp,
        described,
        listening,
        mlflow_app,
        run,
    )

    def tell(url: str) -> None:
        say(described(live))
        say(f"Served read only at {url} until Ctrl-C")
        if open:
            click.launch(url)

    with listening(host, port) as listener:
        address = Address.of(*archives)
        cache = CacheFolder(Path(cache_dir) if cache_dir else None)
        live = open_live(*address.archives, cache=cache, storage_options=opening.storage_options)
        app = mlflow_app(address, has_workspaces=live.has_workspaces)
        run(ReadOnlyApp(app, live), listener, tell)
