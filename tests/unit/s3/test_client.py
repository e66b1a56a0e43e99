"""What the S3 store does on the wire: repeated writes, conditions, connections, bodies, logs."""

import hashlib
import logging
import os
import tempfile
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from s3mgrd.errors import Corrupt, PreconditionFailed, TooLarge, Unavailable
from s3mgrd.s3.calls import LIGHT_BYTES
from s3mgrd.s3.client import open_store
from s3mgrd.s3.multipart import multipart_etag
from s3mgrd.s3.port import REPLACED, Checksums, Condition, Conditions, FileSlice, Part
from tests.servers.scripted import Answer, Request, ScriptedServer, error, serve
from tests.unit.s3.support import settings, until

NEW = Condition(absent=True)
LOST = error("412 Precondition Failed", "PreconditionFailed")
GONE = Answer("404 Not Found")
MD5_OF_X = hashlib.md5(b"x", usedforsecurity=False).hexdigest()


def object_answer(etag: str, **metadata: str) -> Answer:
    headers = {"ETag": f'"{etag}"', "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT"}
    headers |= {f"x-amz-meta-{name}": value for name, value in metadata.items()}
    return Answer("200 OK", b"", headers)


class Bucket:
    """A handler with one key: its ETag, or None; `lose` answers get lost after taking effect."""

    def __init__(self, etag: str | None = None) -> None:
        self.etag = etag
        self.lose = 0
        self.heeds_conditions = True
        self.understands_quotes = True

    def __call__(self, request: Request) -> Answer:
        if request.method == "GET":
            return Answer(body=b"<ListBucketResult/>")
        if request.method == "HEAD":
            return GONE if self.etag is None else object_answer(self.etag)
        if self.heeds_conditions and not self._holds(request):
            return LOST
        self.etag = hashlib.md5(request.body, usedforsecurity=False).hexdigest()
        if self.lose:
            self.lose -= 1
            return Answer(cut=0)
        return Answer(headers={"ETag": f'"{self.etag}"'})

    def _holds(self, request: Request) -> bool:
        if request.headers.get("if-none-match") == "*" and self.etag is not None:
            return False
        wanted = request.headers.get("if-match")
        found = f'"{self.etag}"' if self.understands_quotes else self.etag
        return wanted is None or wanted == found


def methods(server: ScriptedServer) -> str:
    return " ".join(request.method for request in server.requests)


# Repeated writes.


async def test_a_write_that_is_refused_because_of_itself_has_succeeded() -> None:
    bucket = Bucket()
    bucket.lose = 1
    async with serve(bucket) as server:
        async with open_store(settings(server.url, retry_deadline_s=5)) as store:
            written = await store.put("k", b"x", metadata={}, condition=NEW)
        assert written.etag == MD5_OF_X
        assert methods(server) == "HEAD GET PUT PUT HEAD"


async def test_a_write_that_is_refused_because_of_another_has_lost() -> None:
    def answer(request: Request) -> Answer:
        if request.method == "PUT":
            return Answer(cut=0) if len(server.requests) == 3 else LOST
        # gone at first, then another writer's
        return object_answer("other") if len(server.requests) > 3 else bucket(request)

    bucket = Bucket()
    async with (
        serve(answer) as server,
        open_store(settings(server.url, retry_deadline_s=5)) as store,
    ):
        with pytest.raises(PreconditionFailed):
            await store.put("k", b"x", metadata={}, condition=NEW)


async def test_the_same_bytes_with_other_metadata_are_another_writers() -> None:
    def answer(request: Request) -> Answer:
        if request.method == "PUT":
            return Answer(cut=0) if len(server.requests) == 3 else LOST
        return object_answer(MD5_OF_X, m="2") if len(server.requests) > 3 else bucket(request)

    bucket = Bucket()
    async with (
        serve(answer) as server,
        open_store(settings(server.url, retry_deadline_s=5)) as store,
    ):
        with pytest.raises(PreconditionFailed):
            await store.put("k", b"x", metadata={"m": "1"}, condition=NEW)


