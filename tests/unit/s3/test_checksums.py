"""Every upload carries a checksum that S3 verifies, and what S3 says of it is compared; so is what is read."""

import hashlib
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mgrd.errors import Corrupt, Unavailable
from s3mgrd.s3.algorithms import (
    CRC32,
    CRC32C,
    CRC64NVME,
    SENT,
    Algorithm,
    Checksum,
    read_checksum,
)
from s3mgrd.s3.client import open_store
from s3mgrd.s3.multipart import multipart_checksum
from s3mgrd.s3.port import TRIAL, Checksums, FileSlice, Part
from tests.servers.scripted import Answer, Request, serve
from tests.servers.scripted import error as refuse
from tests.unit.s3.support import settings

UNSIGNED = "UNSIGNED-PAYLOAD"
WRONG = refuse("400 Bad Request", "BadDigest", "it does not match")
ALL = pytest.mark.parametrize("algorithm", SENT, ids=lambda algorithm: algorithm.name)


def header(algorithm: Algorithm = CRC32C) -> str:
    return f"x-amz-checksum-{algorithm.name.lower()}"


def written(data: bytes, algorithm: Algorithm = CRC32C) -> str:
    return str(Checksum.of(algorithm, data))


def told(request: Request) -> list[str]:
    """Name the checksums that a request carries."""
    return [a.name for a in SENT if header(a) in request.headers]


class Verifier:
    """A server that verifies checksums of *knows* and, unless it *says_nothing*, tells them; it takes no notice of others.

    With *refuses* those are refused instead.
    """

    def __init__(
        self,
        *knows: Algorithm,
        says_nothing: bool = False,
        refuses: bool = False,
        kind: str = "FULL_OBJECT",
    ) -> None:
        self.knows = knows
        self.says_nothing = says_nothing
        self.refuses = refuses
        self.kind = kind

    def __call__(self, request: Request) -> Answer:
        wanted = request.headers.get("x-amz-checksum-algorithm")
        others = [a.name for a in SENT if a not in self.knows]
        if self.refuses and (wanted in others or set(told(request)) & set(others)):
            return refuse("400 Bad Request", "InvalidRequest", "what is that?")
        headers = {"ETag": '"e"'}
        if "uploads" in request.target:
            if not self.says_nothing and wanted in [a.name for a in self.knows]:
                headers |= {
                    "x-amz-checksum-algorithm": wanted or "",
                    "x-amz-checksum-type": self.kind,
                }
            body = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            return Answer(body=body, headers=headers)
        if request.method == "POST":
            body = b"<CompleteMultipartUploadResult><ETag>&quot;e-1&quot;</ETag></CompleteMultipartUploadResult>"
            return Answer(body=body)
        for algorithm in self.knows:
            found = written(request.body, algorithm)
            if request.headers.get(header(algorithm), found) != found:
                return WRONG
            if not self.says_nothing and header(algorithm) in request.headers:
                headers[header(algorithm)] = found
        return Answer(headers=headers)


@contextmanager
def file_with(data: bytes) -> Iterator[int]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        yield file.fileno()


def test_the_checksums_are_those_that_s3_means() -> None:
    """The check values of the algorithms' specifications."""
    data = b"123456789"
    assert CRC64NVME.of(data) == 0xAE8B14860A799888
    assert CRC32C.of(data) == 0xE3069283
    assert CRC32.of(data) == zlib.crc32(data)
    for algorithm in SENT:
        checksum = Checksum.of(algorithm, data)
        assert read_checksum({algorithm.member: str(checksum)}) == checksum


@ALL
@given(one=st.binary(max_size=200), two=st.binary(max_size=200))
def test_the_checksums_of_two_ranges_make_that_of_both(
    algorithm: Algorithm, one: bytes, two: bytes
) -> None:
    both = algorithm.combine(algorithm.of(one), algorithm.of(two), len(two))
    assert both == algorithm.of(two, algorithm.of(one)) == algorithm.of(one + two)


