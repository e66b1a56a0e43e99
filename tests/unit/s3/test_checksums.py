"""Every upload carries a checksum that S3 verifies, and what S3 says of it is compared; so is what is read."""

import hashlib
import tempfile
import zlib
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from awscrt import checksums as native  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from s3mgrd.errors import Corrupt, Unavailable
from s3mgrd.s3.checksums import MEMBER, combine, crc64nvme, decode, encode, expected_of
from s3mgrd.s3.client import open_store
from s3mgrd.s3.multipart import multipart_crc64nvme
from s3mgrd.s3.port import TRIAL, FileSlice, Part
from tests.servers.scripted import Answer, Request, serve
from tests.servers.scripted import error as refuse
from tests.unit.s3.support import settings

HEADER = "x-amz-checksum-crc64nvme"
UNSIGNED = "UNSIGNED-PAYLOAD"
WRONG = refuse("400 Bad Request", "BadDigest", "it does not match")


class Verifier:
    """A server that verifies checksums and, unless it *says_nothing*, tells them; one that *knows_none* takes no notice."""

    def __init__(self, *, says_nothing: bool = False, knows_none: bool = False) -> None:
        self.says_nothing = says_nothing
        self.knows_none = knows_none

    def __call__(self, request: Request) -> Answer:
        if "uploads" in request.target:
            is_told = not self.says_nothing and not self.knows_none
            headers = {"x-amz-checksum-algorithm": "CRC64NVME"} if is_told else {}
            body = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            return Answer(body=body, headers=headers)
        if request.method == "POST":
            body = b"<CompleteMultipartUploadResult><ETag>&quot;e-1&quot;</ETag></CompleteMultipartUploadResult>"
            return Answer(body=body)
        found = encode(crc64nvme(request.body))
        told = request.headers.get(HEADER)
        if told is not None and told != found and not self.knows_none:
            return WRONG
        headers = {"ETag": '"e"'}
        if not self.says_nothing and not self.knows_none:
            headers[HEADER] = found
        return Answer(headers=headers)


@contextmanager
def file_with(data: bytes) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file.fileno()


def test_the_checksum_is_the_one_that_s3_means() -> None:
    """The check value of the algorithm's specification."""
    assert crc64nvme(b"123456789") == 0xAE8B14860A799888
    assert decode(encode(0xAE8B14860A799888)) == 0xAE8B14860A799888


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_the_checksums_of_two_ranges_make_that_of_both(one: bytes, two: bytes) -> None:
    assert combine(crc64nvme(one), crc64nvme(two), len(two)) == crc64nvme(one + two)
    assert crc64nvme(two, crc64nvme(one)) == crc64nvme(one + two)


def test_the_checksum_of_an_upload_is_made_of_its_parts() -> None:
    pieces = [b"x" * 1000, b"y", b""]
    parts = [Part(n, "e", len(p), crc64nvme(p)) for n, p in enumerate(pieces, 1)]
    assert multipart_crc64nvme(parts) == crc64nvme(b"".join(pieces))
    assert multipart_crc64nvme([*parts, Part(4, "e", 5)]) is None


@pytest.mark.parametrize("text", ["", "AAAA", "!", "AAAAAAAAAAA=-3", None])
def test_what_is_no_checksum_of_bytes_is_not_taken_for_one(text: str | None) -> None:
    assert expected_of({MEMBER: text}) is None


async def test_every_upload_carries_its_checksum() -> None:
    data = b"d" * 300_000
    async with serve(Verifier()) as server, open_store(settings(server.url)) as store:
        with file_with(data) as fd:
            await store.put("small", b"small", metadata={})
            await store.put("file", FileSlice(fd, 10, 1000), metadata={})
            part = await store.upload_part("many", "u", 1, FileSlice(fd, 0, len(data)))
        bodies = [request.body for request in server.requests]
        assert bodies == [b"small", data[10:1010], data]
        assert [r.headers[HEADER] for r in server.requests] == [
            encode(crc64nvme(b)) for b in bodies
        ]
    assert part.crc64nvme == crc64nvme(data)


async def test_the_payload_is_hashed_until_the_store_is_known_to_verify_checksums() -> None:
    """A store that says what it computed verifies; otherwise SHA-256, which every store verifies, stands in."""
    async with serve(Verifier()) as server, open_store(settings(server.url)) as store:
        before = store.checksums
        await store.put("k", b"one", metadata={})
        assert (before, store.checksums) == ("unknown", "supported")
        await store.put("k", b"two", metadata={})
        first, second = [r.headers["x-amz-content-sha256"] for r in server.requests]
    assert first == hashlib.sha256(b"one").hexdigest()
    assert second == UNSIGNED