async def test_a_refusal_of_the_first_attempt_is_believed_at_once() -> None:
    async with serve([GONE, Answer(body=b"<ListBucketResult/>"), LOST]) as server:
        async with open_store(settings(server.url, retry_deadline_s=5)) as store:
            with pytest.raises(PreconditionFailed):
                await store.put("k", b"x", metadata={}, condition=NEW)
        assert methods(server) == "HEAD GET PUT"


async def test_an_upload_that_was_completed_without_an_answer_is_not_lost() -> None:
    parts = [Part(1, MD5_OF_X, 1)]
    script = [
        Answer(cut=0),
        error("404 Not Found", "NoSuchUpload"),
        object_answer(multipart_etag(parts)),
    ]
    async with (
        serve(script) as server,
        open_store(settings(server.url, retry_deadline_s=5)) as store,
    ):
        written = await store.complete_multipart("k", "id", parts)
    assert written.etag == multipart_etag(parts)


# Conditions.


async def test_a_store_that_ignores_conditions_is_found_out() -> None:
    bucket = Bucket()
    bucket.heeds_conditions = False
    async with serve(bucket) as server, open_store(settings(server.url)) as store:
        await store.put("k", b"x", metadata={}, condition=NEW)
        assert store.conditions.writes == "unsupported"
        # a HEAD stands in
        with pytest.raises(PreconditionFailed):
            await store.put("k", b"y", metadata={}, condition=NEW)
        assert bucket.etag == MD5_OF_X


async def test_a_store_that_refuses_conditions_is_written_without() -> None:
    bucket = Bucket()

    def answer(request: Request) -> Answer:
        if {"if-match", "if-none-match"} & set(request.headers):
            return error("501 Not Implemented", "NotImplemented")
        return bucket(request)

    async with serve(answer) as server, open_store(settings(server.url)) as store:
        await store.put("k", b"x", metadata={}, condition=NEW)
        assert store.conditions.writes == "unsupported"
        with pytest.raises(PreconditionFailed):
            await store.put("k", b"y", metadata={}, condition=NEW)


async def test_a_store_that_heeds_conditions_costs_nothing_extra() -> None:
    async with serve(Bucket()) as server, open_store(settings(server.url)) as store:
        first = await store.put("k", b"x", metadata={}, condition=NEW)
        assert store.conditions.writes == "supported"
        second = await store.put("k", b"y", metadata={}, condition=Condition(if_match=first.etag))
        server.requests.clear()
        await store.put("k", b"z", metadata={}, condition=Condition(if_match=second.etag))
        with pytest.raises(PreconditionFailed):
            await store.put("k", b"z", metadata={}, condition=Condition(if_match=first.etag))
        assert methods(server) == "PUT PUT"


async def test_a_store_without_quotes_is_understood() -> None:
    bucket = Bucket(MD5_OF_X)
    bucket.understands_quotes = False
    async with serve(bucket) as server, open_store(settings(server.url)) as store:
        written = await store.put("k", b"y", metadata={}, condition=Condition(if_match=MD5_OF_X))
        server.requests.clear()
        await store.put("k", b"z", metadata={}, condition=Condition(if_match=written.etag))
        assert server.requests[-1].headers["if-match"] == written.etag
        with pytest.raises(PreconditionFailed):
            await store.put("k", b"z", metadata={}, condition=Condition(if_match=MD5_OF_X))


async def test_a_large_body_is_not_sent_twice_to_find_out() -> None:
    async with serve(Bucket()) as server, open_store(settings(server.url)) as store:
        await store.put("k", b"x" * (1 << 20), metadata={}, condition=NEW)
        assert store.conditions.writes == "unknown"
        assert methods(server) == "HEAD GET PUT"


async def test_each_kind_of_condition_is_found_out_for_itself() -> None:
    """A store may know one and not the other."""
    bucket = Bucket()

    def answer(request: Request) -> Answer:
        request.headers.pop("if-match", None)
        return bucket(request)

    async with serve(answer) as server, open_store(settings(server.url)) as store:
        first = await store.put("k", b"x", metadata={}, condition=NEW)
        found = store.conditions
        assert (found.put_if_absent, found.put_if_match) == ("supported", "unsupported")
        assert found.writes == "unsupported"
        await store.put("k", b"y", metadata={}, condition=Condition(if_match=first.etag))
        server.requests.clear()
        with pytest.raises(PreconditionFailed):
            await store.put("k", b"z", metadata={}, condition=Condition(if_match=first.etag))
        assert methods(server) == "HEAD"


