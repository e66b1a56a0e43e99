"""What each failure becomes: the class decides what a program sees, detail and hint what a person reads."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
import trio

from s3mgrd.errors import (
    Archived,
    BucketNotFound,
    Conflict,
    CredentialsRejected,
    Denied,
    InvalidSpec,
    NotFound,
    PreconditionFailed,
    S3mgrError,
    TimedOut,
    TooLarge,
    Unavailable,
    Unforeseen,
    Unsupported,
    UserError,
)
from s3mgrd.s3.client import S3Store, open_store
from s3mgrd.s3.connections import Address, Connection, Proxy, ProxyRefused, WaitedTooLong
from s3mgrd.s3.port import Condition
from s3mgrd.s3.tls import shared_context
from tests.servers.certificates import make_certificate
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket
from tests.servers.scripted import Answer, error, serve
from tests.unit.s3.support import settings

Call = Callable[[S3Store], Awaitable[object]]


async def get(store: S3Store) -> object:
    return await store.get_range("a key", 0, 10)


async def put(store: S3Store) -> object:
    return await store.put("a key", b"x", metadata={})


async def probe(store: S3Store) -> object:
    await store.probe("")
    return None


async def fail(url: str, call: Call, **changes: object) -> S3mgrError:
    """Make *call* fail and return its error."""
    async with open_store(settings(url, **changes)) as store:
        with pytest.raises(S3mgrError) as caught:
            await call(store)
        assert store.requests_running == 0
    return caught.value


ANSWERS: list[tuple[Call, Answer, type[S3mgrError], str, str]] = [
    (probe, error("404 Not Found", "NoSuchBucket"), BucketNotFound, "bucket 'bucket' not found", "create the bucket"),
    (get, error("404 Not Found", "NoSuchKey"), NotFound, "no object 'a key'", ""),
    (probe, error("403 Forbidden", "InvalidAccessKeyId"), CredentialsRejected, "does not know the access key", "check the access key"),
    (probe, error("403 Forbidden", "SignatureDoesNotMatch"), CredentialsRejected, "the secret key is wrong", "check the secret key"),
    (probe, error("403 Forbidden", "RequestTimeTooSkewed", ServerTime="2020-01-01T00:00:00Z"), CredentialsRejected, "ahead of", "NTP"),
    (probe, error("400 Bad Request", "ExpiredToken"), CredentialsRejected, "token has expired", "new credentials"),
    (probe, error("403 Forbidden", "InvalidToken", "bad"), CredentialsRejected, "session token: bad", "session token"),
    (probe, error("403 Forbidden", "AccessDenied", "no"), Denied, "access to bucket 'bucket' is denied: no", "permission"),
    (get, error("403 Forbidden", "AccessDenied", "no"), Denied, "'a key' in bucket 'bucket' is denied", "permission"),
    (get, error("403 Forbidden", "Whatever", "no"), Denied, "no", "permission"),
    (probe, error("301 Moved", "PermanentRedirect", Endpoint="bucket.s3-eu-west-1.example"), InvalidSpec, "'bucket.s3-eu-west-1.example'", "endpoint"),
    (probe, error("400 Bad Request", "AuthorizationHeaderMalformed", "wrong", Region="eu-west-1"), InvalidSpec, "not in region 'us-east-1' but in 'eu-west-1'", "--region eu-west-1"),
    (probe, error("400 Bad Request", "IllegalLocationConstraintException", "no"), InvalidSpec, "region 'us-east-1': no", "--region"),
    (probe, error("400 Bad Request", "InvalidBucketName"), InvalidSpec, "name of a bucket", "name"),
    (put, error("412 Precondition Failed", "PreconditionFailed"), PreconditionFailed, "another writer was first", ""),
    (put, error("409 Conflict", "ConditionalRequestConflict"), PreconditionFailed, "another writer was first", ""),
    (put, error("409 Conflict", "OperationAborted"), Conflict, "in progress", ""),
    (put, error("400 Bad Request", "EntityTooLarge", "big"), TooLarge, "too large", ""),
    (put, error("400 Bad Request", "KeyTooLongError", "long"), TooLarge, "long", ""),
    (get, error("416 Range", "InvalidRange"), UserError, "beyond the end of 'a key'", ""),
    (get, error("403 Forbidden", "InvalidObjectState"), Archived, "archived", "restore"),
    (
        get,
        error("403 Forbidden", "InvalidObjectState", StorageClass="DEEP_ARCHIVE"),
        Archived,
        "archived in storage class DEEP_ARCHIVE",
        "restore",
    ),
    (put, error("501 Not Implemented", "NotImplemented", "no"), Unsupported, "does not implement PutObject", ""),
    (put, error("405 Not Allowed", "MethodNotAllowed", "no"), Unsupported, "does not implement", ""),
    (put, error("503 Slow Down", "SlowDown", "slow"), Unavailable, "fewer requests: slow", ""),
    (put, error("500 Oops", "InternalError", "oops {x}"), Unavailable, "failed: oops {x}", ""),
    (put, error("400 Bad Request", "RequestTimeout"), TimedOut, "waited too long", ""),
    (put, error("400 Bad Request", "XAmzContentSHA256Mismatch", "x"), Unavailable, "damaged", ""),
    (put, error("507 Full", "XMinioStorageFull"), Unavailable, "no space", ""),
    (put, error("400 Bad Request", "SomethingNew", "hm"), Unforeseen, "refuses PutObject of 'a key' in bucket 'bucket': hm", ""),
    (put, Answer("502 Bad Gateway", b"<html>nginx</html>"), Unavailable, "failed", ""),
    (put, Answer("429 Too Many", b""), Unavailable, "fewer requests", ""),
    (probe, Answer("200 OK", b"<html>hello</html>", {"Content-Type": "text/html"}), InvalidSpec, "does not speak S3: it answered 200 with text/html", "port"),
    (probe, Answer("200 OK", b"plain words", {"Content-Type": "text/plain"}), InvalidSpec, "does not speak S3", "port"),
    (probe, Answer("404 Not Found", b"<html>no</html>", {"Content-Type": "text/html"}), InvalidSpec, "answered 404 with text/html", "port"),
    (probe, Answer("404 Not Found", b'{"error":1}', {"Content-Type": "application/json"}), InvalidSpec, "does not speak S3", "port"),
    (probe, Answer("307 Moved", b"", {"Location": "https://other/"}), InvalidSpec, "redirects to 'https://other/'", "endpoint"),
    (probe, Answer("400 Bad Request", b"Client sent an HTTP request to an HTTPS server.\n"), InvalidSpec, "speaks TLS", "https://"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "answer", "kind", "detail", "hint"),
    ANSWERS,
    ids=[
        f"{kind.__name__}-{answer.status}-{n}" for n, (_, answer, kind, _, _) in enumerate(ANSWERS)
    ],
)
async def test_an_answer_becomes_an_error(
    call: Call, answer: Answer, kind: type[S3mgrError], detail: str, hint: str
) -> None:
    async with serve([answer]) as server:
        caught = await fail(server.url, call)
    assert type(caught) is kind
    assert detail in caught.detail
    assert hint in caught.hint
    assert (caught.hint == "") == (hint == "")
    assert "example-secret" not in caught.detail + caught.hint


async def test_errors_carry_the_request_id() -> None:
    answer = error("403 Forbidden", "AccessDenied")
    answer.headers["x-amz-request-id"] = "REQ1"
    async with serve([answer]) as server:
        assert (await fail(server.url, probe)).request_id == "REQ1"


async def test_the_date_header_tells_how_far_the_clock_is_off() -> None:
    answer = error("403 Forbidden", "RequestTimeTooSkewed")
    ago = datetime.now(UTC) - timedelta(hours=2, minutes=10, seconds=20)
    answer.headers["Date"] = format_datetime(ago, usegmt=True)
    async with serve([answer]) as server:
        caught = await fail(server.url, probe)
    assert "this machine's clock is 2 h 10 min ahead of" in caught.detail


async def test_the_region_may_come_in_a_header() -> None:
    answer = Answer("301 Moved", b"", {"x-amz-bucket-region": "eu-north-1"})
    async with serve([answer]) as server:
        caught = await fail(server.url, lambda store: store.head("k"))
    assert type(caught) is InvalidSpec
    assert "'eu-north-1'" in caught.detail


async def test_an_anonymous_mount_is_told_to_bring_credentials() -> None:
    async with serve([error("403 Forbidden", "AccessDenied")]) as server:
        caught = await fail(server.url, probe, anonymous=True)
        assert "anonymous" in caught.hint
        assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        ("403 Forbidden", error("403 Forbidden", "SignatureDoesNotMatch"), CredentialsRejected),
        ("403 Forbidden", error("403 Forbidden", "AccessDenied"), Denied),
        ("403 Forbidden", Answer(body=b"<ListBucketResult/>"), Denied),
        ("400 Bad Request", error("400 Bad Request", "ExpiredToken"), CredentialsRejected),
        ("404 Not Found", error("404 Not Found", "NoSuchBucket"), BucketNotFound),
        ("404 Not Found", Answer(body=b"<ListBucketResult/>"), NotFound),
        ("404 Not Found", error("403 Forbidden", "AccessDenied"), NotFound),
    ],
)
async def test_a_head_without_a_reason_is_explained_by_a_listing(
    status: str, reason: Answer, kind: type[S3mgrError]
) -> None:
    async with serve([Answer(status), reason]) as server:
        caught = await fail(server.url, lambda store: store.head("k"))
        assert [r.method for r in server.requests] == ["HEAD", "GET"]
    assert type(caught) is kind


async def test_a_missing_key_costs_one_request_in_a_bucket_that_was_seen() -> None:
    async with serve([Answer(body=b"<ListBucketResult/>"), Answer("404 Not Found")]) as server:
        async with open_store(settings(server.url)) as store:
            await store.probe("")
            for _ in range(3):
                with pytest.raises(NotFound):
                    await store.head("k")
        assert len(server.requests) == 4


# Below HTTP.


@asynccontextmanager
async def raw_server(
    handler: Callable[[trio.SocketStream], Awaitable[object]],
) -> AsyncIterator[int]:
    """Serve connections by *handler*; yields the port."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handler, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert isinstance(port, int)
    return port


