"""The states of a mount, which may follow which, and why: a pure table.

::

    pending ──▶ mounting ──▶ mounted ◀──▶ degraded
                   │            │            │
                   ▼            ▼            ▼
                 failed ◀── draining ──▶ unmounted

A mount whose bucket is gone is failed although it is served (`BUCKET_GONE`), and the only one that goes from there to
mounted or degraded without an attempt.

`Reason` slugs are API: `status.reason` carries one, and programs may compare it.
"""

from enum import StrEnum
from typing import Final, assert_never

from s3mgr.schema import MountState


class Reason(StrEnum):
    """Why a mount is in its state. The first sentence of each comment is its documentation."""

    # pending
    STORED = "stored"  # waits for its turn after a start of the daemon
    REQUESTED = "requested"  # was asked for
    # mounting
    CONNECTING = "connecting"  # a worker starts and asks the bucket
    REMOUNTING = "remounting"  # a connection that could not be resumed is replaced by a new one
    # mounted
    READY = "ready"  # is served
    ADOPTED = "adopted"  # was taken over from an earlier daemon, its users did not notice
    RESUMED = "resumed"  # a new worker serves the connection of the one before
    # degraded
    WORKER_RESTARTING = "worker-restarting"  # the worker died; programs wait for the next
    WORKER_REPLACED = (
        "worker-replaced"  # a restart was asked for; programs wait for the next worker
    )
    # failed; besides these, the slug of the problem that mounting met
    WORKER_CRASH_LOOP = (
        "worker-crash-loop"  # workers died too often; asking for a restart tries again
    )
    BUCKET_GONE = "bucket-gone"  # the bucket was deleted under the mount; goes on when it is back
    # draining
    UNMOUNTING = "unmounting"  # an unmount was asked for
    DAEMON_STOPPING = "daemon-stopping"  # the daemon stops; mounted again at its next start
    # draining, unmounted
    UNMOUNTED_OUTSIDE = (
        "unmounted-outside"  # somebody used umount or fusermount3 -u; stays unmounted
    )
    # unmounted
    ASKED = "asked"  # an unmount was asked for and everything is in S3
    UNDRAINED = "undrained"  # data is left that S3 does not have; the next mount uploads it
    CANCELLED = "cancelled"  # the drain of an unmount was given up; data may be left in the journal
    CONFLICTS_KEPT = (
        "conflicts-kept"  # everything is in S3 but conflict copies, which keep the definition
    )
    DISCARDED = "discarded"  # what S3 did not have was thrown away, as asked


_TRANSITIONS: Final[dict[MountState, frozenset[MountState]]] = {
    # "draining" without having been mounted: an unmount finds a journal that must be uploaded first.
    # "mounted" directly: the worker of an earlier daemon was taken over.
    "pending": frozenset({"mounting", "mounted", "degraded", "draining", "unmounted", "failed"}),
    "mounting": frozenset({"mounted", "degraded", "failed", "draining", "unmounted"}),
    "mounted": frozenset({"degraded", "draining", "mounting", "failed", "unmounted"}),
    "degraded": frozenset({"mounted", "draining", "mounting", "failed", "unmounted"}),
    # back to "mounted": the tree was busy. "pending": it is wanted again while it drains.
    "draining": frozenset({"mounted", "degraded", "unmounted", "failed", "pending"}),
    "unmounted": frozenset({"pending", "draining", "failed"}),
    # to "mounted" and "degraded": the bucket was gone and is back, or its worker is being replaced.
    "failed": frozenset({"pending", "mounting", "mounted", "degraded", "draining", "unmounted"}),
}

UP: Final[frozenset[MountState]] = frozenset({"mounted", "degraded"})
"""States in which programs can use the mount, at least by waiting; see also `StatusKeeper.is_up`."""


def may_follow(old: MountState, new: MountState) -> bool:
    """Tell whether *new* is a legal next state; staying is always legal."""
    return old == new or new in _TRANSITIONS[old]


def is_settled(state: MountState) -> bool:
    """Tell whether the reconciler has finished, for now, what it was doing."""
    match state:
        case "mounted" | "degraded" | "unmounted" | "failed":
            return True
        case "pending" | "mounting" | "draining":
            return False
    assert_never(state)
