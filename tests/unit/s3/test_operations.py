"""The short way of a call and aiobotocore's are one: the same request, the same answer, the same failure."""

import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from s3mgrd.errors import InvalidSpec, NotFound, S3mgrError, Unavailable
from s3mgrd.s3.calls import Calls
from s3mgrd.s3.client import S3Store, open_store
from s3mgrd.s3.connections import Address, Connection, Proxy
from s3mgrd.s3.operations import LEAN, operation
from s3mgrd.s3.port import FileSlice, Part
from s3mgrd.s3.retry import CallFailed
from tests.servers.scripted import Answer, Request, error, serve
from tests.unit.s3.support import settings

ODD = "a b/ü+%~//../'\"<&>\n\x7f"
OBJECT = {
    "ETag": '"abc"',
    "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT",
    "Content-Type": "text/plain",
    "Content-Encoding": "gzip",
    "Expires": "Thu, 01 Dec 1994 16:00:00 GMT",
    "x-amz-storage-class": "STANDARD_IA",
    "x-amz-tagging-count": "2",
    "x-amz-server-side-encryption-bucket-key-enabled": "true",
    "x-amz-meta-Mode": "33188",
    "x-amz-meta-empty": "",
    "x-amz-version-id": "v1",
}
SPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
COPIED = (
    f"<CopyObjectResult {SPACE}><LastModified>2023-11-14T22:13:20.123Z</LastModified>"
    "<ETag>&quot;e&quot;</ETag></CopyObjectResult>"
)
RANGE = Answer("206 Partial Content", b"0123456789", {**OBJECT, "Content-Range": "bytes 0-9/100"})

Use = Callable[[S3Store], Awaitable[object]]
CALLS: list[tuple[Use, Answer]] = [
    (lambda s: s.list_page("a b/", delimited=True, token="t+/="), Answer(body=f"<ListBucketResult {SPACE}/>".encode())),
    (lambda s: s.list_page("", delimited=False, start_after=ODD), Answer(body=b"<ListBucketResult/>")),
    (lambda s: s.get_range(ODD, 0, 10, if_match="abc"), RANGE),
    (lambda s: s.head(ODD), Answer(headers=OBJECT)),
    (lambda s: s.put(ODD, b"data", metadata={"mode": "1", "x": "ä"}, content_type="a/b"), Answer(headers=OBJECT)),
    (lambda s: s.put("k", b"", metadata={}), Answer(headers=OBJECT)),
    (lambda s: s.delete(ODD), Answer("204 No Content")),
    (lambda s: s.delete_many(["k", "<&>\r\n\t\"'", "ü"]), Answer(body=f"<DeleteResult {SPACE}/>".encode())),
    (lambda s: s.copy(ODD, "k", source_size=1), Answer(body=COPIED.encode(), headers=OBJECT)),
    (lambda s: s.copy("k", ODD, source_size=1, metadata={"m": "2"}), Answer(body=COPIED.encode(), headers=OBJECT)),
    (lambda s: s.create_multipart(ODD, metadata={"m": "1"}, content_type="a/b"),
     Answer(body=f"<InitiateMultipartUploadResult {SPACE}><UploadId>u</UploadId></InitiateMultipartUploadResult>".encode())),
    (lambda s: s.upload_part(ODD, "u/+ =", 3, b"part"), Answer(headers=OBJECT)),
    (lambda s: s.complete_multipart(ODD, "u", [Part(1, "e1", 5), Part(2, "e2", 5)]),
     Answer(body=f"<CompleteMultipartUploadResult {SPACE}><ETag>\"e-2\"</ETag></CompleteMultipartUploadResult>".encode())),
    (lambda s: s.abort_multipart("k", "u"), Answer("204 No Content")),
]  # fmt: skip


def essence(request: Request) -> tuple[object, ...]:
    """Return what S3 acts on: headers that only describe the client, or change with time, do not count."""
    ignored = ("amz-sdk-", "user-agent", "authorization", "x-amz-date")
    path, _, query = request.target.partition("?")
    headers = {n: v for n, v in request.headers.items() if not n.startswith(ignored)}
    headers.setdefault("content-length", "0")
    return request.method, path, sorted(query.split("&")), headers, request.body


def force_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s3mgrd.s3.calls.operation", lambda _: None)


@pytest.mark.parametrize(("use", "answer"), CALLS)
async def test_a_request_is_what_aiobotocore_sends(
    use: Use, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[object, ...]]] = []
    results = []
    for by_library in (False, True):
        if by_library:
            force_library(monkeypatch)
        async with serve([answer]) as server:
            async with open_store(settings(server.url)) as store:
                results.append(await use(store))
            seen.append([essence(request) for request in server.requests])
    host = {"host": ""}
    first, second = ([(*r[:3], {**r[3], **host}, r[4]) for r in some] for some in seen)  # type: ignore[dict-item]  # a tuple of objects
    assert first == second
    assert results[0] == results[1]


