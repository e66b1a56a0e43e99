# over 600 lines because one contract is read as one suite
"""What every `ObjectStore` does alike: the one in memory, MiniStack and radosgw.

The layers above are tested on the store in memory; this suite is why that proves something.
"""

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
import trio

from s3mgrd.errors import (
    BucketNotFound,
    NotFound,
    PreconditionFailed,
    S3mgrError,
    UserError,
)
from s3mgrd.s3.calls import LIGHT_BYTES
from s3mgrd.s3.client import S3Store, open_store
from s3mgrd.s3.memory import MemoryStore
from s3mgrd.s3.port import (
    MIN_PART_BYTES,
    REPLACED,
    Condition,
    FileSlice,
    ListPage,
    ObjectStore,
    Part,
)
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

ODD_KEYS = [
    "plain.txt",
    "with blank",
    " leading and trailing ",
    "two  blanks",
    "plus+and%percent%20and%2B",
    "a//b",
    "/leading",
    "//two",
    "trailing/",
    "dot/.",
    "dot/../dot",
    "../up",
    "quote'\"<&>",
    "query?x=1&y=2#fragment",
    "ümläut/日本語/😀",
    "composed é, decomposed e\u0301",
    "new\nline and tab\t and return\r",
    "control \x01\x1f\x7f",
    "back\\slash",
    "=;:@$,!*()~[]{}|^`",
    "ends with dot.",
]


@pytest.fixture(params=["memory", "ministack", "radosgw"])
def endpoint(request: pytest.FixtureRequest) -> Endpoint | None:
    if request.param == "memory":
        return None
    endpoint = request.getfixturevalue(request.param)
    assert isinstance(endpoint, Endpoint)
    return endpoint


@pytest.fixture
def bucket_name(endpoint: Endpoint | None) -> Iterator[str]:
    if endpoint is None:
        yield "memory"
        return
    client = endpoint.boto3()
    name = make_bucket(client)
    yield name
    remove_bucket(client, name)
    client.close()


@pytest.fixture
async def store(endpoint: Endpoint | None, bucket_name: str) -> AsyncIterator[ObjectStore]:
    if endpoint is None:
        yield MemoryStore()
        return
    async with open_store(endpoint.settings(bucket_name)) as opened:
        yield opened


@pytest.fixture
def file() -> Iterator[int]:
    with tempfile.TemporaryFile() as opened:
        yield opened.fileno()


async def fill(store: ObjectStore, keys: list[str], data: bytes = b"") -> None:
    for key in keys:
        await store.put(key, data, metadata={})


async def all_pages(
    store: ObjectStore, prefix: str = "", *, delimited: bool = False, max_keys: int = 1000
) -> list[ListPage]:
    pages = [await store.list_page(prefix, delimited=delimited, max_keys=max_keys)]
    while pages[-1].next_token is not None:
        pages.append(
            await store.list_page(
                prefix, delimited=delimited, token=pages[-1].next_token, max_keys=max_keys
            )
        )
    return pages


async def keys_of(store: ObjectStore, prefix: str = "") -> list[str]:
    return [o.key for page in await all_pages(store, prefix) for o in page.objects]


def expect(error: type[S3mgrError]) -> "pytest.RaisesExc[S3mgrError]":
    """Expect exactly *error*, not a subclass: the difference decides what a program sees."""
    return pytest.RaisesExc(error, check=lambda exc: type(exc) is error)


# Objects.


async def test_what_was_put_is_read_back(store: ObjectStore) -> None:
    written = await store.put(
        "a/b", b"hello", metadata={"mode": "33188"}, content_type="text/plain"
    )
    head = await store.head("a/b")
    assert (head.key, head.size, head.etag) == ("a/b", 5, written.etag)
    assert head.metadata == {"mode": "33188"}
    assert head.content_type == "text/plain"
    assert head.storage_class is None
    assert head.mtime_ns > 10**18
    read = await store.get_range("a/b", 0, 5)
    assert read.data == b"hello"
    assert read.head == head


