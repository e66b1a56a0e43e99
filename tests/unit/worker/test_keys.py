"""The keys a worker gives its store."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from s3mgrd.errors import Denied, S3mgrError, Unavailable
from s3mgrd.worker.keys import Keys
from s3mgrd.worker.protocol import CredentialGrant

LATER = datetime.now(UTC) + timedelta(days=1)
BEFORE = datetime.fromtimestamp(0, UTC)


def grant(key: str, expires_at: datetime | None = None) -> CredentialGrant:
    return CredentialGrant(access_key=key, secret_key="secret", expires_at=expires_at)


class Supervisor:
    """Gives keys one after another, or raises."""

    def __init__(self, *answers: CredentialGrant | S3mgrError) -> None:
        self.answers = list(answers)

    async def ask(self) -> CredentialGrant:
        answer = self.answers.pop(0)
        if isinstance(answer, S3mgrError):
            raise answer
        return answer


@pytest.fixture
def make() -> Callable[..., Keys]:
    return lambda *answers: Keys(Supervisor(*answers).ask)


async def test_those_it_was_started_with_are_used_once_then_the_supervisor_is_asked(
    make: Callable[..., Keys],
) -> None:
    keys = make(grant("second"))
    keys.put(grant("first"))
    assert [(await keys.provide()).access_key for _ in range(2)] == ["first", "second"]


async def test_expired_ones_are_not_used_once(make: Callable[..., Keys]) -> None:
    keys = make(Unavailable("nothing yet"), grant("real"))
    keys.put(grant("", BEFORE))
    with pytest.raises(Unavailable):
        await keys.provide()
    assert (await keys.provide()).access_key == "real"


@pytest.mark.parametrize("expires_at", [None, LATER])
async def test_the_last_ones_serve_while_the_supervisor_is_away(
    make: Callable[..., Keys], expires_at: datetime | None
) -> None:
    keys = make(Unavailable("away"), Denied("no"))
    keys.put(grant("first", expires_at))
    assert [(await keys.provide()).access_key for _ in range(2)] == ["first", "first"]
    with pytest.raises(Denied):
        await keys.provide()


async def test_what_is_put_later_counts(make: Callable[..., Keys]) -> None:
    keys = make()
    keys.put(grant("first"))
    await keys.provide()
    keys.put(grant("second"))
    assert (await keys.provide()).access_key == "second"
