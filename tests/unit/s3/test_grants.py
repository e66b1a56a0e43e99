"""Keys: asked for when needed, renewed in time, replaced at once."""

from datetime import UTC, datetime, timedelta

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from s3mgrd.errors import CredentialsRejected, Unavailable
from s3mgrd.s3.client import open_store
from s3mgrd.s3.grants import LiveCredentials
from s3mgrd.worker.protocol import CredentialGrant
from tests.servers.scripted import Answer, Request, error, serve
from tests.unit.s3.support import settings, until

START = datetime(2024, 1, 1, tzinfo=UTC)


class Provider:
    """Gives numbered keys that live as long as it is told; fails while `error` is set."""

    def __init__(self, life: timedelta | None = None) -> None:
        self.life = life
        self.now = START
        self.count = 0
        self.error: Exception | None = None
        self.gate: trio.Event | None = None

    async def __call__(self) -> CredentialGrant:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.count += 1
        return CredentialGrant(
            access_key=f"key{self.count}",
            secret_key="secret",
            expires_at=None if self.life is None else self.now + self.life,
        )

    def credentials(self) -> LiveCredentials:
        return LiveCredentials(self, now=lambda: self.now)


async def key_of(credentials: LiveCredentials) -> str:
    return str((await credentials.get_frozen_credentials()).access_key)


async def test_keys_that_do_not_expire_are_asked_for_once() -> None:
    provider = Provider()
    credentials = provider.credentials()
    assert provider.count == 0
    for days in (0, 1, 1000):
        provider.now = START + timedelta(days=days)
        assert await key_of(credentials) == "key1"


@pytest.mark.parametrize(
    ("life_s", "age_s", "key"),
    [
        (3600, 3299, "key1"),
        (3600, 3300, "key2"),
        (3600, 3601, "key2"),
        (60, 29, "key1"),
        (60, 31, "key2"),
    ],
)
async def test_keys_are_renewed_before_they_expire(life_s: int, age_s: int, key: str) -> None:
    provider = Provider(timedelta(seconds=life_s))
    credentials = provider.credentials()
    await key_of(credentials)
    provider.now += timedelta(seconds=age_s)
    assert await key_of(credentials) == key


async def test_valid_keys_outlive_a_provider_that_fails() -> None:
    provider = Provider(timedelta(hours=1))
    credentials = provider.credentials()
    await key_of(credentials)
    provider.error = Unavailable("the supervisor is away")
    provider.now += timedelta(minutes=59)
    assert await key_of(credentials) == "key1"
    provider.now += timedelta(minutes=2)
    with pytest.raises(Unavailable):
        await key_of(credentials)
    provider.error = None
    assert await key_of(credentials) == "key2"


async def test_a_failing_provider_is_not_asked_at_every_request() -> None:
    provider = Provider(timedelta(hours=1))
    credentials = provider.credentials()
    await key_of(credentials)
    provider.now += timedelta(minutes=58)
    provider.error = Unavailable("away")
    await key_of(credentials)
    provider.error = None
    assert await key_of(credentials) == "key1"
    provider.now += timedelta(seconds=16)
    assert await key_of(credentials) == "key2"


async def test_many_tasks_ask_once() -> None:
    provider = Provider(timedelta(hours=1))
    provider.gate = trio.Event()
    credentials = provider.credentials()
    keys: list[str] = []

    async def use() -> None:
        keys.append(await key_of(credentials))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(use)
        await wait_all_tasks_blocked()
        provider.gate.set()
    assert keys == ["key1"] * 5


async def test_nobody_waits_for_a_renewal_while_keys_are_valid() -> None:
    provider = Provider(timedelta(hours=1))
    credentials = provider.credentials()
    await key_of(credentials)
    provider.now += timedelta(minutes=58)
    provider.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(key_of, credentials)
        await wait_all_tasks_blocked()
        with trio.fail_after(5):
            assert await key_of(credentials) == "key1"
        provider.gate.set()


async def test_replaced_keys_are_used_at_once() -> None:
    old, new = Provider(), Provider()
    new.count = 10
    credentials = old.credentials()
    assert await key_of(credentials) == "key1"
    credentials.replace(new)
    assert await key_of(credentials) == "key11"


async def test_keys_replaced_while_they_are_asked_for_are_not_lost() -> None:
    old, new = Provider(), Provider()
    new.count = 10
    old.gate = trio.Event()
    credentials = old.credentials()
    keys: list[str] = []

    async def use() -> None:
        keys.append(await key_of(credentials))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(use)
        await wait_all_tasks_blocked()
        credentials.replace(new)
        old.gate.set()
    assert keys == ["key11"]


def key_in(request: Request) -> str:
    return request.headers["authorization"].partition("Credential=")[2].partition("/")[0]


def accept_only(key: str) -> object:
    def answer(request: Request) -> Answer:
        if key_in(request) == key:
            return Answer()
        return error("400 Bad Request", "ExpiredToken")

    return answer


async def test_refused_keys_are_renewed_and_the_call_repeated() -> None:
    provider = Provider(timedelta(hours=1))
    provider.now = datetime.now(UTC)
    async with serve(accept_only("key2")) as server:  # type: ignore[arg-type]  # a handler
        options = settings(server.url, credentials=provider, retry_deadline_s=5)
        async with open_store(options) as store:
            await store.put("k", b"x", metadata={})
        assert [key_in(r) for r in server.requests] == ["key1", "key2"]


async def test_refused_keys_without_others_are_an_error_at_once() -> None:
    async def same() -> CredentialGrant:
        return CredentialGrant(access_key="always", secret_key="this")

    async with serve([error("403 Forbidden", "InvalidAccessKeyId")]) as server:
        async with open_store(settings(server.url, credentials=same, retry_deadline_s=60)) as store:
            with pytest.raises(CredentialsRejected):
                await store.put("k", b"x", metadata={})
        assert len(server.requests) == 1


async def test_a_store_signs_with_replaced_keys() -> None:
    new = Provider()
    new.count = 10
    async with serve([Answer()]) as server:
        async with open_store(settings(server.url, credentials=Provider())) as store:
            await store.put("k", b"x", metadata={})
            store.set_credentials(new)
            await store.put("k", b"x", metadata={})
        assert [key_in(r) for r in server.requests] == ["key1", "key11"]


async def test_a_provider_that_is_away_is_asked_again() -> None:
    provider = Provider()
    provider.error = Unavailable("the supervisor is away")
    async with serve([Answer()]) as server:
        options = settings(server.url, credentials=provider, retry_deadline_s=30)
        async with open_store(options) as store, trio.open_nursery() as nursery:
            nursery.start_soon(lambda: store.put("k", b"x", metadata={}))
            await until(lambda: store.stats.retries > 0)
            provider.error = None
        assert len(server.requests) == 1