@ALL
def test_the_checksum_of_an_upload_is_made_of_its_parts(algorithm: Algorithm) -> None:
    pieces = [b"x" * 1000, b"y", b""]
    parts = [Part(n, "e", len(p), Checksum.of(algorithm, p)) for n, p in enumerate(pieces, 1)]
    whole = Checksum.of(algorithm, b"".join(pieces))
    assert multipart_checksum(parts, algorithm) == whole
    assert multipart_checksum([*parts, Part(4, "e", 5)], algorithm) is None
    assert multipart_checksum([*parts, Part(4, "e", 5, Checksum(CRC32, 1))], algorithm) is None


@ALL
@pytest.mark.parametrize("text", ["", "AAA=", "!", "AAAAAAAAAAA=-3", None])
def test_what_is_no_checksum_of_bytes_is_not_taken_for_one(
    algorithm: Algorithm, text: str | None
) -> None:
    assert read_checksum({algorithm.member: text}) is None


async def test_every_upload_carries_its_checksum() -> None:
    data = b"d" * 300_000
    async with serve(Verifier(CRC32C)) as server, open_store(settings(server.url)) as store:
        with file_with(data) as fd:
            await store.put("small", b"small", metadata={})
            await store.put("file", FileSlice(fd, 10, 1000), metadata={})
            part = await store.upload_part("many", "u", 1, FileSlice(fd, 0, len(data)))
        bodies = [request.body for request in server.requests]
        assert bodies == [b"small", data[10:1010], data]
        assert [r.headers[header()] for r in server.requests] == [written(b) for b in bodies]
    assert part.checksum == Checksum.of(CRC32C, data)


async def test_the_payload_is_hashed_until_the_store_is_known_to_verify_checksums() -> None:
    """A store that says what it computed verifies; otherwise SHA-256, which every store verifies, stands in."""
    async with serve(Verifier(CRC32C)) as server, open_store(settings(server.url)) as store:
        before = store.checksums.support
        await store.put("k", b"one", metadata={})
        assert (before, store.checksums.support) == ("unknown", "supported")
        await store.put("k", b"two", metadata={})
        first, second = [r.headers["x-amz-content-sha256"] for r in server.requests]
    assert first == hashlib.sha256(b"one").hexdigest()
    assert second == UNSIGNED


async def test_the_payload_is_hashed_always_where_that_is_asked_for() -> None:
    async with serve(Verifier(CRC32C)) as server:
        async with open_store(settings(server.url, sign_payload=True)) as store:
            for _ in range(2):
                await store.put("k", b"one", metadata={})
        hashes = [r.headers["x-amz-content-sha256"] for r in server.requests]
    assert hashes == [hashlib.sha256(b"one").hexdigest()] * 2


@ALL
@pytest.mark.parametrize("is_known", [True, False])
async def test_bytes_that_changed_on_the_local_disk_are_not_stored(
    algorithm: Algorithm, is_known: bool
) -> None:
    """The checksum is that of the bytes when they were written: neither sent again and again, nor ever accepted."""
    with file_with(b"what was writtem") as fd:
        body = FileSlice(fd, 0, 16, Checksum.of(CRC32C, b"what was written"))
        async with serve(Verifier(algorithm)) as server, open_store(settings(server.url)) as store:
            if is_known:
                store.recall(store.conditions, Checksums("supported", algorithm.name))
            with pytest.raises(Corrupt, match="changed on the local disk"):
                await store.put("k", body, metadata={})
            # Where it is the store that compares, it is asked once.
            assert len(server.requests) == (is_known and algorithm is CRC32C)


async def test_a_checksum_that_came_with_the_bytes_is_sent_as_it_is() -> None:
    with file_with(b"as it was written") as fd:
        async with serve(Verifier(CRC32C)) as server, open_store(settings(server.url)) as store:
            checksum = Checksum.of(CRC32C, b"as it was written")
            await store.put("k", FileSlice(fd, 0, 17, checksum), metadata={})
            assert server.requests[0].headers[header()] == str(checksum)