async def test_a_refused_connection_fails_fast() -> None:
    started = trio.current_time()
    caught = await fail(f"http://127.0.0.1:{closed_port()}", probe, retry_deadline_s=60)
    assert trio.current_time() - started < 2
    assert type(caught) is Unavailable
    assert "refuses connections" in caught.detail
    assert "port" in caught.hint


@pytest.mark.parametrize(
    ("reason", "kind", "detail"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            Unavailable,
            "cannot be resolved",
        ),
        (OSError(113, "No route to host"), Unavailable, "No route to host"),
        (WaitedTooLong(connecting=True), TimedOut, "did not give a connection in time"),
        (ProxyRefused("407 Authentication Required"), Unavailable, "the proxy"),
    ],
)
async def test_failing_to_connect_says_why(
    reason: Exception, kind: type[S3mgrError], detail: str
) -> None:
    async def connect(address: Address, proxy: Proxy | None) -> Connection:
        if not isinstance(reason, OSError):
            raise reason
        # As trio does: one error that groups those of all addresses.
        raise OSError("all attempts failed") from ExceptionGroup("all attempts failed", [reason])

    async with open_store(settings("http://s3.example"), connect=connect) as store:
        with pytest.raises(S3mgrError) as caught:
            await store.put("k", b"x", metadata={})
    assert type(caught.value) is kind
    assert detail in caught.value.detail
    assert caught.value.hint
    assert store.open_connections == 0


