"""Small things that the tests of the S3 store share."""

from collections.abc import Callable
from typing import Any

import trio

from s3mgrd.s3.settings import StoreSettings
from s3mgrd.worker.protocol import CredentialGrant


async def grant() -> CredentialGrant:
    return CredentialGrant(access_key="AKEXAMPLE", secret_key="example-secret")


def settings(url: str | None, **changes: Any) -> StoreSettings:  # noqa: ANN401 any setting
    values: dict[str, Any] = {
        "bucket": "bucket",
        "region": "us-east-1",
        "endpoint_url": url,
        "credentials": grant,
        "retry_deadline_s": 0.0,
        "connect_timeout_s": 5.0,
        "read_timeout_s": 5.0,
    }
    return StoreSettings(**(values | changes))


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for something that sockets bring about, which no event of ours announces."""
    with trio.fail_after(20):
        while not is_so():  # noqa: ASYNC110 see above
            await trio.sleep(0.001)
