"""The command line: one file per verb."""

from sdhub.cli.app import main

__all__ = ["main"]
