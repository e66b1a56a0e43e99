"""What the user sees: tables, sizes, times, colour. stdout is data, stderr is talk."""

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO, Final, Literal

import click

ColorChoice = Literal["auto", "always", "never"]

COLUMN_GAP: Final = "  "
_ESCAPES: Final = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
_STATE_COLORS: Final = {
    "mounted": "green",
    "degraded": "yellow",
    "draining": "yellow",
    "mounting": "cyan",
    "pending": "cyan",
    "failed": "red",
}


def is_terminal(stream: IO[str] | None) -> bool:
    """Tell whether a person reads *stream*."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def use_color(choice: ColorChoice, stream: IO[str] | None) -> bool:
    """Decide on colour: the flag, then NO_COLOR (https://no-color.org), then whether a person reads it."""
    if choice != "auto":
        return choice == "always"
    return not os.environ.get("NO_COLOR") and is_terminal(stream)


def printable(text: str) -> str:
    """Escape what could drive a terminal; names in a bucket are other people's input."""
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable()
        else _ESCAPES.get(char, f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}")
        for char in text
    )


def paint_state(state: str, *, color: bool) -> str:
    """Colour the name of a mount's state."""
    return click.style(state, fg=_STATE_COLORS.get(state)) if color else state


def human_size(size_bytes: float) -> str:
    """Write a size for people: ``0``, ``812 B``, ``1.5 MiB``."""
    if size_bytes == 0:
        return "0"
    value = float(size_bytes)
    units = iter(("B", "KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = next(units)
    while abs(value) >= 1023.95 and unit != "PiB":
        value, unit = value / 1024, next(units)
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def counted(number: int, noun: str) -> str:
    """Write a number of things: ``1 file``, ``2 files``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def human_duration(seconds: float) -> str:
    """Write a duration for people, its two largest units: ``5s``, ``3m20s``, ``2d4h``."""
    left = max(0, int(seconds))
    parts: list[tuple[int, str]] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts or unit == "s":
            parts.append((count, unit))
    return "".join(f"{count}{unit}" for count, unit in parts[:2] if count or len(parts) == 1)


def timestamp(when: datetime) -> str:
    """Write a time as the API does: RFC 3339, UTC."""
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def age(when: datetime) -> str:
    """Write how long ago *when* was, for people."""
    return human_duration((datetime.now(UTC) - when).total_seconds())


def width(text: str) -> int:
    """Return how many terminal columns *text* takes, colour codes apart."""
    plain = click.unstyle(text)
    if plain.isascii():
        return len(plain)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in plain
    )


def render_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    show_header: bool = True,
    right: frozenset[str] = frozenset(),
    limit: int | None = None,
) -> str:
    """Align *rows* in columns.

    Args:
        header: the columns' names.
        rows: cells, as many as columns.
        show_header: write the header too.
        right: columns that are aligned to the right.
        limit: cut the last column so that a line fits; None: never cut.

    Returns:
        Lines that end in a newline, without trailing blanks.
    """
    lines = [list(header)] if show_header else []
    lines += [list(row) for row in rows]
    if not lines:
        return ""
    widths = [max(width(line[i]) for line in lines) for i in range(len(header))]
    if limit is not None:
        room = limit - sum(widths[:-1]) - len(COLUMN_GAP) * (len(header) - 1)
        for line in lines:
            line[-1] = _cut(line[-1], max(room, 10))
    text = ""
    for line in lines:
        cells = [
            " " * (w - width(cell)) + cell if name in right else cell + " " * (w - width(cell))
            for name, cell, w in zip(header, line, widths, strict=True)
        ]
        text += COLUMN_GAP.join(cells).rstrip() + "\n"
    return text


def _cut(text: str, room: int) -> str:
    if width(text) <= room:
        return text
    kept, used = "", 0
    for char in text:
        used += width(char)
        if used >= room:
            break
        kept += char
    return kept + "…"


def terminal_width(stream: IO[str] | None = None) -> int | None:
    """Return the columns of the terminal behind stdout; None where nobody would see a line wrap."""
    if not is_terminal(stream or sys.stdout):
        return None
    return shutil.get_terminal_size().columns


def write_json(body: bytes) -> None:
    """Write an answer of the daemon as it is, fields that we do not know included, laid out for people."""
    import msgspec

    try:
        text = msgspec.json.format(body, indent=2).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        from s3mgr.errors import BadAnswer

        raise BadAnswer("the daemon's answer is not JSON") from exc
    click.echo(text)