async def test_what_was_found_out_before_is_believed() -> None:
    async with serve(Bucket(MD5_OF_X)) as server, open_store(settings(server.url)) as store:
        store.recall(Conditions(put_if_match="supported", delete="unsupported"), Checksums())
        await store.put("k", b"y", metadata={}, condition=Condition(if_match=MD5_OF_X))
        assert methods(server) == "PUT PUT"  # the other condition of a PUT is found out
        assert store.conditions == Conditions("supported", "supported", delete="unsupported")


DELETED = Answer(body=b"<DeleteResult/>")


def not_deleted(key: str, code: str) -> Answer:
    text = f"<DeleteResult><Error><Key>{key}</Key><Code>{code}</Code><Message>no</Message></Error></DeleteResult>"
    return Answer(body=text.encode())


async def test_a_store_is_asked_once_whether_it_deletes_versions() -> None:
    script = [not_deleted("a", "PreconditionFailed"), DELETED, not_deleted("b", REPLACED)]
    async with serve(script) as server, open_store(settings(server.url)) as store:
        assert not await store.delete_many(["a"], if_match={"a": "1"})
        assert store.conditions.delete == "supported"
        (failure,) = await store.delete_many(["a", "b"], if_match={"b": "2"})
        assert (failure.key, failure.code) == ("b", REPLACED)
        probe, real, last = (request.body.decode() for request in server.requests)
        assert '<ETag>"000' in probe
        assert '<ETag>"1"</ETag>' in real
        assert last.count("<ETag>") == 1


async def test_a_store_that_deletes_whatever_lies_there_is_not_asked_again() -> None:
    """What it deleted when asked was to be deleted anyway."""
    script = [DELETED, DELETED, DELETED]
    async with serve(script) as server, open_store(settings(server.url)) as store:
        assert not await store.delete_many(["a", "b"], if_match={"a": "1", "b": "2"})
        assert store.conditions.delete == "unsupported"
        assert "<Key>a</Key>" not in server.requests[-1].body.decode()
        await store.delete_many(["c"], if_match={"c": "3"})
        assert "<ETag>" not in server.requests[-1].body.decode()


async def test_a_store_that_refuses_versions_is_sent_none() -> None:
    script = [error("400 Bad Request", "MalformedXML"), DELETED]
    async with serve(script) as server, open_store(settings(server.url)) as store:
        assert not await store.delete_many(["a"], if_match={"a": "1"})
        assert store.conditions.delete == "unsupported"
        assert "<ETag>" not in server.requests[-1].body.decode()


@pytest.mark.parametrize("answer", ["501 Not Implemented", "405 Method Not Allowed"])
async def test_a_store_without_batches_is_sent_single_deletes(answer: str) -> None:
    script = [
        error(answer, "NotImplemented"),
        Answer(status="204 No Content"),
        error("403 Forbidden", "AccessDenied"),
        Answer(status="204 No Content"),
    ]
    async with (
        serve(script) as server,
        open_store(settings(server.url, concurrency=1)) as store,
    ):
        (failure,) = await store.delete_many(["a", "b", "c"])
        assert failure.code == "AccessDenied"
        assert [request.method for request in server.requests] == ["POST", *["DELETE"] * 3]


async def test_a_key_that_is_gone_tells_nothing_of_the_store() -> None:
    script = [not_deleted("a", "NoSuchKey"), DELETED]
    async with serve(script) as server, open_store(settings(server.url)) as store:
        assert not await store.delete_many(["a"], if_match={"a": "1"})
        assert store.conditions.delete == "unknown"


async def test_aws_is_known_to_heed_conditions() -> None:
    async with open_store(settings(None)) as store:
        assert store.conditions.writes == "supported"


# Bodies.


async def test_over_http_the_signature_covers_the_body() -> None:
    with tempfile.TemporaryFile() as file:
        data = os.urandom((2 << 20) + 5)
        file.write(data)
        file.flush()
        async with serve([Answer()]) as server, open_store(settings(server.url)) as store:
            await store.put("k", FileSlice(file.fileno(), 3, len(data) - 3), metadata={})
            await store.put("k", data, metadata={})
            await store.put("k", b"", metadata={})
        for request, body in zip(server.requests, (data[3:], data, b""), strict=True):
            assert request.body == body
            assert request.headers["x-amz-content-sha256"] == hashlib.sha256(body).hexdigest()
            assert "expect" not in request.headers
            assert "transfer-encoding" not in request.headers