async def test_an_etag_is_the_md5_of_a_put(store: ObjectStore) -> None:
    written = await store.put("k", b"hello", metadata={})
    assert written.etag == "5d41402abc4b2a76b9719d911017c592"


@pytest.mark.parametrize(
    ("start", "stop", "data"),
    [
        (0, 1, b"0"),
        (0, 10, b"0123456789"),
        (3, 7, b"3456"),
        (9, 10, b"9"),
        (5, 1000, b"56789"),
        (0, 1 << 40, b"0123456789"),
    ],
)
async def test_a_range_is_half_open_and_ends_with_the_object(
    store: ObjectStore, start: int, stop: int, data: bytes
) -> None:
    await store.put("k", b"0123456789", metadata={})
    read = await store.get_range("k", start, stop)
    assert read.data == data
    assert read.head.size == 10


@pytest.mark.parametrize("size", [0, 10])
async def test_a_range_beyond_the_end_is_refused(store: ObjectStore, size: int) -> None:
    await store.put("k", b"x" * size, metadata={})
    with expect(UserError):
        await store.get_range("k", size, size + 1)


async def test_reads_can_demand_a_version(store: ObjectStore) -> None:
    written = await store.put("k", b"one", metadata={})
    assert (await store.get_range("k", 0, 3, if_match=written.etag)).data == b"one"
    await store.put("k", b"two", metadata={})
    with expect(PreconditionFailed):
        await store.get_range("k", 0, 3, if_match=written.etag)


async def test_what_does_not_exist_is_not_found(store: ObjectStore) -> None:
    with expect(NotFound):
        await store.head("nothing")
    with expect(NotFound):
        await store.get_range("nothing", 0, 1)
    with expect(NotFound):
        await store.copy("nothing", "target", source_size=1)
    await store.delete("nothing")


async def test_an_empty_object_is_written_and_listed(store: ObjectStore) -> None:
    await store.put("dir/", b"", metadata={"mode": "16877"}, content_type="application/x-directory")
    head = await store.head("dir/")
    assert (head.size, head.content_type) == (0, "application/x-directory")
    assert [o.size for o in (await store.list_page("", delimited=False)).objects] == [0]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (3 << 20) + 17])
async def test_a_body_may_lie_in_a_file(store: ObjectStore, file: int, size: int) -> None:
    data = os.urandom(size)
    os.pwrite(file, b"before" + data + b"after", 0)
    await store.put("k", FileSlice(file, 6, size), metadata={})
    assert (await store.head("k")).size == size
    if size:
        assert (await store.get_range("k", 0, size)).data == data


async def test_a_large_body_of_bytes_arrives(store: ObjectStore) -> None:
    data = os.urandom((5 << 20) + 3)
    await store.put("k", data, metadata={})
    assert (await store.get_range("k", 0, len(data))).data == data


@pytest.mark.parametrize(
    "value",
    [
        "33188",
        "1700000000.123456789",
        "",
        " ",
        " x ",
        "a  b",
        "ä",
        "日本",
        "%41",
        "=?UTF-8?B?eA==?=",
        "\n\t",
        "a;b=c,d",
    ],
)
async def test_metadata_carries_any_text(store: ObjectStore, value: str) -> None:
    await store.put("k", b"x", metadata={"xattr": value, "other-name": "1"})
    assert (await store.head("k")).metadata == {"xattr": value, "other-name": "1"}
    assert (await store.get_range("k", 0, 1)).head.metadata["xattr"] == value


async def test_metadata_names_must_be_header_names(store: ObjectStore) -> None:
    with expect(UserError):
        await store.put("k", b"", metadata={"a b": "1"})


async def test_an_overwrite_replaces_data_and_metadata(store: ObjectStore) -> None:
    first = await store.put("k", b"one", metadata={"a": "1"})
    second = await store.put("k", b"three", metadata={"b": "2"})
    assert first.etag != second.etag
    head = await store.head("k")
    assert (head.size, head.metadata) == (5, {"b": "2"})


# Conditions.