@pytest.mark.parametrize("path", ["", "/", "/below/path"])
async def test_an_endpoint_may_have_a_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    targets = []
    for by_library in (False, True):
        if by_library:
            force_library(monkeypatch)
        async with serve([Answer(body=b"<ListBucketResult/>")]) as server:
            async with open_store(settings(server.url + path)) as store:
                await store.put("k", b"x", metadata={})
                await store.list_page("", delimited=False)
            targets.append([(r.method, r.target.partition("?")[0]) for r in server.requests])
    assert targets[0] == targets[1]


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1", "cn-north-1", "us-gov-west-1"])
@pytest.mark.parametrize("bucket", ["bucket", "with.dots", "Capital_letters"])
@pytest.mark.parametrize("addressing", ["auto", "path", "virtual"])
async def test_aws_is_found_where_botocore_finds_it(
    region: str, bucket: str, addressing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Address]] = []

    async def connect(address: Address, proxy: Proxy | None) -> Connection:
        asked.append((bucket, address))
        raise ConnectionRefusedError

    options = settings(None, region=region, bucket=bucket, addressing=addressing)
    for by_library in (False, True):
        if by_library:
            force_library(monkeypatch)
        async with open_store(options, connect=connect) as store:
            with pytest.raises(Unavailable):
                await store.put("k", b"x", metadata={})
    assert len(asked) == 2
    assert asked[0] == asked[1]


async def parsed(
    name: str, params: Mapping[str, object], answer: Answer, key: str | None
) -> dict[str, Any]:
    async with serve([answer]) as server, open_store(settings(server.url)) as store:
        calls: Calls = store._calls
        return await calls.call(name, params, key=key)


@pytest.mark.parametrize(
    ("name", "params", "answer", "key"),
    [
        ("HeadObject", {}, Answer(headers=OBJECT), "k"),
        ("PutObject", {}, Answer(headers=OBJECT), "k"),
        ("CopyObject", {"CopySource": "b/k"}, Answer(body=COPIED.encode(), headers=OBJECT), "k"),
        ("CreateMultipartUpload", {}, CALLS[10][1], "k"),
        ("DeleteObjects", {"Delete": {"Objects": [{"Key": "a"}]}},
         Answer(body=f"<DeleteResult {SPACE}><Error><Key>a</Key><Code>C</Code><Message>M</Message></Error>"
                "<Deleted><Key>b</Key></Deleted><Deleted><Key>c</Key></Deleted></DeleteResult>".encode()), None),
    ],
)  # fmt: skip
async def test_an_answer_is_what_aiobotocore_parses(
    name: str,
    params: Mapping[str, object],
    answer: Answer,
    key: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = await parsed(name, params, answer, key)
    force_library(monkeypatch)
    theirs = await parsed(name, params, answer, key)
    for ignored in ("ResponseMetadata", "Expires"):
        theirs.pop(ignored, None)
    theirs["Metadata"] = {n.lower(): v for n, v in theirs.get("Metadata", {}).items()}
    ours.setdefault("Metadata", {})
    if name != "HeadObject":
        ours["Metadata"] = theirs["Metadata"] = {}  # no answer has any but those to HEAD and GET
    known = {member for member, _ in operation(name).answers.values()}  # type: ignore[union-attr]  # all are known
    assert {n: ours.get(n) for n in theirs} == theirs
    assert set(ours) - set(theirs) <= known


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(body=error("", "InternalError", "later").body), Unavailable),
        (Answer(body=error("", "NoSuchUpload").body), NotFound),
        (Answer(body=b""), Unavailable),
        (Answer(body=b"plain words"), InvalidSpec),
        (Answer("404 Not Found", error("", "NoSuchUpload").body), NotFound),
    ],
)
async def test_an_error_may_come_after_success_was_promised(
    answer: Answer, kind: type[S3mgrError]
) -> None:
    async with serve([answer]) as server, open_store(settings(server.url)) as store:
        with pytest.raises(CallFailed) as caught:
            await store._calls.call("CopyObject", {"CopySource": "b/k"}, key="k")
        with pytest.raises(CallFailed) as completing:
            await store._calls.call("CompleteMultipartUpload", {"UploadId": "u"}, key="k")
    assert isinstance(caught.value.error, kind)
    assert isinstance(completing.value.error, kind)


async def test_a_parameter_that_needs_the_library_goes_through_it() -> None:
    params = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "x" * 32}
    with tempfile.TemporaryFile() as file:
        file.write(b"12345")
        file.flush()
        async with serve([Answer(headers=OBJECT)]) as server:
            async with open_store(settings(server.url)) as store:
                await store._calls.call("HeadObject", params, key="k")
                await store.put("k", FileSlice(file.fileno(), 0, 5), metadata={})
            head, put = server.requests
    assert "x-amz-server-side-encryption-customer-key-md5" in head.headers
    assert put.body == b"12345"


@pytest.mark.parametrize(
    "bucket", ["arn:aws:s3:eu-west-1:123456789012:accesspoint/mine", "mine--use1-az4--x-s3"]
)
async def test_a_bucket_that_is_more_than_a_name_is_left_to_the_library(bucket: str) -> None:
    async with open_store(settings(None, bucket=bucket)) as store:
        assert not store._calls._requests.can_name_bucket


def test_every_operation_is_one_of_s3() -> None:
    for name in LEAN:
        known = operation(name)
        assert known is not None
        assert known.method in {"GET", "HEAD", "PUT", "POST", "DELETE"}


async def test_a_header_cannot_end_its_line() -> None:
    async with serve([Answer()]) as server, open_store(settings(server.url)) as store:
        with pytest.raises(S3mgrError) as caught:
            await store.put("k", b"x", metadata={}, content_type="a/b\r\nx-amz-acl: public-read")
        assert "cannot be sent" in caught.value.detail
        assert server.requests == []