async def test_a_connection_that_does_not_come_about_is_given_up() -> None:
    """TLS included: a server that accepts and says nothing."""

    async def listen(stream: trio.SocketStream) -> None:
        async with stream:
            while await stream.receive_some():
                pass

    async with raw_server(listen) as port:
        caught = await fail(f"https://127.0.0.1:{port}", put, connect_timeout_s=0.05)
    assert type(caught) is TimedOut
    assert "did not give a connection in time" in caught.detail


async def test_silence_is_a_timeout() -> None:
    async with serve([Answer(hang=True)]) as server:
        caught = await fail(server.url, get, read_timeout_s=0.05)
    assert type(caught) is TimedOut
    assert "did not give an answer in time" in caught.detail


@pytest.mark.parametrize(
    "answer",
    [
        Answer(cut=0),
        Answer(cut=10),
        Answer("206 Partial Content", b"12345", {"Content-Range": "bytes 0-9/100"}, length=10, cut=200),
        Answer("206 Partial Content", b"12345", {"Content-Range": "bytes 0-9/100"}),
        Answer("206 Partial Content", b"1234567890", {"Content-Range": "bytes 10-19/100"}),
        Answer("206 Partial Content", b"12345", {"Content-Range": "bytes 0-4/100"}),
    ],
)  # fmt: skip
async def test_a_broken_or_wrong_body_is_never_returned(answer: Answer) -> None:
    async with serve([answer]) as server:
        caught = await fail(server.url, get)
    assert type(caught) is Unavailable
    assert "broke" in caught.detail


