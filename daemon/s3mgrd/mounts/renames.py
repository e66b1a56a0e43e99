"""Directory renames that S3 has yet to follow, as operations: what a worker tells of them becomes progress and ends.

The worker names each by a number that stays the same for its successors, and so does the operation: it goes on when a
worker dies, and when the daemon starts again and finds the rename still pending.
"""

import uuid
from collections.abc import Sequence
from typing import Final

from s3mgr.schema import PendingRename, Progress
from s3mgrd.errors import NotMounted
from s3mgrd.mounts.operations import Operations, RunningOperation

_NAMESPACE: Final = uuid.UUID("0d9ad4a8-6c2f-4d3e-9a53-6c1f3b1f7c55")


class RenameOperations:
    """Keeps one operation for each pending rename of each mount. No checkpoints."""

    def __init__(self, operations: Operations) -> None:
        self._operations: Final = operations
        self._running: dict[str, dict[str, RunningOperation]] = {}

    def report(self, mount: str, owner_uid: int, pending: Sequence[PendingRename]) -> None:
        """Take over what a worker says is pending; what it no longer names has come to its end in S3."""
        running = self._running.setdefault(mount, {})
        for rename in pending:
            if rename.id not in running:
                running[rename.id] = self._operations.follow(
                    str(uuid.uuid5(_NAMESPACE, f"{mount}/{rename.id}")),
                    "rename",
                    target=mount,
                    owner_uid=owner_uid,
                    detail=f"{rename.source} to {rename.target}",
                    created_at=rename.since,
                )
            running[rename.id].report(
                Progress(
                    done=rename.objects_done,
                    total=rename.objects_total or None,
                    unit="objects",
                    bytes_done=rename.bytes_done,
                    bytes_total=rename.bytes_total or None,
                ),
                rename.error,
            )
        for gone in running.keys() - {rename.id for rename in pending}:
            running.pop(gone).succeed()

    def stop(self, mount: str) -> None:
        """End the operations of a mount that has no worker any more; they are taken up again when it has."""
        for running in self._running.pop(mount, {}).values():
            running.fail(
                NotMounted(
                    "the mount was unmounted before S3 had followed",
                    hint="It goes on where it was when the bucket is mounted under this name again.",
                )
            )
