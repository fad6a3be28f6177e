"""The command line: ``neurank train | rank | compare | condense | demo``."""

from neurank.cli.app import app

__all__ = ["app"]