async def test_bytes_that_s3_got_otherwise_are_sent_again() -> None:
    damaged = Answer(headers={"ETag": '"e"', header(): str(Checksum(CRC32C, 5))})
    good = Answer(headers={"ETag": '"e"', header(): written(b"x")})
    for first in (damaged, WRONG):
        async with serve([first, good]) as server:
            async with open_store(settings(server.url, retry_deadline_s=5.0)) as store:
                await store.put("k", b"x", metadata={})
            assert [r.body for r in server.requests] == [b"x", b"x"]


async def test_a_store_that_refuses_checksums_gets_none() -> None:
    server_is = Verifier(refuses=True)
    async with serve(server_is) as server, open_store(settings(server.url)) as store:
        for body in (b"x", b"y", b"z"):
            await store.put("k", body, metadata={})
        assert store.checksums.support == "unsupported"
        carried = [told(r) for r in server.requests]
        assert carried == [["CRC32C"], [], ["CRC64NVME"], [], []]
        last = server.requests[-1].headers["x-amz-content-sha256"]
        assert last == hashlib.sha256(b"z").hexdigest()


async def test_a_store_that_refuses_one_kind_gets_the_other() -> None:
    server_is = Verifier(CRC64NVME, refuses=True)
    async with serve(server_is) as server, open_store(settings(server.url)) as store:
        for body in (b"x", b"y", b"z"):
            await store.put("k", body, metadata={})
        assert store.checksums == Checksums("supported", "CRC64NVME")
        assert [told(r) for r in server.requests] == [["CRC32C"], [], ["CRC64NVME"], ["CRC64NVME"]]
        assert server.requests[-1].headers["x-amz-content-sha256"] == UNSIGNED


async def test_parts_carry_what_their_upload_was_begun_for() -> None:
    """Whatever was found out meanwhile, also by another worker: S3 refuses what is of another kind."""
    server_is = Verifier(CRC64NVME, refuses=True)
    async with serve(server_is) as server, open_store(settings(server.url)) as store:
        plain = await store.create_multipart("k", metadata={})
        server.requests.clear()
        await store.upload_part("k", plain, 1, b"x")
        assert [told(r) for r in server.requests] == [[]]
        assert server.requests[0].headers["x-amz-content-sha256"] != UNSIGNED

    listed = b"<ListPartsResult><ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><IsTruncated>false</IsTruncated></ListPartsResult>"
    answers = [Answer(body=listed), Answer(headers={"ETag": '"e"'})]
    async with serve(answers) as server, open_store(settings(server.url)) as store:
        store.recall(store.conditions, Checksums("supported", "CRC32C"))
        await store.list_parts("k", "u")
        await store.upload_part("k", "u", 1, b"x")
        assert told(server.requests[1]) == ["CRC64NVME"]


async def test_parts_go_without_where_only_they_are_refused_what_their_upload_was_begun_for() -> (
    None
):
    """Though the store is known to verify another kind by then. The first that is refused tells it of the others."""
    begins, verifies = Verifier(says_nothing=True), Verifier(CRC64NVME, refuses=True)

    def answer(request: Request) -> Answer:
        return (begins if "uploads" in request.target else verifies)(request)

    async with serve(answer) as server, open_store(settings(server.url)) as store:
        upload = await store.create_multipart("k", metadata={})
        for body in (b"x", b"y"):
            await store.put("other", body, metadata={})
        assert store.checksums == Checksums("supported", "CRC64NVME")
        server.requests.clear()
        for number in (1, 2):
            part = await store.upload_part("k", upload, number, b"part")
            assert part.checksum is None
        assert [told(r) for r in server.requests] == [["CRC32C"], [], []]
        hashes = [r.headers["x-amz-content-sha256"] for r in server.requests]
        assert hashes == [hashlib.sha256(b"part").hexdigest()] * 3


