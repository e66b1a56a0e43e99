"""Deleting many keys with few requests, and only the versions that are meant."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from s3mgrd.errors import BucketNotFound
from s3mgrd.s3.answers import Answer
from s3mgrd.s3.calls import Calls
from s3mgrd.s3.conditions import DELETE, NO_ETAG, ConditionalWrites, quoted
from s3mgrd.s3.port import REPLACED, DeleteFailure
from s3mgrd.s3.retry import CallFailed

_NOT_IN_XML: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_NO_BATCHES: Final = frozenset({404, 405, 501})
"""Statuses of stores that do not know DeleteObjects at all."""
_REFUSED: Final = frozenset({400, 501})
"""Statuses with which a store says that it does not know what an ETag is doing there."""


async def delete_batch(
    calls: Calls, conditions: ConditionalWrites, keys: Sequence[str], if_match: Mapping[str, str]
) -> list[DeleteFailure]:
    """Delete *keys* with one DeleteObjects; those that XML cannot carry, or all where the store has no such call, one by one.

    Raises:
        S3mgrError: the batch as a whole failed; whether some keys were deleted is unknown.
    """
    plain = [key for key in keys if not _NOT_IN_XML.search(key)]
    odd = [key for key in keys if _NOT_IN_XML.search(key)]
    if conditions.support[DELETE] == "unknown":
        plain = await _find_out(calls, conditions, plain, if_match)
    versions = if_match if conditions.support[DELETE] == "supported" else {}
    failures: list[DeleteFailure] = []
    if plain:
        try:
            answer = await _delete(calls, {key: versions.get(key) for key in plain})
        except CallFailed as failure:
            if failure.status not in _NO_BATCHES or isinstance(failure.error, BucketNotFound):
                raise failure.error from failure
            odd = list(keys)
        else:
            failures += [
                DeleteFailure(e.get("Key", ""), e.get("Code", ""), e.get("Message", ""))
                for e in answer.get("Errors", [])
                if e.get("Code") != "NoSuchKey"
            ]
    waiting = iter(odd)

    async def delete_odd() -> None:
        for key in waiting:
            try:
                await calls.call("DeleteObject", {"IfMatch": quoted(versions.get(key))}, key=key)
            except CallFailed as failure:
                if failure.status == 404:
                    continue
                code = REPLACED if failure.status == 412 else failure.code
                failures.append(DeleteFailure(key, code, failure.error.detail))

    async with trio.open_nursery() as nursery:
        for _ in range(min(len(odd), int(calls.light.total_tokens))):
            nursery.start_soon(delete_odd)
    return failures


async def _find_out(
    calls: Calls, conditions: ConditionalWrites, keys: list[str], if_match: Mapping[str, str]
) -> list[str]:
    """Learn what the store does with versions from one key that has one; returns what is left to delete."""
    probed = next((key for key in keys if key in if_match), None)
    if probed is None:
        return keys
    try:
        answer = await _delete(calls, {probed: NO_ETAG})
    except CallFailed as failure:
        if failure.status not in _REFUSED | _NO_BATCHES or isinstance(
            failure.error, BucketNotFound
        ):
            raise failure.error from failure
        conditions.note_unsupported(DELETE)
        return keys
    codes = {error.get("Code") for error in answer.get("Errors", [])}
    if not codes:
        conditions.note_unsupported(DELETE)
        return [key for key in keys if key != probed]
    if REPLACED in codes:
        conditions.support[DELETE] = "supported"
    return keys


async def _delete(calls: Calls, versions: Mapping[str, str | None]) -> Answer:
    objects = [
        {"Key": key} if etag is None else {"Key": key, "ETag": quoted(etag)}
        for key, etag in versions.items()
    ]
    return await calls.call("DeleteObjects", {"Delete": {"Objects": objects, "Quiet": True}})