async def test_a_file_that_is_too_short_is_not_uploaded() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"short")
        file.flush()
        async with serve([Answer()]) as server, open_store(settings(server.url)) as store:
            with pytest.raises(Corrupt):
                await store.put("k", FileSlice(file.fileno(), 0, 100), metadata={})


async def test_a_body_over_the_limit_is_refused_before_it_is_sent() -> None:
    async with serve([Answer()]) as server:
        async with open_store(settings(server.url)) as store:
            with pytest.raises(TooLarge):
                await store.put("k", FileSlice(0, 0, (5 << 30) + 1), metadata={})
        assert server.requests == []


# Connections.


@pytest.mark.parametrize("verb", ["get", "put", "list"])
async def test_a_cancelled_request_closes_its_connection(verb: str) -> None:
    async with serve([Answer(hang=True)]) as server, open_store(settings(server.url)) as store:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                if verb == "get":
                    nursery.start_soon(store.get_range, "k", 0, 10)
                elif verb == "put":
                    nursery.start_soon(lambda: store.put("k", b"x" * 100_000, metadata={}))
                else:
                    nursery.start_soon(lambda: store.list_page("", delimited=True))
            await until(lambda: len(server.requests) == 5)
            assert store.open_connections == 5
            nursery.cancel_scope.cancel()
        assert store.open_connections == 0
        assert store.requests_running == 0
        await until(lambda: server.connections == 0)


async def test_a_body_that_is_not_read_to_its_end_closes_its_connection() -> None:
    whole = Answer("206 Partial Content", b"x" * 1000, {"Content-Range": "bytes 0-999/1000"})
    async with serve([whole]) as server, open_store(settings(server.url)) as store:
        with pytest.raises(Unavailable):
            await store.get_range("k", 0, 10)
        assert store.open_connections == 0


async def test_connections_are_used_again() -> None:
    async with serve([Answer()]) as server:
        async with open_store(settings(server.url)) as store:
            for _ in range(5):
                await store.put("k", b"x", metadata={})
            assert store.open_connections == server.connections == 1
        assert store.open_connections == 0


async def test_the_number_of_requests_can_be_changed() -> None:
    body = bytes(LIGHT_BYTES + 1)
    release = trio.Event()
    running = most = 0

    async def slow(_: Request) -> Answer:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1
        return Answer()

    async with serve(slow) as server, open_store(settings(server.url, concurrency=2)) as store:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(lambda n=number: store.put(f"k{n}", body, metadata={}))  # type: ignore[misc]  # lambda
            await until(lambda: running == 2)
            await wait_all_tasks_blocked(0.02)
            assert most == 2
            store.set_concurrency(5)
            await until(lambda: running == 5)
            await wait_all_tasks_blocked(0.02)
            assert most == 5
            release.set()
        assert len(server.requests) == 8


async def test_small_uploads_have_four_times_the_room() -> None:
    """They wait for S3 and not for the network: a thousand of them a second need it."""
    release = trio.Event()
    running = 0

    async def slow(_: Request) -> Answer:
        nonlocal running
        running += 1
        await release.wait()
        return Answer()

    async with (
        serve(slow) as server,
        open_store(settings(server.url, concurrency=2)) as store,
        trio.open_nursery() as nursery,
    ):
        for number in range(9):
            nursery.start_soon(
                lambda n=number: store.put(f"k{n}", bytes(LIGHT_BYTES), metadata={})  # type: ignore[misc]  # lambda
            )
        await until(lambda: running == 8)
        await wait_all_tasks_blocked(0.02)
        assert running == 8
        release.set()


