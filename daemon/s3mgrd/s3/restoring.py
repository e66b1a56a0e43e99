"""Asking S3 to restore an archived object."""

from typing import Final

from s3mgrd.errors import Archived, Conflict
from s3mgrd.s3.calls import Calls
from s3mgrd.s3.port import RestoreAnswer, Tier
from s3mgrd.s3.retry import CallFailed

ACCEPTED: Final = 202
"""S3 has begun to restore; 200 says that a restored copy was there."""


async def restore_object(calls: Calls, key: str, *, days: int | None, tier: Tier) -> RestoreAnswer:
    """Do what the port's `restore` promises."""
    request: dict[str, object] = {"GlacierJobParameters": {"Tier": tier}}
    if days is not None:
        request["Days"] = days
    try:
        answer = await calls.call("RestoreObject", {"RestoreRequest": request}, key=key)
    except CallFailed as failure:
        if failure.code == "RestoreAlreadyInProgress":
            return "ongoing"
        if isinstance(failure.error, Archived):  # InvalidObjectState says the opposite here
            raise Conflict(
                f"{key!r} is not archived", request_id=failure.error.request_id
            ) from failure
        raise failure.error from failure
    return "begun" if answer["ResponseMetadata"]["HTTPStatusCode"] == ACCEPTED else "extended"