async def test_what_is_refused_for_another_reason_says_nothing_about_checksums() -> None:
    answer = refuse("400 Bad Request", "InvalidRequest", "the name is bad")
    async with serve([answer]) as server, open_store(settings(server.url)) as store:
        with pytest.raises(Exception, match="the name is bad"):
            await store.put("k", b"x", metadata={})
        assert store.checksums == Checksums("unknown", "CRC32C")
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("server_is", "known", "trials"),
    [
        (Verifier(CRC32C), Checksums("supported", "CRC32C"), []),
        (Verifier(CRC32C, says_nothing=True), Checksums("supported", "CRC32C"), ["CRC32C"]),
        (Verifier(CRC64NVME), Checksums("supported", "CRC64NVME"), ["CRC32C"]),
        (
            Verifier(CRC64NVME, says_nothing=True),
            Checksums("supported", "CRC64NVME"),
            ["CRC32C", "CRC64NVME"],
        ),
        (Verifier(CRC64NVME, refuses=True), Checksums("supported", "CRC64NVME"), []),
        (Verifier(), Checksums("unsupported", "CRC64NVME"), ["CRC32C", "CRC64NVME"]),
        (Verifier(refuses=True), Checksums("unsupported", "CRC64NVME"), []),
    ],
)
async def test_whether_a_silent_store_verifies_is_found_out_by_a_part_with_a_wrong_checksum(
    server_is: Verifier, known: Checksums, trials: list[str]
) -> None:
    """The part is of an upload of no use, so that no object is at stake. One such upload for each kind of checksum."""
    async with serve(server_is) as server, open_store(settings(server.url)) as store:
        while store.wants_trial:
            await store.try_upload("trial")
        assert store.checksums == known
        wrong = {a.name: str(Checksum(a, a.of(TRIAL) ^ 1)) for a in SENT}
        sent = [
            (name, request.target)
            for request in server.requests
            for name in told(request)
            if request.headers[f"x-amz-checksum-{name.lower()}"] == wrong[name]
        ]
        assert [name for name, _ in sent] == trials
        assert all("partNumber=2" in target for _, target in sent)
        await store.upload_part("k", "v", 1, b"p" * 10)
        last = server.requests[-1]
        assert told(last) == ([known.algorithm] if known.support == "supported" else [])
        is_unsigned = last.headers["x-amz-content-sha256"] == UNSIGNED
        assert is_unsigned == (known.support == "supported")


@ALL
async def test_an_upload_ends_with_the_checksum_of_the_whole_where_s3_keeps_that(
    algorithm: Algorithm,
) -> None:
    done = b"<CompleteMultipartUploadResult><ETag>e-2</ETag><%s>%s</%s></CompleteMultipartUploadResult>"
    one, two = b"1" * 100, b"2" * 50
    whole = written(one + two, algorithm)
    said = [whole, str(Checksum(algorithm, 7))]
    verifier, member = Verifier(algorithm), algorithm.member.encode()

    def answer(request: Request) -> Answer:
        if request.method == "POST" and "uploads" not in request.target:
            return Answer(body=done % (member, said.pop(0).encode(), member))
        return verifier(request)

    async with serve(answer) as server, open_store(settings(server.url)) as store:
        store.recall(store.conditions, Checksums("supported", algorithm.name))
        for is_damaged in (False, True):
            upload = await store.create_multipart("k", metadata={})
            first = server.requests[-1].headers
            assert first["x-amz-checksum-algorithm"] == algorithm.name
            assert first["x-amz-checksum-type"] == "FULL_OBJECT"
            parts = [await store.upload_part("k", upload, n, b) for n, b in ((1, one), (2, two))]
            if is_damaged:
                with pytest.raises(Unavailable, match="damaged"):
                    await store.complete_multipart("k", upload, parts)
            else:
                await store.complete_multipart("k", upload, parts)
            assert server.requests[-1].headers[header(algorithm)] == whole


