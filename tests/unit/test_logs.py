"""Log lines: for people and for machines, and never with a secret."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from s3mgrd import logs
from s3mgrd.config import LogFormat
from s3mgrd.secret import Secret


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A log of its own; the process's handlers come back afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def test_lines_for_people(stream: io.StringIO) -> None:
    logs.setup("info", "text", stream)
    logging.getLogger("s3mgrd.mounts").info("hello %s", "you", extra={"mount": "m", "ms": 5})
    stamp, rest = stream.getvalue().split(" ", 1)
    assert stamp.endswith("Z")
    assert rest == "INFO mounts [m] hello you ms=5\n"


def test_lines_for_machines(stream: io.StringIO) -> None:
    logs.setup("info", "json", stream)
    try:
        int("wrong")
    except ValueError:
        logging.getLogger("s3mgrd.x").exception("oh", extra={"mount": "m", "n": 1})
    body = json.loads(stream.getvalue())
    assert (body["level"], body["logger"], body["message"]) == ("ERROR", "s3mgrd.x", "oh")
    assert (body["mount"], body["n"]) == ("m", 1)
    assert "ValueError: invalid literal" in body["stack"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_looks_like_a_secret_is_blanked(form: LogFormat, stream: io.StringIO) -> None:
    logs.setup("debug", form, stream)
    log = logging.getLogger("s3mgrd.x")
    for line in (
        "GET /?X-Amz-Signature=hunter2&x=1",
        "'x-amz-security-token': 'hunter2'",
        "Authorization: AWS4-HMAC-SHA256 hunter2",
        "authorization: Bearer hunter2",
        "aws_secret_access_key = hunter2",
        "SecretKey=hunter2",
        '"secret_key":"hunter2"',
    ):
        log.info("%s", line)
        log.info("x", extra={"body": line})
    log.info("%s", Secret("hunter2"))
    assert "hunter2" not in stream.getvalue()
    assert "&x=1" in stream.getvalue()


def test_the_level_changes_live_but_not_for_libraries_that_log_secrets(
    stream: io.StringIO,
) -> None:
    logs.setup("info", "text", stream)
    logging.getLogger("s3mgrd.x").debug("one")
    logs.set_level("debug")
    logging.getLogger("s3mgrd.x").debug("two")
    logging.getLogger("botocore.auth").debug("StringToSign")
    assert "one" not in stream.getvalue()
    assert "two" in stream.getvalue()
    assert "StringToSign" not in stream.getvalue()