async def test_the_payload_is_hashed_always_where_that_is_asked_for() -> None:
    async with serve(Verifier()) as server:
        async with open_store(settings(server.url, sign_payload=True)) as store:
            for _ in range(2):
                await store.put("k", b"one", metadata={})
        hashes = [r.headers["x-amz-content-sha256"] for r in server.requests]
    assert hashes == [hashlib.sha256(b"one").hexdigest()] * 2


@pytest.mark.parametrize("is_known", [True, False])
async def test_bytes_that_changed_on_the_local_disk_are_not_stored(is_known: bool) -> None:
    """The checksum is that of the bytes when they were written: neither sent again and again, nor ever accepted."""
    with file_with(b"what was writtem") as fd:
        body = FileSlice(fd, 0, 16, crc64nvme(b"what was written"))
        async with serve(Verifier()) as server, open_store(settings(server.url)) as store:
            if is_known:
                await store.put("k", b"other", metadata={})
            with pytest.raises(Corrupt, match="changed on the local disk"):
                await store.put("k", body, metadata={})
            assert len(server.requests) == (2 if is_known else 0)


async def test_a_checksum_that_came_with_the_bytes_is_sent_as_it_is() -> None:
    with file_with(b"as it was written") as fd:
        async with serve(Verifier()) as server, open_store(settings(server.url)) as store:
            checksum = crc64nvme(b"as it was written")
            await store.put("k", FileSlice(fd, 0, 17, checksum), metadata={})
            assert server.requests[0].headers[HEADER] == encode(checksum)


async def test_bytes_that_s3_got_otherwise_are_sent_again() -> None:
    damaged = Answer(headers={"ETag": '"e"', HEADER: encode(5)})
    good = Answer(headers={"ETag": '"e"', HEADER: encode(crc64nvme(b"x"))})
    for first in (damaged, WRONG):
        async with serve([first, good]) as server:
            async with open_store(settings(server.url, retry_deadline_s=5.0)) as store:
                await store.put("k", b"x", metadata={})
            assert [r.body for r in server.requests] == [b"x", b"x"]


async def test_a_store_that_refuses_checksums_gets_none() -> None:
    answers = [
        refuse("400 Bad Request", "InvalidRequest", "what is that?"),
        Answer(headers={"ETag": '"e"'}),
    ]
    async with serve(answers) as server, open_store(settings(server.url)) as store:
        await store.put("k", b"x", metadata={})
        assert store.checksums == "unsupported"
        await store.put("k", b"y", metadata={})
        assert [HEADER in r.headers for r in server.requests] == [True, False, False]
        assert (
            server.requests[2].headers["x-amz-content-sha256"] == hashlib.sha256(b"y").hexdigest()
        )


async def test_what_is_refused_for_another_reason_says_nothing_about_checksums() -> None:
    answer = refuse("400 Bad Request", "InvalidRequest", "the name is bad")
    async with serve([answer]) as server, open_store(settings(server.url)) as store:
        with pytest.raises(Exception, match="the name is bad"):
            await store.put("k", b"x", metadata={})
        assert store.checksums == "unknown"
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("server_is", "support", "trials"),
    [
        (Verifier(), "supported", 0),
        (Verifier(says_nothing=True), "supported", 1),
        (Verifier(knows_none=True), "unsupported", 1),
    ],
)
async def test_whether_a_silent_store_verifies_is_found_out_by_a_part_with_a_wrong_checksum(
    server_is: Verifier, support: str, trials: int
) -> None:
    """The part is of an upload of no use, so that no object is at stake."""
    async with serve(server_is) as server, open_store(settings(server.url)) as store:
        await store.try_upload("trial")
        assert store.checksums == support
        wrong = encode(crc64nvme(TRIAL) ^ 1)
        sent = [r.target for r in server.requests if r.headers.get(HEADER) == wrong]
        assert len(sent) == trials
        assert all("partNumber=2" in target for target in sent)
        await store.upload_part("k", "u", 1, b"p" * 10)
        last = server.requests[-1].headers
        assert (HEADER in last) == (support == "supported")
        assert (last["x-amz-content-sha256"] == UNSIGNED) == (support == "supported")