async def test_a_write_may_demand_that_the_key_is_new(store: ObjectStore) -> None:
    await store.put("k", b"one", metadata={}, condition=Condition(absent=True))
    with expect(PreconditionFailed):
        await store.put("k", b"two", metadata={}, condition=Condition(absent=True))
    assert (await store.get_range("k", 0, 3)).data == b"one"
    assert store.conditions.writes == "supported"


async def test_a_write_may_demand_a_version(store: ObjectStore) -> None:
    one = await store.put("k", b"one", metadata={})
    two = await store.put("k", b"two", metadata={}, condition=Condition(if_match=one.etag))
    with expect(PreconditionFailed):
        await store.put("k", b"xxx", metadata={}, condition=Condition(if_match=one.etag))
    assert (await store.head("k")).etag == two.etag
    with expect(PreconditionFailed):
        await store.put("gone", b"x", metadata={}, condition=Condition(if_match=one.etag))


async def test_a_delete_may_demand_versions(store: ObjectStore) -> None:
    """Who deletes does not know what somebody else has put there meanwhile. What the store makes of it is known then."""
    versions = {}
    for key in ("kept", "replaced", "gone", "any"):
        versions[key] = (await store.put(key, b"one", metadata={})).etag
    await store.put("replaced", b"two", metadata={})
    await store.delete("gone")
    del versions["any"]
    failures = await store.delete_many(["kept", "replaced", "gone", "any"], if_match=versions)
    left = [info.key for info in (await store.list_page("", delimited=False)).objects]
    if store.conditions.delete == "supported":
        assert ("replaced", REPLACED) in [(f.key, f.code) for f in failures]
        assert {f.key for f in failures} <= {"replaced", "gone"}
        assert left == ["replaced"]
    else:
        assert store.conditions.delete == "unsupported"
        assert (failures, left) == ([], [])


async def test_one_of_many_writers_of_a_new_key_wins(store: ObjectStore) -> None:
    await store.put("other", b"", metadata={}, condition=Condition(absent=True))
    winners: list[int] = []

    async def write(number: int) -> None:
        try:
            await store.put("k", b"%d" % number, metadata={}, condition=Condition(absent=True))
        except PreconditionFailed:
            return
        winners.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(write, number)
    assert len(winners) == 1
    assert (await store.get_range("k", 0, 1)).data == b"%d" % winners[0]


async def test_copies_and_completions_heed_conditions(store: ObjectStore) -> None:
    one = await store.put("k", b"one", metadata={})
    await store.put("source", b"new", metadata={})
    for condition in (Condition(absent=True), Condition(if_match="0" * 32)):
        with expect(PreconditionFailed):
            await store.copy("source", "k", source_size=3, condition=condition)
        upload_id = await store.create_multipart("k", metadata={})
        part = await store.upload_part("k", upload_id, 1, b"new")
        with expect(PreconditionFailed):
            await store.complete_multipart("k", upload_id, [part], condition=condition)
        await store.abort_multipart("k", upload_id)
    assert (await store.get_range("k", 0, 3)).data == b"one"
    await store.copy("source", "k", source_size=3, condition=Condition(if_match=one.etag))
    assert (await store.get_range("k", 0, 3)).data == b"new"


# Names.


async def test_every_name_is_kept_to_the_byte(store: ObjectStore) -> None:
    for number, key in enumerate(ODD_KEYS):
        await store.put(key, b"%d" % number, metadata={})
    by_bytes = sorted(ODD_KEYS, key=lambda key: key.encode())
    assert await keys_of(store) == by_bytes
    for number, key in enumerate(ODD_KEYS):
        assert (await store.head(key)).key == key
        assert (await store.get_range(key, 0, 10)).data == b"%d" % number
    assert await store.delete_many(ODD_KEYS) == []
    assert await keys_of(store) == []


async def test_odd_names_are_paged_through_one_by_one(store: ObjectStore) -> None:
    await fill(store, ODD_KEYS)
    pages = await all_pages(store, max_keys=1)
    assert [o.key for page in pages for o in page.objects] == sorted(
        ODD_KEYS, key=lambda key: key.encode()
    )


