"""Logging: one handler on stderr, lines for people or JSON, a level that can change while running.

Secrets never reach a line: they live in `Secret` and in wire types whose repr hides them, libraries that log
requests with their headers are kept at WARNING whatever the level, and what still looks like a signature or a
token is blanked here, so that a library's exception text cannot leak one either.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from s3mgrd.config import LogFormat, LogLevel

# They log headers, bodies and signatures at DEBUG, and a line a request at INFO.
_LOUD_LIBRARIES: Final = (
    "aiobotocore",
    "asyncio",
    "boto3",
    "botocore",
    "httpcore2",
    "httpx2",
    "hypercorn",
    "quart",
    "urllib3",
)
_SECRET: Final = re.compile(
    r"""(?ix)
    ( (?: x-amz-(?:signature|security-token|credential)
        | signature | session[_-]?token | secret(?:[_-]?(?:access[_-]?)?key)? | authorization )
      ["']? \s* [=:] \s* ["']? (?:bearer\s+|aws4-hmac-sha256\s+)? )
    [^\s"'&,;]+
    """
)
# What a LogRecord has by itself; anything else came by ``extra=``.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def redact(text: str) -> str:
    """Blank what looks like a signature, token or secret key."""
    return _SECRET.sub(r"\1***", text)


def _extras(record: logging.LogRecord) -> dict[str, Any]:  # Any: whatever was logged
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class TextFormatter(logging.Formatter):
    """``2026-01-31T12:00:00.123Z INFO mounts [logs] message key=value``, a stack below it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        extras = _extras(record)
        mount = extras.pop("mount", None)
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        parts = [
            stamp.replace("+00:00", "Z"),
            record.levelname,
            record.name.removeprefix("s3mgrd."),
        ]
        if mount is not None:
            parts.append(f"[{mount}]")
        parts.append(record.getMessage())
        parts += [f"{key}={value}" for key, value in extras.items()]
        line = " ".join(parts)
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, what ``extra`` brought, and ``stack``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its end."""
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        body: dict[str, object] = {
            "time": stamp.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        for key, value in _extras(record).items():
            plain = value if isinstance(value, int | float | bool | None) else redact(str(value))
            body.setdefault(key, plain)
        if record.exc_info:
            body["stack"] = redact(self.formatException(record.exc_info))
        return json.dumps(body, ensure_ascii=False)


def setup(level: LogLevel, form: LogFormat, stream: TextIO | None = None) -> None:
    """Send the process's log to *stream* (stderr); replaces what was set up before."""
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    for library in _LOUD_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    set_level(level)
    logging.captureWarnings(True)


def set_level(level: LogLevel) -> None:
    """Change the level of what is running; libraries that would log secrets stay at WARNING."""
    logging.getLogger().setLevel(level.upper())