async def test_an_upload_ends_with_the_checksum_of_the_whole_where_s3_keeps_that() -> None:
    begun = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
    done = b"<CompleteMultipartUploadResult><ETag>e-2</ETag><ChecksumCRC64NVME>%s</ChecksumCRC64NVME></CompleteMultipartUploadResult>"
    one, two = b"1" * 100, b"2" * 50
    whole = encode(crc64nvme(one + two))
    said = [whole, encode(7)]

    def answer(request: Request) -> Answer:
        if "uploads" in request.target:
            headers = {
                "x-amz-checksum-algorithm": "CRC64NVME",
                "x-amz-checksum-type": "FULL_OBJECT",
            }
            return Answer(body=begun, headers=headers)
        if request.method == "POST":
            return Answer(body=done % said.pop(0).encode())
        return Answer(headers={"ETag": '"e"', HEADER: encode(crc64nvme(request.body))})

    async with serve(answer) as server, open_store(settings(server.url)) as store:
        upload = await store.create_multipart("k", metadata={})
        first = server.requests[0].headers
        assert first["x-amz-checksum-algorithm"] == "CRC64NVME"
        assert first["x-amz-checksum-type"] == "FULL_OBJECT"
        parts = [await store.upload_part("k", upload, n, b) for n, b in ((1, one), (2, two))]
        await store.complete_multipart("k", upload, parts)
        assert server.requests[-1].headers[HEADER] == whole
        with pytest.raises(Unavailable, match="damaged"):
            await store.complete_multipart("k", upload, parts)


# Reading.


def stored(
    data: bytes, headers: Mapping[str, str], *, sent: bytes | None = None, checksum: str = ""
) -> Answer:
    """Make an answer to a GET of *data*, of which S3 says *checksum*; *sent* arrives."""
    said = {"ETag": '"e"', "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT", HEADER: checksum}
    return Answer(body=data if sent is None else sent, headers=said | dict(headers))


async def read_from(
    answers: list[Answer], stop: int = 4, *, is_whole: bool = True
) -> tuple[bytes, int]:
    """Read from a server that gives *answers* in turn; returns the bytes and how often it was asked."""
    async with serve(answers) as server:
        async with open_store(settings(server.url, retry_deadline_s=5.0)) as store:
            found = await store.get_range("k", 0, stop, if_match="e", is_whole=is_whole)
        assert all(r.headers["x-amz-checksum-mode"] == "ENABLED" for r in server.requests)
        assert all(("range" in r.headers) != is_whole for r in server.requests)
        return bytes(found.data), len(server.requests)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        (HEADER, encode(crc64nvme(b"good"))),
        ("x-amz-checksum-crc32c", b64encode(native.crc32c(b"good").to_bytes(4, "big")).decode()),
        ("x-amz-checksum-crc32", b64encode(zlib.crc32(b"good").to_bytes(4, "big")).decode()),
    ],
)
async def test_a_damaged_body_is_asked_for_again(member: str, value: str) -> None:
    """No damaged byte of an object that is read with one request reaches a program."""
    bad = stored(b"good", {member: value}, sent=b"gooe")
    good = stored(b"good", {member: value})
    assert await read_from([bad, good]) == (b"good", 2)


async def test_bytes_that_are_not_what_s3_has_a_checksum_of_are_an_error() -> None:
    """The same bytes twice: it is not the network. They are not handed out, and S3 is not asked for a minute."""
    bad = stored(b"gooe", {}, checksum=encode(crc64nvme(b"good")))
    async with serve([bad]) as server:
        async with open_store(settings(server.url, retry_deadline_s=60.0)) as store:
            with pytest.raises(Corrupt):
                await store.get_range("k", 0, 4, if_match="e", is_whole=True)
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("headers", "checksum"),
    [
        ({"ETag": '"e"'}, "AAAAAAAAAAA=-3"),
        ({"ETag": '"e-3"'}, "AAAAAAAAAAA="),
        ({"ETag": '"e-3"', "x-amz-checksum-type": "COMPOSITE"}, "AAAAAAAAAAA="),
    ],
)
async def test_the_sum_of_sums_of_parts_is_not_compared(
    headers: dict[str, str], checksum: str
) -> None:
    answer = stored(b"good", headers, checksum=checksum)
    async with serve([answer]) as server, open_store(settings(server.url)) as store:
        assert (await store.get_range("k", 0, 4)).data == b"good"


async def test_a_range_that_is_a_part_is_compared_with_the_checksum_of_the_part() -> None:
    part = {"Content-Range": "bytes 0-3/8", "ETag": '"e"'}
    value = encode(crc64nvme(b"good"))
    bad = stored(b"good", part, sent=b"gooe", checksum=value)
    good = stored(b"good", part, checksum=value)
    bad.status = good.status = "206 Partial Content"
    assert await read_from([bad, good], is_whole=False) == (b"good", 2)


async def test_a_store_that_gives_ranges_the_checksum_of_the_whole_is_not_believed_there() -> None:
    """Some did. Two times the same bytes: it is the checksum that is of something else."""
    answer = stored(b"good", {"Content-Range": "bytes 0-3/8"}, checksum=encode(5))
    answer.status = "206 Partial Content"
    async with serve([answer]) as server:
        async with open_store(settings(server.url, retry_deadline_s=5.0)) as store:
            for _ in range(2):
                assert (await store.get_range("k", 0, 4, if_match="e")).data == b"good"
        assert len(server.requests) == 3
