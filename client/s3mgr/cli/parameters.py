"""Parameter types: durations, and what completes: mounts and paths."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _FloatType = click.ParamType[float]
    _TextType = click.ParamType[str]
else:  # not generic in older versions of click
    _FloatType = _TextType = click.ParamType

_UNITS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)?")
DAY_S: Final = 86400.0


class Duration(_FloatType):
    """A duration in seconds: ``30``, ``1.5s``, ``2m``, ``1h``; at most a day, as the API has it."""

    name = "duration"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return what stands for it in the help."""
        return "DURATION"

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Read the text."""
        if isinstance(value, (int, float)):
            return float(value)
        match = _DURATION.fullmatch(str(value))
        if match is None:
            self.fail(f"'{value}' is not a duration such as 30s or 5m", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2] or ""]
        if seconds > DAY_S:
            self.fail(f"'{value}' is longer than a day", param, ctx)
        return seconds


class Target(_TextType):
    """A mount, by name or by directory; completes names and paths."""

    name = "mount"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """Offer the daemon's mounts; nothing when it does not answer at once."""
        from s3mgr.cli.completion import complete_mounts

        return complete_mounts(ctx, incomplete)


class Words(_TextType):
    """An action, a mount and what is inside it, of which the action may be left out; completes each in its place."""

    name = "words"

    def __init__(self, actions: Sequence[str]) -> None:
        """Complete *actions*, then mounts, then files."""
        self._actions = actions

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """Offer what comes next."""
        from click.shell_completion import CompletionItem

        from s3mgr.cli.completion import complete_mounts

        given = ctx.params.get(param.name or "") or ()
        if len(given) > 1 or (given and given[0] not in self._actions):
            return [CompletionItem(incomplete, type="file")]
        actions = [] if given else [a for a in self._actions if a.startswith(incomplete)]
        return [CompletionItem(action) for action in actions] + complete_mounts(ctx, incomplete)


class PathText(_TextType):
    """A path that is only completed here: looking at it could hang on a mount, and is the daemon's business."""

    name = "path"

    def __init__(self, kind: Literal["file", "dir"]) -> None:
        """Complete files, or directories only."""
        self._kind = kind

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """Have the shell complete it."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type=self._kind)]


DIRECTORY: Final = PathText("dir")
FILE: Final = PathText("file")
DURATION: Final = Duration()
TARGET: Final = Target()