@pytest.mark.parametrize("key", ["p %+/ü?&\n", "a//../b"])
async def test_odd_names_work_everywhere(store: ObjectStore, key: str) -> None:
    await store.put(key, b"data", metadata={})
    await store.copy(key, key + "2", source_size=4)
    await store.copy(key, key, source_size=4, metadata={"a": "b"})
    upload_id = await store.create_multipart(key + "3", metadata={})
    assert [u.key for u in await store.list_multiparts(key)] == [key + "3"]
    part = await store.upload_part(key + "3", upload_id, 1, b"part")
    assert await store.list_parts(key + "3", upload_id) == [part]
    await store.complete_multipart(key + "3", upload_id, [part])
    assert await keys_of(store, key) == [key, key + "2", key + "3"]
    page = await store.list_page(key, delimited=True, start_after=key)
    assert [o.key for o in page.objects] == [key + "2", key + "3"]
    await store.delete(key)
    with expect(NotFound):
        await store.head(key)


# Listings.


async def test_a_listing_is_in_the_order_of_bytes(store: ObjectStore) -> None:
    keys = ["a", "a!", "a/", "a/b", "a0", "B", "é", "z", "\U0001f600", "\uffee"]
    await fill(store, keys, b"xy")
    page = await store.list_page("", delimited=False)
    assert [o.key for o in page.objects] == sorted(keys, key=lambda key: key.encode())
    assert {o.size for o in page.objects} == {2}
    assert page.prefixes == []
    assert page.next_token is None
    head = await store.head("a")
    # HEAD tells whole seconds, listings ms.
    assert page.objects[1].etag == head.etag
    assert abs(page.objects[1].mtime_ns - head.mtime_ns) < 2 * 10**9


async def test_a_delimited_listing_rolls_up(store: ObjectStore) -> None:
    await fill(store, ["a/1", "a/2", "a/b/3", "b", "c/4", "c/", "d//5"])
    page = await store.list_page("", delimited=True)
    assert ([o.key for o in page.objects], page.prefixes) == (["b"], ["a/", "c/", "d/"])
    page = await store.list_page("a/", delimited=True)
    assert ([o.key for o in page.objects], page.prefixes) == (["a/1", "a/2"], ["a/b/"])
    page = await store.list_page("c/", delimited=True)
    assert ([o.key for o in page.objects], page.prefixes) == (["c/", "c/4"], [])
    page = await store.list_page("d/", delimited=True)
    assert ([o.key for o in page.objects], page.prefixes) == ([], ["d//"])


async def test_a_prefix_need_not_end_at_a_slash(store: ObjectStore) -> None:
    await fill(store, ["ab", "abc", "abd/x", "b"])
    page = await store.list_page("ab", delimited=True)
    assert ([o.key for o in page.objects], page.prefixes) == (["ab", "abc"], ["abd/"])
    assert await keys_of(store, "nothing") == []


@pytest.mark.parametrize("max_keys", [1, 2, 3, 7])
async def test_pages_add_up(store: ObjectStore, max_keys: int) -> None:
    keys = [f"{d}/{n}" for d in "abc" for n in range(3)] + ["d", "e"]
    await fill(store, keys)
    pages = await all_pages(store, max_keys=max_keys)
    assert [o.key for page in pages for o in page.objects] == keys
    assert all(len(page.objects) <= max_keys for page in pages)
    pages = await all_pages(store, delimited=True, max_keys=max_keys)
    assert [p for page in pages for p in page.prefixes] == ["a/", "b/", "c/"]
    assert [o.key for page in pages for o in page.objects] == ["d", "e"]
    assert all(len(page.objects) + len(page.prefixes) <= max_keys for page in pages)


async def test_a_listing_may_start_after_a_name(store: ObjectStore) -> None:
    await fill(store, ["a", "b", "b/c", "d"])
    page = await store.list_page("", delimited=False, start_after="b", max_keys=1)
    assert [o.key for o in page.objects] == ["b/c"]
    assert page.next_token is not None
    page = await store.list_page("", delimited=False, token=page.next_token)
    assert [o.key for o in page.objects] == ["d"]
    page = await store.list_page("", delimited=False, start_after="a\uffff")
    assert [o.key for o in page.objects] == ["b", "b/c", "d"]


