"""Conditional writes on stores that may not know them.

Not every store evaluates If-Match and If-None-Match, and one that does for PUT may not for copies and multipart
uploads; a store that ignores them acknowledges what it should have refused. So per kind of write we know "supported"
(AWS; or a 412 was seen), "unsupported" (the store says NotImplemented, or was seen to ignore it) or nothing. Unless
it is "supported", a HEAD right before the write checks the condition, too: that is not atomic, but it catches
everything except a race within milliseconds.

What PUT does is found out with the first conditional PUT of a small body that succeeds: the same PUT again, with
If-None-Match: * or an If-Match that nothing matches, must be refused. Where it is not, it has written the same bytes
again, and we know. What a delete does is found out with the first one that has a version: it is first sent with a version
that nothing has. A store that deletes nevertheless has done what was wanted (`s3mgrd.s3.deleting`). What the end of a
multipart upload does is found out with one of no use (`s3mgrd.s3.trials`).

Two habits of radosgw 16: for PUT it compares If-Match with the ETag as it is, so that the quotes of RFC 9110 make it
refuse every write; and it ignores a copy's condition on the source (`SOURCE`, see `s3mgrd.s3.copying`).
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import trio

from s3mgrd.errors import NotFound, PreconditionFailed, Unsupported
from s3mgrd.s3.port import ALWAYS, Condition, Conditions, ObjectHead, Support
from s3mgrd.s3.retry import CallFailed

log = logging.getLogger("s3mgrd.s3")

T = TypeVar("T")
Check = Mapping[str, str | None]
"""Parameters of a write that carry its condition."""

PUT: Final = "PutObject"
COPY: Final = "CopyObject"
COMPLETE: Final = "CompleteMultipartUpload"

PUT_MATCH: Final = "PUT with If-Match"
PUT_ABSENT: Final = "PUT with If-None-Match"
SOURCE: Final = "CopyObject with If-Match on its source"
DELETE: Final = "DeleteObjects with ETags"
NO_ETAG: Final = "00000000000000000000000000000000"
"""What nothing has: a write that demands it must be refused."""
MUST_BE_NEW: Final[Check] = {"IfNoneMatch": "*"}


class ConditionalWrites:
    """What is known about one store, and how its conditional writes are made.

    Args:
        endpoint: for messages.
        known: the store is known to evaluate all conditions.
        head: asks for an object; for the checks before writes.
    """

    def __init__(
        self, endpoint: str, *, known: bool, head: Callable[[str], Awaitable[ObjectHead]]
    ) -> None:
        self._endpoint: Final = endpoint
        self._head: Final = head
        initial: Support = "supported" if known else "unknown"
        self.support: Final[dict[str, Support]] = dict.fromkeys(
            (PUT_MATCH, PUT_ABSENT, COPY, COMPLETE, SOURCE, DELETE), initial
        )
        self._is_finding_out = False
        self.first_copy: Final = trio.Lock()
        """Held, over its requests, by a copy that finds out about `SOURCE`: 64 at once would ask the same three times each."""
        self._quotes: bool | None = True if known else None
        """Whether If-Match wants its quotes; None: not known yet, they are tried first."""

    @property
    def known(self) -> Conditions:
        """Everything that is known."""
        return Conditions(
            put_if_match=self.support[PUT_MATCH],
            put_if_absent=self.support[PUT_ABSENT],
            complete=self.support[COMPLETE],
            copy_source=self.support[SOURCE],
            delete=self.support[DELETE],
        )

    def recall(self, before: Conditions) -> None:
        """Believe what an earlier use of the store found out, where nothing is known yet."""
        found = {
            PUT_MATCH: before.put_if_match,
            PUT_ABSENT: before.put_if_absent,
            COMPLETE: before.complete,
            SOURCE: before.copy_source,
            DELETE: before.delete,
        }
        for kind, support in found.items():
            if self.support[kind] == "unknown":
                self.support[kind] = support

    async def run(
        self,
        operation: str,
        key: str,
        condition: Condition,
        write: Callable[[Check], Awaitable[T]],
    ) -> T:
        """Make a write under *condition*.

        Args:
            operation: one of `PUT`, `COPY`, `COMPLETE`.
            key: what is written.
            condition: what must hold.
            write: does it, with the parameters it is given; called twice where the store refuses the first ones.

        Raises:
            PreconditionFailed: the check before the write says so.
            CallFailed: *write* failed.
        """
        if condition == ALWAYS:
            return await write({})
        kind = operation
        if operation == PUT:
            kind = PUT_ABSENT if condition.absent else PUT_MATCH
        if self.support[kind] != "supported":
            await self._check(key, condition)
        if self.support[kind] == "unsupported":
            return await write({})
        try:
            return await self._write(key, condition, write)
        except CallFailed as failure:
            if isinstance(failure.error, PreconditionFailed):
                self.support[kind] = "supported"
            if not isinstance(failure.error, Unsupported):
                raise
        self.note_unsupported(kind)
        return await write({})

    async def _write(
        self, key: str, condition: Condition, write: Callable[[Check], Awaitable[T]]
    ) -> T:
        """Send the condition, in the form that the store understands."""
        if condition.if_match is None:
            return await write(MUST_BE_NEW)
        if self._quotes is not None:
            form = quoted(condition.if_match) if self._quotes else condition.if_match
            return await write({"IfMatch": form})
        try:
            result = await write({"IfMatch": quoted(condition.if_match)})
        except CallFailed as failure:
            if not isinstance(failure.error, PreconditionFailed) or failure.after_ambiguous:
                raise
        else:
            self._quotes = True
            return result
        await self._check(key, condition)
        result = await write({"IfMatch": condition.if_match})
        self._quotes = False
        return result

    async def find_out(self, write: Callable[[Check], Awaitable[object]]) -> None:
        """Learn what PUT does from *write*, a PUT that has just succeeded, called again with what must be refused.

        Nothing while another write is finding it out.
        """
        if self._is_finding_out:
            return
        self._is_finding_out = True
        try:
            await self._find_out(write)
        finally:
            self._is_finding_out = False

    async def _find_out(self, write: Callable[[Check], Awaitable[object]]) -> None:
        for kind, check in ((PUT_ABSENT, MUST_BE_NEW), (PUT_MATCH, {"IfMatch": quoted(NO_ETAG)})):
            if self.support[kind] != "unknown":
                continue
            try:
                await write(check)
            except CallFailed as failure:
                if isinstance(failure.error, PreconditionFailed):
                    self.support[kind] = "supported"
                elif isinstance(failure.error, Unsupported):
                    self.note_unsupported(kind)
                else:
                    return  # says nothing; the next such write finds out
            else:
                self.note_unsupported(kind)

    async def find_out_completing(self, write: Callable[[Check], Awaitable[object]]) -> bool:
        """Learn whether conditions count when an upload is completed from *write*, which completes one of no use.

        Returns whether it was completed, although it should have been refused.

        Raises:
            CallFailed: *write* failed for another reason.
        """
        if self.support[COMPLETE] != "unknown":
            return False
        try:
            await write({"IfMatch": quoted(NO_ETAG)})
        except CallFailed as failure:
            if isinstance(failure.error, PreconditionFailed) or failure.code == "NoSuchKey":
                self.support[COMPLETE] = "supported"
            elif isinstance(failure.error, Unsupported):
                self.note_unsupported(COMPLETE)
            else:
                raise
            return False
        self.note_unsupported(COMPLETE)
        return True

    def note_unsupported(self, kind: str) -> None:
        """Note that the store does not evaluate conditions of a kind, and say what that means."""
        self.support[kind] = "unsupported"
        log.warning(
            "%s does not evaluate %s: simultaneous writers may overwrite each other",
            self._endpoint,
            kind,
        )

    async def _check(self, key: str, condition: Condition) -> None:
        found: str | None
        try:
            found = (await self._head(key)).etag
        except NotFound:
            found = None
        if condition.absent and found is not None:
            raise PreconditionFailed(f"{key!r} exists already")
        if condition.if_match is not None and found != condition.if_match:
            raise PreconditionFailed(
                f"another writer was first: {key!r} is not the version expected"
            )


def quoted(etag: str | None) -> str | None:
    """Put an ETag into the quotes that headers want."""
    return None if etag is None else f'"{etag}"'