async def test_an_upload_ends_with_the_checksums_of_its_parts_where_s3_keeps_only_these() -> None:
    """S3 wants them then, and keeps the sum of the sums."""
    server_is = Verifier(CRC32C, kind="COMPOSITE")
    async with serve(server_is) as server, open_store(settings(server.url)) as store:
        upload = await store.create_multipart("k", metadata={})
        parts = [await store.upload_part("k", upload, n, b) for n, b in ((1, b"1"), (2, b"2"))]
        await store.complete_multipart("k", upload, parts)
        last = server.requests[-1]
        assert told(last) == []
        for body in (b"1", b"2"):
            assert f"<ChecksumCRC32C>{written(body)}</ChecksumCRC32C>" in last.body.decode()


async def test_the_checksum_of_a_part_that_a_store_does_not_say_is_asked_for() -> None:
    """Of one that it copied, where it wants to be told those of all parts."""
    verifier = Verifier(CRC32C, kind="COMPOSITE")
    listed = (
        b"<ListPartsResult><IsTruncated>false</IsTruncated><Part><PartNumber>1</PartNumber><ETag>e</ETag><Size>1</Size>"
        b"<ChecksumCRC32C>%s</ChecksumCRC32C></Part></ListPartsResult>"
    ) % written(b"1").encode()

    def answer(request: Request) -> Answer:
        return Answer(body=listed) if request.method == "GET" else verifier(request)

    async with serve(answer) as server, open_store(settings(server.url)) as store:
        upload = await store.create_multipart("k", metadata={})
        sent = await store.upload_part("k", upload, 2, b"2")
        await store.complete_multipart("k", upload, [Part(1, "e", 1), sent])
        for body in (b"1", b"2"):
            checksum = f"<ChecksumCRC32C>{written(body)}</ChecksumCRC32C>"
            assert checksum in server.requests[-1].body.decode()
        assert [r.method for r in server.requests] == ["POST", "PUT", "GET", "POST"]
        # What S3 has of another etag is not what is to be completed.
        upload = await store.create_multipart("k", metadata={})
        await store.complete_multipart("k", upload, [Part(1, "another", 1)])
        last = server.requests[-1].body.decode()
        assert "another" in last
        assert "ChecksumCRC32C" not in last


# Reading.


def stored(
    data: bytes, headers: Mapping[str, str], *, sent: bytes | None = None, checksum: str = ""
) -> Answer:
    """Make an answer to a GET of *data*, of which S3 says *checksum*; *sent* arrives."""
    said = {"ETag": '"e"', "Last-Modified": "Tue, 14 Nov 2023 22:13:20 GMT"}
    said[header(CRC64NVME)] = checksum
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
    [(header(algorithm), written(b"good", algorithm)) for algorithm in (CRC64NVME, CRC32C, CRC32)],
)
async def test_a_damaged_body_is_asked_for_again(member: str, value: str) -> None:
    """No damaged byte of an object that is read with one request reaches a program."""
    bad = stored(b"good", {member: value}, sent=b"gooe")
    good = stored(b"good", {member: value})
    assert await read_from([bad, good]) == (b"good", 2)


async def test_bytes_that_are_not_what_s3_has_a_checksum_of_are_an_error() -> None:
    """The same bytes twice: it is not the network. They are not handed out, and S3 is not asked for a minute."""
    bad = stored(b"gooe", {}, checksum=written(b"good", CRC64NVME))
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
    value = written(b"good", CRC64NVME)
    bad = stored(b"good", part, sent=b"gooe", checksum=value)
    good = stored(b"good", part, checksum=value)
    bad.status = good.status = "206 Partial Content"
    assert await read_from([bad, good], is_whole=False) == (b"good", 2)


async def test_a_store_that_gives_ranges_the_checksum_of_the_whole_is_not_believed_there() -> None:
    """Some did. Two times the same bytes: it is the checksum that is of something else."""
    answer = stored(b"good", {"Content-Range": "bytes 0-3/8"}, checksum=str(Checksum(CRC64NVME, 5)))
    answer.status = "206 Partial Content"
    async with serve([answer]) as server:
        async with open_store(settings(server.url, retry_deadline_s=5.0)) as store:
            for _ in range(2):
                assert (await store.get_range("k", 0, 4, if_match="e")).data == b"good"
        assert len(server.requests) == 3
