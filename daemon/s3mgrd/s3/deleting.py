"""Deleting many keys with few requests."""

import re
from collections.abc import Sequence
from typing import Final

import trio

from s3mgrd.s3.calls import Calls
from s3mgrd.s3.port import DeleteFailure
from s3mgrd.s3.retry import CallFailed

_NOT_IN_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


async def delete_batch(calls: Calls, keys: Sequence[str]) -> list[DeleteFailure]:
    """Delete *keys* with one DeleteObjects; those that XML cannot carry one by one.

    Raises:
        S3mgrError: the batch as a whole failed; whether some keys were deleted is unknown.
    """
    plain = [key for key in keys if not _NOT_IN_XML.search(key)]
    failures: list[DeleteFailure] = []
    if plain:
        try:
            answer = await calls.call(
                "DeleteObjects",
                {"Delete": {"Objects": [{"Key": key} for key in plain], "Quiet": True}},
            )
        except CallFailed as failure:
            raise failure.error from failure
        failures += [
            DeleteFailure(e.get("Key", ""), e.get("Code", ""), e.get("Message", ""))
            for e in answer.get("Errors", [])
            if e.get("Code") != "NoSuchKey"
        ]
    odd = (key for key in keys if _NOT_IN_XML.search(key))

    async def delete_odd() -> None:
        for key in odd:
            try:
                await calls.call("DeleteObject", key=key)
            except CallFailed as failure:
                failures.append(DeleteFailure(key, failure.code, failure.error.detail))

    async with trio.open_nursery() as nursery:
        for _ in range(min(len(keys) - len(plain), int(calls.limiter.total_tokens))):
            nursery.start_soon(delete_odd)
    return failures
