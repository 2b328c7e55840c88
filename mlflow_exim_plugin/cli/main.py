"""The ``exim`` command group."""

from __future__ import annotations

import click

from mlflow_exim_plugin import __version__


@click.group()
@click.version_option(__version__, prog_name="mlflow-exim")
def exim() -> None:
    """Pack, unpack, verify and compare MLflow archives."""
