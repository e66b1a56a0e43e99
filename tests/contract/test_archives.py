"""Archived objects: what every `ObjectStore` that has archives does alike. radosgw 16 has none."""

from collections.abc import AsyncIterator, Callable

import pytest

from s3mgrd.errors import Archived, Conflict
from s3mgrd.s3.client import open_store
from s3mgrd.s3.memory import MemoryStore
from s3mgrd.s3.port import ObjectHead, ObjectStore
from tests.servers.cold import finish_restores
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

DAY_NS = 86_400 * 10**9
Finish = Callable[[], None]


@pytest.fixture(params=["memory", "ministack"])
async def archive(request: pytest.FixtureRequest) -> AsyncIterator[tuple[ObjectStore, Finish]]:
    if request.param == "memory":
        memory = MemoryStore()
        yield memory, memory.finish_restores
        return
    endpoint = request.getfixturevalue("ministack")
    assert isinstance(endpoint, Endpoint)
    client = endpoint.boto3()
    bucket = make_bucket(client)
    async with open_store(endpoint.settings(bucket)) as store:
        yield store, lambda: finish_restores(endpoint)
    remove_bucket(client, bucket)
    client.close()


def like(storage_class: str) -> ObjectHead:
    named = None if storage_class == "STANDARD" else storage_class
    return ObjectHead("", 0, "", 0, {}, storage_class=named)


async def test_an_archived_object_is_listed_as_such_and_neither_read_nor_copied(
    archive: tuple[ObjectStore, Finish],
) -> None:
    store, _ = archive
    for name in ("GLACIER", "DEEP_ARCHIVE", "GLACIER_IR", "STANDARD"):
        await store.put(name, b"hello", metadata={}, like=like(name))
    page = await store.list_page("", delimited=False)
    assert {info.key: info.storage_class for info in page.objects} == {
        "GLACIER": "GLACIER",
        "DEEP_ARCHIVE": "DEEP_ARCHIVE",
        "GLACIER_IR": "GLACIER_IR",
        "STANDARD": None,
    }
    for name in ("GLACIER_IR", "STANDARD"):
        assert bytes((await store.get_range(name, 0, 5)).data) == b"hello"
    for name in ("GLACIER", "DEEP_ARCHIVE"):
        head = await store.head(name)
        assert (head.storage_class, head.restore) == (name, None)
        with pytest.raises(Archived):
            await store.get_range(name, 0, 5)
        with pytest.raises(Archived):
            await store.copy(name, "copy", source_size=5)


async def test_a_restore_is_begun_once_and_head_tells_how_it_is(
    archive: tuple[ObjectStore, Finish],
) -> None:
    store, finish = archive
    await store.put("cold", b"hello", metadata={}, like=like("GLACIER"))
    assert await store.restore("cold", days=2, tier="Bulk") == "begun"
    assert await store.restore("cold", days=2, tier="Bulk") == "ongoing"
    restore = (await store.head("cold")).restore
    assert restore is not None
    assert (restore.is_ongoing, restore.expires_ns, restore.is_readable(0)) == (True, None, False)
    with pytest.raises(Archived):
        await store.get_range("cold", 0, 5)
    finish()
    restore = (await store.head("cold")).restore
    assert restore is not None
    assert not restore.is_ongoing
    first = restore.expires_ns
    assert first is not None
    assert restore.is_readable(first - 1)
    assert not restore.is_readable(first)
    found = await store.get_range("cold", 1, 3)
    assert bytes(found.data) == b"el"
    await store.copy("cold", "copy", source_size=5)
    assert await store.restore("cold", days=4, tier="Bulk") == "extended"
    restore = (await store.head("cold")).restore
    assert restore is not None
    assert restore.expires_ns is not None
    assert DAY_NS < restore.expires_ns - first < 3 * DAY_NS


async def test_what_is_not_archived_is_not_restored(archive: tuple[ObjectStore, Finish]) -> None:
    store, _ = archive
    await store.put("warm", b"hello", metadata={})
    with pytest.raises(Conflict, match="'warm' is not archived"):
        await store.restore("warm", days=1, tier="Standard")