async def test_waiting_for_a_retry_occupies_no_request() -> None:
    answers = [error("503 Slow Down", "SlowDown"), Answer()]
    answers[0].headers["Retry-After"] = "1"
    options = {"concurrency": 1, "retry_deadline_s": 30}
    async with (
        serve(answers) as server,
        open_store(settings(server.url, **options)) as store,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(lambda: store.put("slow", b"", metadata={}))
        await until(lambda: store.stats.retries == 1)
        assert store.requests_running == 0
        await store.put("fast", b"", metadata={})
        nursery.cancel_scope.cancel()


# What is logged.


async def test_the_debug_log_has_calls_and_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    answer = Answer(headers={"x-amz-request-id": "REQ1"})
    with caplog.at_level(logging.DEBUG):
        async with serve([answer]) as server, open_store(settings(server.url)) as store:
            await store.put("a\nkey", b"12345", metadata={"m": "metadata-value"})
            authorization = server.requests[0].headers["authorization"]
    line = next(r.getMessage() for r in caplog.records if "PutObject" in r.getMessage())
    for part in (
        "PutObject",
        r"key='a\nkey'",
        "status=200",
        "request_id=REQ1",
        "sent=5",
        "seconds=",
    ):
        assert part in line
    signature = authorization.partition("Signature=")[2]
    for secret in ("example-secret", "AKEXAMPLE", signature, "12345"):
        assert secret not in caplog.text


# Copies.


async def test_a_changed_mode_keeps_what_other_tools_have_set() -> None:
    source = object_answer("e", mode="1")
    source.headers |= {
        "Cache-Control": "max-age=60",
        "Content-Encoding": "gzip",
        "Content-Language": "de",
        "Content-Disposition": "inline",
        "Expires": "Tue, 14 Nov 2023 22:13:20 GMT",
        "x-amz-storage-class": "STANDARD_IA",
    }
    copied = Answer(body=b"<CopyObjectResult><ETag>f</ETag></CopyObjectResult>")
    async with serve([source, copied]) as server, open_store(settings(server.url)) as store:
        written = await store.copy(
            "k", "k", source_size=1, metadata={"mode": "2"}, content_type="a/b"
        )
    assert written.etag == "f"
    head, copy = server.requests
    assert head.method == "HEAD"
    expected = source.headers | {
        "x-amz-meta-mode": "2",
        "Content-Type": "a/b",
        "x-amz-metadata-directive": "REPLACE",
    }
    del expected["ETag"], expected["Last-Modified"]
    assert {n.lower(): copy.headers.get(n.lower()) for n in expected} == {
        n.lower(): v for n, v in expected.items()
    }


# Addresses.


async def test_the_bucket_may_be_a_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen through a proxy, which gets the whole URL and needs no name to be resolved."""
    async with serve([Answer()]) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        for addressing in ("virtual", "path"):
            options = settings("http://s3.example:8080", addressing=addressing)
            async with open_store(options) as store:
                await store.put("a//../b c", b"x", metadata={})
    assert [(r.target, r.headers["host"]) for r in proxy.requests] == [
        ("http://bucket.s3.example:8080/a//../b%20c", "bucket.s3.example:8080"),
        ("http://s3.example:8080/bucket/a//../b%20c", "s3.example:8080"),
    ]


async def test_this_machine_is_never_reached_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with serve([Answer()]) as server, open_store(settings(server.url)) as store:
        await store.put("k", b"x", metadata={})


async def test_the_environment_does_not_change_a_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(
        "[default]\nregion = eu-west-1\nendpoint_url = http://127.0.0.1:1\n[profile p]\n"
    )
    for name, value in {
        "AWS_CONFIG_FILE": str(config),
        "AWS_PROFILE": "does-not-exist",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "OTHER",
        "AWS_SECRET_ACCESS_KEY": "other",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_supported",
        "AWS_DEFAULTS_MODE": "standard",
        "AWS_MAX_ATTEMPTS": "7",
    }.items():
        monkeypatch.setenv(name, value)
    async with serve([error("500 Oops", "InternalError")]) as server:
        async with open_store(settings(server.url)) as store:
            with pytest.raises(Unavailable):
                await store.put("k", b"x", metadata={})
        (request,) = server.requests
    assert "/us-east-1/s3/aws4_request" in request.headers["authorization"]
    assert "AKEXAMPLE" in request.headers["authorization"]
    told = [name for name in request.headers if "checksum" in name or "trailer" in name]
    assert told == ["x-amz-checksum-crc32c"]