# Deletion.


async def test_many_keys_are_deleted_at_once(store: ObjectStore) -> None:
    keys = [f"k{n:04d}&<" for n in range(120)]
    await fill(store, keys[:20])
    assert await store.delete_many([*keys, "keeps-quiet-about-missing"]) == []
    assert await keys_of(store) == []
    assert await store.delete_many([]) == []


# Copies.


async def test_a_copy_keeps_what_it_is_not_told_to_replace(store: ObjectStore) -> None:
    source = await store.put("a", b"data", metadata={"m": "ä"}, content_type="text/plain")
    written = await store.copy("a", "b", source_size=4, if_source_match=source.etag)
    head = await store.head("b")
    assert (head.etag, head.metadata, head.content_type) == (
        written.etag,
        {"m": "ä"},
        "text/plain",
    )
    assert (await store.get_range("b", 0, 4)).data == b"data"


async def test_a_copy_onto_itself_replaces_metadata(store: ObjectStore) -> None:
    source = await store.put("a", b"data", metadata={"m": "1"}, content_type="text/plain")
    await store.copy(
        "a",
        "a",
        source_size=4,
        metadata={"n": "2"},
        content_type="text/html",
        if_source_match=source.etag,
    )
    head = await store.head("a")
    assert (head.metadata, head.content_type, head.size) == ({"n": "2"}, "text/html", 4)


async def test_a_copy_replaces_only_the_metadata_it_names(store: ObjectStore) -> None:
    await store.put(
        "a", b"data", metadata={"mode": "1", "uid": "2", "m": "ä"}, content_type="text/plain"
    )
    for target in ("b", "a"):
        await store.copy(
            "a", target, source_size=4, metadata={"mode": "3"}, replacing=["mode", "uid"]
        )
        head = await store.head(target)
        assert (dict(head.metadata), head.content_type) == ({"mode": "3", "m": "ä"}, "text/plain")


async def test_a_copy_may_demand_a_version_of_its_source(store: ObjectStore) -> None:
    await store.put("a", b"data", metadata={})
    for metadata in (None, {"a": "b"}):
        with expect(PreconditionFailed):
            await store.copy("a", "b", source_size=4, if_source_match="0" * 32, metadata=metadata)
    with expect(NotFound):
        await store.head("b")


async def test_one_of_many_copies_finds_out_what_the_store_heeds(store: ObjectStore) -> None:
    """The others wait for it, instead of sending one copy each that must be refused."""
    source = await store.put("a", b"data", metadata={})

    async def copy(number: int) -> None:
        await store.copy("a", f"b{number}", source_size=4, if_source_match=source.etag)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(copy, number)
    assert len((await store.list_page("b", delimited=False)).objects) == 20
    if isinstance(store, S3Store):
        assert store.stats.of("CopyObject").count <= 20 + 1


async def test_large_copies_go_by_parts(store: ObjectStore) -> None:
    data = os.urandom(2 * MIN_PART_BYTES + 1000)
    source = await store.put("a", data, metadata={"m": "ä"}, content_type="text/plain")
    assert isinstance(store, (S3Store, MemoryStore))
    store.max_copy_bytes = 1000
    if isinstance(store, S3Store):
        store.copy_part_bytes = MIN_PART_BYTES
    written = await store.copy("a", "b", source_size=len(data), if_source_match=source.etag)
    head = await store.head("b")
    assert (head.etag, head.metadata, head.content_type) == (written.etag, {"m": "ä"}, "text/plain")
    assert (await store.get_range("b", 0, len(data))).data == data
    with expect(PreconditionFailed):
        await store.copy("a", "c", source_size=len(data), if_source_match="0" * 32)
    assert await store.list_multiparts("") == []


