"""The command line ``s3mgr``: entry point and its description for documentation.

Start-up is a promise: what a command does not need is not imported. Modules of commands are loaded when
their command is called, and `msgspec`, `http.client` and the wire types only by functions that talk to
the daemon.
"""

from typing import TYPE_CHECKING

from s3mgr.cli.app import main

if TYPE_CHECKING:
    from s3mgr.cli.reference import Reference

__all__ = ["main", "reference"]


def reference() -> "Reference":
    """Describe every command, option, exit code and variable as data; docs are made from it."""
    from s3mgr.cli.reference import build_reference

    return build_reference()
