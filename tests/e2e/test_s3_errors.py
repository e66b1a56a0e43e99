"""What S3 refuses, seen by programs and by whoever reads the log: every line of the errno table that a server can cause."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from tests.e2e.lab import Daemon, Lab, wait_for
from tests.servers.endpoint import Endpoint
from tests.servers.scripted import Answer, Request, error
from tests.servers.threaded import run_scripted

ETAG = '"0123456789abcdef0123456789abcdef"'
DATE = "Mon, 22 Nov 2027 10:00:00 GMT"
REQUEST_ID = "REQ-4711"
LOCKED = "Access Denied because object protected by object lock."

FAILURES: dict[str, Answer] = {
    "denied": error("403 Forbidden", "AccessDenied", "no such permission"),
    "locked": error("403 Forbidden", "AccessDenied", LOCKED),
    "expired": error("400 Bad Request", "ExpiredToken", "The provided token has expired."),
    "signature": error("403 Forbidden", "SignatureDoesNotMatch", "another signature"),
    "archived": error("403 Forbidden", "InvalidObjectState", "cold", StorageClass="DEEP_ARCHIVE"),
    "large": error("400 Bad Request", "EntityTooLarge", "too large"),
    "slow": error("503 Slow Down", "SlowDown", "Reduce your request rate."),
    "broken": error("500 Internal Server Error", "InternalError", "We are sorry."),
    "hangs": Answer(hang=True),
    "cut": Answer(cut=0),
    "gone": error("404 Not Found", "NoSuchKey", "gone"),
    "changed": error("412 Precondition Failed", "PreconditionFailed", "changed"),
    "unknown": error("501 Not Implemented", "NotImplemented", "not here"),
    "strange": error("400 Bad Request", "OurOwnInvention", "nobody knows this"),
}
for answer in FAILURES.values():
    answer.headers["x-amz-request-id"] = REQUEST_ID


def answer_request(request: Request) -> Answer:
    """Be a bucket of files, whose names say how reading and writing them fails."""
    url = urlsplit(request.target)
    query = parse_qs(url.query)
    key = unquote(url.path).removeprefix("/bucket").removeprefix("/")
    if not key:
        return _list(query.get("prefix", [""])[0]) if "list-type" in query else Answer()
    name = key.rsplit("/", 1)[-1]
    is_there = key.startswith("read/") and name in FAILURES
    if request.method == "HEAD":
        head = {"ETag": ETAG, "Last-Modified": DATE, "Accept-Ranges": "bytes"}
        return Answer(headers=head, length=10) if is_there else Answer("404 Not Found")
    if request.method == "PUT" and name not in FAILURES:
        return Answer(headers={"ETag": ETAG})
    return FAILURES.get(name, FAILURES["gone"])


def _list(prefix: str) -> Answer:
    names = FAILURES if prefix == "read/" else ()
    entries = "".join(
        f"<Contents><Key>{prefix}{name}</Key><LastModified>2027-11-22T10:00:00.000Z</LastModified>"
        f"<ETag>{ETAG}</ETag><Size>10</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for name in sorted(names)
    )
    common = "" if prefix else "<CommonPrefixes><Prefix>read/</Prefix></CommonPrefixes>"
    body = (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>bucket</Name>'
        f"<Prefix>{prefix}</Prefix><IsTruncated>false</IsTruncated>{entries}{common}</ListBucketResult>"
    )
    return Answer(body=body.encode(), headers={"Content-Type": "application/xml"})


@dataclass(frozen=True)
class Site:
    daemon: Daemon
    mount: Path

    def failed_uploads(self) -> dict[str, str]:
        return {f.path: f.error for f in self.daemon.show().status.failed_uploads}

    def log(self) -> str:
        return (self.daemon.state_dir / "logs" / "m.log").read_text()


@pytest.fixture(scope="module")
def site(module_lab: Lab) -> Iterator[Site]:
    with run_scripted(answer_request) as server:
        endpoint = Endpoint("ministack", server.url, "key", "secret")
        daemon = module_lab.daemon()
        options = "retry_deadline_s=0.5,read_timeout_s=1,metadata_ttl_s=3600,attributes=off"
        mount = daemon.mount(endpoint, "bucket", "m", "-o", options)
        os.listdir(mount / "read")
        try:
            yield Site(daemon, mount)
        finally:
            daemon.run("unmount", "m", "--discard", "--yes")


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("denied", errno.EACCES, "no such permission"),
        ("locked", errno.EACCES, LOCKED),
        ("expired", errno.EACCES, "the session token has expired"),
        ("signature", errno.EACCES, "the secret key is wrong"),
        ("archived", errno.EIO, "archived in storage class DEEP_ARCHIVE"),
        ("slow", errno.EIO, "Reduce your request rate."),
        ("broken", errno.EIO, "We are sorry."),
        ("hangs", errno.ETIMEDOUT, "did not give an answer in time"),
        ("cut", errno.EIO, "broke"),
        ("gone", errno.ESTALE, ""),
        ("changed", errno.ESTALE, ""),
        ("unknown", errno.EOPNOTSUPP, "not here"),
        ("strange", errno.EIO, "nobody knows this"),
    ],
)
def test_reading_fails_with_the_errno_of_the_table(
    site: Site, name: str, number: int, said: str
) -> None:
    with pytest.raises(OSError, match=r"\[Errno") as failure:
        (site.mount / "read" / name).read_bytes()
    assert failure.value.errno == number
    log = site.log()
    assert said in log
    if said and name not in ("hangs", "cut"):
        (line,) = [line for line in log.splitlines() if said in line and REQUEST_ID in line][:1]
        assert " WARNING " in line


@pytest.mark.parametrize(
    ("name", "number", "said"),
    [
        ("denied", errno.EACCES, "no such permission"),
        ("locked", errno.EACCES, LOCKED),
        ("large", errno.EFBIG, "too large"),
        ("slow", errno.EIO, "Reduce your request rate."),
        ("broken", errno.EIO, "We are sorry."),
        ("hangs", errno.ETIMEDOUT, "did not give an answer in time"),
        ("unknown", errno.EOPNOTSUPP, "not here"),
        ("strange", errno.EIO, "nobody knows this"),
    ],
)
def test_closing_what_s3_does_not_take_fails_and_the_data_is_kept(
    site: Site, name: str, number: int, said: str
) -> None:
    path = site.mount / name
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"kept")
    with pytest.raises(OSError, match=r"\[Errno") as failure:
        os.close(descriptor)
    assert failure.value.errno == number
    assert path.read_bytes() == b"kept"
    wait_for(f"the status lists {name!r}", lambda: said in site.failed_uploads().get(name, ""))
    assert f"upload of {name} failed and is kept" in site.log()


@pytest.mark.parametrize("operation", ["read", "flush"])
def test_what_nobody_foresaw_is_logged_with_the_request_and_a_stack(
    site: Site, operation: str
) -> None:
    """Who has to find out what a store means needs both."""
    if operation == "read":
        with pytest.raises(OSError, match=r"\[Errno"):
            (site.mount / "read" / "strange").read_bytes()
    else:
        with pytest.raises(OSError, match=r"\[Errno"):
            (site.mount / "strange").write_bytes(b"kept")
    lines = site.log().splitlines()
    record = next(
        number
        for number, line in enumerate(lines)
        if f" {operation}: " in line and "nobody knows this" in line and REQUEST_ID in line
    )
    assert " WARNING " in lines[record]
    assert lines[record + 1].startswith("Traceback")


def test_a_delete_that_a_retention_denies_is_tried_again_and_said_so(site: Site) -> None:
    """The name is gone from the mount at once, as everywhere; that S3 keeps the object is in status and log."""
    (site.mount / "read" / "locked").unlink()
    said = f"read/locked' in bucket 'bucket' is denied: {LOCKED}"
    wait_for("the log names the reason", lambda: said in site.log())
    assert not (site.mount / "read" / "locked").exists()