async def test_a_broken_body_is_read_again() -> None:
    cut = Answer(
        "206 Partial Content", b"12345", {"Content-Range": "bytes 0-9/10"}, length=10, cut=130
    )
    whole = Answer("206 Partial Content", b"0123456789", {"Content-Range": "bytes 0-9/10"})
    async with (
        serve([cut, error("503 Slow Down", "SlowDown"), whole]) as server,
        open_store(settings(server.url, retry_deadline_s=10)) as store,
    ):
        assert (await store.get_range("k", 0, 10)).data == b"0123456789"
        assert store.stats.retries == 2
        assert store.stats.calls["GetObject"].errors == 2


async def test_another_version_than_demanded_is_refused_though_the_store_answers_it() -> None:
    answer = Answer("206 Partial Content", b"x", {"Content-Range": "bytes 0-0/1", "ETag": '"b"'})
    async with serve([answer]) as server:
        caught = await fail(server.url, lambda store: store.get_range("k", 0, 1, if_match="a"))
    assert type(caught) is PreconditionFailed


async def test_a_store_that_ignores_ranges_is_told_so() -> None:
    async with serve([Answer(body=b"x" * 100)]) as server:
        assert type(await fail(server.url, get)) is Unsupported
        async with open_store(settings(server.url)) as store:
            assert (await store.get_range("k", 0, 100)).data == b"x" * 100


async def test_an_endless_answer_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3mgrd.s3.http.MAX_ANSWER_BYTES", 1 << 20)
    async with serve([Answer(body=b"x" * (3 << 20))]) as server:
        caught = await fail(server.url, probe)
    assert type(caught) is InvalidSpec


async def test_a_probe_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3mgrd.s3.client.PROBE_LIMIT_S", 0.05)
    async with serve([Answer(hang=True)]) as server:
        caught = await fail(server.url, probe, read_timeout_s=60)
    assert type(caught) is TimedOut
    assert caught.hint


async def test_a_key_that_is_not_unicode_cannot_be_sent() -> None:
    async with serve([Answer()]) as server:
        caught = await fail(server.url, lambda store: store.head("\udcff"))
        assert server.requests == []
    assert type(caught) is UserError