class Notes:
    """Notes of the uploads of copies."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.left: list[str] = []

    def upload_begun(self, key: str, upload_id: str) -> None:
        assert key.startswith("copy")
        self.begun.append(upload_id)

    def upload_ended(self, upload_id: str) -> None:
        self.ended.append(upload_id)

    def upload_left(self, upload_id: str) -> None:
        self.left.append(upload_id)


async def test_the_upload_of_a_large_copy_is_noted_until_it_is_gone(store: ObjectStore) -> None:
    """Completed, or aborted because a part cannot be copied."""
    if isinstance(store, MemoryStore):
        return  # it copies at once
    assert isinstance(store, S3Store)
    notes, size = Notes(), MIN_PART_BYTES + 1000
    store.copy_notes = notes
    store.max_copy_bytes, store.copy_part_bytes = 1000, MIN_PART_BYTES
    await store.put("a", os.urandom(size), metadata={})
    await store.copy("a", "copy", source_size=size)
    assert notes.ended == notes.begun != []
    with pytest.raises(S3mgrError):
        await store.copy("a", "copy 2", source_size=3 * size)
    assert len(notes.begun) == 2
    assert (notes.ended, notes.left) == (notes.begun, [])
    assert await store.list_multiparts("") == []


# Multipart uploads.


async def test_an_upload_by_parts_makes_one_object(store: ObjectStore, file: int) -> None:
    one, two = os.urandom(MIN_PART_BYTES), b"the end"
    os.pwrite(file, one, 0)
    upload_id = await store.create_multipart("k", metadata={"m": "1"}, content_type="text/plain")
    # out of order, and one part twice
    parts = [await store.upload_part("k", upload_id, 2, b"not this")]
    parts = [await store.upload_part("k", upload_id, 2, two)]
    parts.insert(0, await store.upload_part("k", upload_id, 1, FileSlice(file, 0, len(one))))
    assert [(p.number, p.size) for p in parts] == [(1, len(one)), (2, len(two))]
    assert await store.list_parts("k", upload_id) == parts
    with expect(NotFound):
        await store.head("k")
    written = await store.complete_multipart("k", upload_id, parts)
    assert written.etag.endswith("-2")
    head = await store.head("k")
    assert (head.etag, head.metadata, head.content_type) == (
        written.etag,
        {"m": "1"},
        "text/plain",
    )
    assert (await store.get_range("k", len(one) - 3, 1 << 40)).data == one[-3:] + two
    assert await store.list_multiparts("") == []


async def test_a_part_may_be_copied_from_a_version_of_another_object(store: ObjectStore) -> None:
    body, end = os.urandom(MIN_PART_BYTES + 9), b"the end"
    source = await store.put("o/source ä", body, metadata={})
    upload_id = await store.create_multipart("k", metadata={})
    stop = len(body) - 2
    copied = await store.copy_part(
        "k", upload_id, 1, "o/source ä", 7, stop, if_source_match=source.etag
    )
    assert (copied.number, copied.size) == (1, stop - 7)
    sent = await store.upload_part("k", upload_id, 2, end)
    assert [p.size for p in await store.list_parts("k", upload_id)] == [stop - 7, len(end)]
    await store.complete_multipart("k", upload_id, [copied, sent])
    assert (await store.get_range("k", 0, 1 << 40)).data == body[7:stop] + end


async def test_a_part_is_not_copied_from_nothing(store: ObjectStore) -> None:
    upload_id = await store.create_multipart("k", metadata={})
    with expect(NotFound):
        await store.copy_part("k", upload_id, 1, "absent", 0, 50, if_source_match="0" * 32)
    await store.abort_multipart("k", upload_id)


async def test_unfinished_uploads_are_listed_and_aborted(store: ObjectStore) -> None:
    ids = {key: await store.create_multipart(key, metadata={}) for key in ("a/1", "a/2", "b")}
    pending = await store.list_multiparts("a/")
    assert {u.key: u.upload_id for u in pending} == {k: ids[k] for k in ("a/1", "a/2")}
    assert all(u.started_ns > 10**18 for u in pending)
    for key, upload_id in ids.items():
        await store.abort_multipart(key, upload_id)
        await store.abort_multipart(key, upload_id)
    assert await store.list_multiparts("") == []


async def test_an_upload_that_is_gone_is_not_found(store: ObjectStore) -> None:
    upload_id = await store.create_multipart("k", metadata={})
    part = await store.upload_part("k", upload_id, 1, b"x")
    await store.abort_multipart("k", upload_id)
    with expect(NotFound):
        await store.upload_part("k", upload_id, 1, b"x")
    with expect(NotFound):
        await store.list_parts("k", upload_id)
    with expect(NotFound):
        await store.complete_multipart("k", upload_id, [part])


async def test_a_part_that_is_missing_is_not_found(store: ObjectStore) -> None:
    upload_id = await store.create_multipart("k", metadata={})
    part = await store.upload_part("k", upload_id, 1, b"x")
    with expect(NotFound):
        await store.complete_multipart("k", upload_id, [Part(1, "0" * 32, part.size)])
    with expect(NotFound):
        await store.complete_multipart("k", upload_id, [part, Part(2, part.etag, 1)])
    await store.abort_multipart("k", upload_id)


# The bucket, statistics, tasks.


async def test_a_probe_finds_the_bucket(store: ObjectStore) -> None:
    await store.probe("")
    await store.probe("some/prefix/")


async def test_a_bucket_that_does_not_exist_is_told_from_a_key(
    store: ObjectStore, endpoint: Endpoint | None
) -> None:
    if endpoint is None:
        assert isinstance(store, MemoryStore)
        store.bucket_exists = False
        await _expect_no_bucket(store)
        return
    async with open_store(endpoint.settings("s3mgr-test-absent")) as absent:
        await _expect_no_bucket(absent)


async def _expect_no_bucket(store: ObjectStore) -> None:
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: store.probe(""),
        lambda: store.head("k"),
        lambda: store.get_range("k", 0, 1),
        lambda: store.put("k", b"x", metadata={}),
        lambda: store.put("k", b"x", metadata={}, condition=Condition(absent=True)),
        lambda: store.list_page("", delimited=True),
        lambda: store.copy("k", "l", source_size=1),
        lambda: store.create_multipart("k", metadata={}),
        lambda: store.list_multiparts(""),
        lambda: store.delete_many(["k"]),
    ]
    for attempt in attempts:
        with expect(BucketNotFound):
            await attempt()


async def test_calls_and_bytes_are_counted(store: ObjectStore) -> None:
    await store.put("k", b"12345", metadata={})
    await store.get_range("k", 1, 4)
    with expect(NotFound):
        await store.head("absent")
    assert store.stats.sent_bytes == 5
    assert store.stats.received_bytes >= 3
    assert sum(c.count for c in store.stats.calls.values()) >= 3
    assert sum(c.errors for c in store.stats.calls.values()) == 0
    assert store.stats.retries == 0


async def test_many_tasks_share_a_store(store: ObjectStore) -> None:
    async def work(number: int) -> None:
        key, data = f"k{number}", os.urandom(10_000)
        await store.put(key, data, metadata={"n": str(number)})
        read = await store.get_range(key, 0, 1 << 20)
        assert (read.data, read.head.metadata) == (data, {"n": str(number)})
        await store.delete(key)

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(work, number)
    assert await keys_of(store) == []


async def test_cancelled_calls_leave_nothing_behind(store: ObjectStore) -> None:
    """After cancellation at many points, nothing is held, and the store works."""
    data = os.urandom(1 << 20)
    await store.put("k", data, metadata={})
    for checkpoints in range(0, 60, 3):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.get_range, "k", 0, len(data))
            nursery.start_soon(lambda: store.put("l", data, metadata={}))
            nursery.start_soon(lambda: store.list_page("", delimited=False))
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        if isinstance(store, S3Store):
            assert store.open_connections <= 3
            assert store.requests_running == 0
    assert (await store.get_range("k", 0, len(data))).data == data


async def test_a_store_limits_its_requests(store: ObjectStore) -> None:
    if isinstance(store, MemoryStore):
        return  # it has no connections
    assert isinstance(store, S3Store)
    store.set_concurrency(2)  # of those that move data; of small ones there may be more

    async def write(number: int) -> None:
        await store.put(f"k{number}", bytes(LIGHT_BYTES + 1), metadata={})
        assert store.open_connections <= 2

    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(write, number)
    assert store.open_connections <= 2