@pytest.mark.parametrize("region", ["us_east 1", "a/b"])
async def test_a_region_that_cannot_be_is_refused(region: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        async with open_store(settings("http://localhost", region=region)):
            pass
    assert "region" in caught.value.hint


# TLS.


@pytest.fixture
def fresh_tls() -> Iterator[None]:
    shared_context.cache_clear()
    yield
    shared_context.cache_clear()


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    context, _ = make_certificate(tmp_path)
    async with serve([Answer()], tls=context) as server:
        caught = await fail(server.url, probe)
        assert server.requests == []
    assert type(caught) is Unavailable
    assert "certificate" in caught.detail
    assert "AWS_CA_BUNDLE" in caught.hint


@pytest.mark.usefixtures("fresh_tls")
async def test_a_private_authority_can_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, authority = make_certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    async with serve([Answer()], tls=context) as server:
        async with open_store(settings(server.url)) as store:
            await store.put("k", b"x", metadata={})
        assert server.requests[0].body == b"x"


@pytest.mark.usefixtures("fresh_tls")
async def test_a_certificate_for_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, authority = make_certificate(tmp_path, "DNS:s3.example")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority))
    async with serve([Answer()], tls=context) as server:
        caught = await fail(server.url, probe)
    assert "certificate" in caught.detail
    assert "host name" in caught.hint


async def test_https_to_a_server_without_tls_names_the_fix() -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    async with raw_server(refuse) as port:
        caught = await fail(f"https://127.0.0.1:{port}", probe)
    assert type(caught) is Unavailable
    assert "does not speak TLS" in caught.detail
    assert "http://" in caught.hint


async def test_http_to_a_server_with_tls_names_the_fix() -> None:
    async def alert(stream: trio.SocketStream) -> None:
        # What OpenSSL servers send to a client that speaks HTTP.
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"\x15\x03\x01\x00\x02\x02\x46")

    async with raw_server(alert) as port:
        caught = await fail(f"http://127.0.0.1:{port}", probe)
    assert "speaks TLS" in caught.detail
    assert "https://" in caught.hint


async def test_a_server_of_another_protocol_is_named() -> None:
    async def greet(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"220 mail.example ESMTP\r\n")
            await stream.receive_some()

    async with raw_server(greet) as port:
        caught = await fail(f"http://127.0.0.1:{port}", probe)
    assert type(caught) is InvalidSpec
    assert "does not speak HTTP" in caught.detail


# A real server with real signatures.


@pytest.fixture
def bucket_on_radosgw(radosgw: Endpoint) -> Iterator[str]:
    client = radosgw.boto3()
    name = make_bucket(client)
    yield name
    remove_bucket(client, name)
    client.close()


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ("key", "does not know the access key"),
        ("secret", "the secret key is wrong"),
        ("clock", "clock is 1 h 0 min"),
    ],
)
async def test_radosgw_refuses_bad_credentials(
    radosgw: Endpoint, change: str, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = radosgw.access_key, radosgw.secret_key
    if change == "key":
        key += "X"
    elif change == "secret":
        secret += "X"
    else:
        ahead = datetime.now(UTC) + timedelta(hours=1, seconds=5)
        monkeypatch.setattr("s3mgrd.s3.signing.utc_now", lambda: ahead)
        monkeypatch.setattr("s3mgrd.s3.failures._utc_now", lambda: ahead)
    endpoint = Endpoint("radosgw", radosgw.url, key, secret)
    async with open_store(endpoint.settings("bucket")) as store:
        for call in (probe, get, put, lambda s: s.head("k")):
            with pytest.raises(CredentialsRejected) as caught:
                await call(store)
            assert detail in caught.value.detail
            assert caught.value.hint


async def test_radosgw_denies_what_is_anonymous(radosgw: Endpoint, bucket_on_radosgw: str) -> None:
    async with open_store(
        radosgw.settings(bucket_on_radosgw, anonymous=True, credentials=None)
    ) as store:
        for call in (probe, get, lambda s: s.head("k")):
            with pytest.raises(Denied) as caught:
                await call(store)
            assert "anonymous" in caught.value.hint
        with pytest.raises(Denied):
            await store.put("k", b"x", metadata={}, condition=Condition(absent=True))
