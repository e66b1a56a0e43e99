"""Every error that crosses a layer of the daemon.

    S3mgrError
    ├── UserError              bad input; repeating it cannot help
    │   ├── InvalidConfig      the daemon's own configuration
    │   ├── InvalidSpec        a mount request that is well-formed JSON but cannot work
    │   ├── MountpointInvalid  missing, not a directory, not empty, inside another mount
    │   └── TooLarge           over a limit of S3 or of a protocol
    ├── NotFound               an object, a name, an operation
    ├── BucketNotFound         says nothing about any object: no NotFound
    ├── Denied                 S3 or the daemon refuses this identity
    │   └── CredentialsRejected  the keys themselves: unknown, wrong, expired, clock skewed
    ├── Conflict               the thing changed, exists or is busy
    │   ├── PreconditionFailed a conditional request lost: the version is not the expected one
    │   ├── NameConflict       the name is taken by another mount
    │   ├── SpecConflict       the mount is up with another spec; that field cannot change live
    │   ├── DirtyData          data is left that S3 does not have
    │   ├── MountpointBusy     something is mounted there already
    │   └── NotMounted         the request needs a mount that is up
    ├── Unavailable            retrying later may help: S3, the network, a worker
    │   ├── TimedOut           no answer in time
    │   ├── Stopping           the daemon is going down
    │   └── WorkerLost         the worker went away during a request
    ├── Archived               the object must be restored from cold storage first
    ├── Unsupported            this store or kernel cannot do it
    ├── Unforeseen             a call of S3 failed in a way that no rule knows
    ├── Corrupt                a file of ours is damaged or from a newer version
    └── Defect                 a worker met an error that nobody foresaw

Three tables translate these, and nothing else does: `api.problems` (HTTP), `worker.errnos` (errno) and the
client's exit codes. Adapters raise these ``from`` their library's exceptions; no botocore, httpx or sqlite3
exception crosses a layer.
"""

from typing import Final


class S3mgrError(Exception):
    """Root of the tree; never raised itself.

    Attributes:
        detail: one sentence: what happened and why, without secrets.
        hint: what the user can do; empty where nothing is known to help.
        request_id: S3's id of the failed request, where there was one.
    """

    def __init__(self, detail: str, *, hint: str = "", request_id: str | None = None) -> None:
        super().__init__(detail)
        self.detail: Final = detail
        self.hint: Final = hint
        self.request_id: Final = request_id


class UserError(S3mgrError):
    """The input is wrong. Not raised for things that a retry could mend."""


class InvalidConfig(UserError):
    """The daemon's configuration has an unknown key or a bad value."""


class InvalidSpec(UserError):
    """A mount request is well-formed but cannot work, e.g. a wrong region or an impossible combination.

    `pointer` is the JSON pointer of the offending field, where one field is to blame.
    """

    def __init__(
        self, detail: str, *, hint: str = "", pointer: str = "", request_id: str | None = None
    ) -> None:
        super().__init__(detail, hint=hint, request_id=request_id)
        self.pointer: Final = pointer


class MountpointInvalid(UserError):
    """The mountpoint is missing, not a directory, not empty, or inside another of our mounts."""


class TooLarge(UserError):
    """Over a limit of S3 (EntityTooLarge) or of our protocol."""


class NotFound(S3mgrError):
    """The named object, mount or operation does not exist."""


class BucketNotFound(S3mgrError):
    """The bucket does not exist. No `NotFound`: what follows from an object's absence must not follow from this."""


class Denied(S3mgrError):
    """This identity may not do that. Not raised when the keys themselves are bad."""


class CredentialsRejected(Denied):
    """The keys are missing, unknown, wrong or expired, or the clock is too far off to sign."""


class Conflict(S3mgrError):
    """It exists already, changed meanwhile, or is busy."""


class PreconditionFailed(Conflict):
    """If-Match or If-None-Match did not hold: another writer was first."""


class NameConflict(Conflict):
    """The name is taken: by somebody else's mount, or by any when the caller wanted to create it."""


class SpecConflict(Conflict):
    """The mount is up and a changed field cannot change live. Not raised for an unmounted one.

    `pointer` is the JSON pointer of the first such field.
    """

    def __init__(self, detail: str, *, hint: str = "", pointer: str = "") -> None:
        super().__init__(detail, hint=hint)
        self.pointer: Final = pointer


class DirtyData(Conflict):
    """Data is left that S3 does not have; it is kept. Not raised on the user's word *discard*."""

    def __init__(
        self, detail: str, *, hint: str = "", dirty_bytes: int = 0, dirty_files: int = 0
    ) -> None:
        super().__init__(detail, hint=hint)
        self.dirty_bytes: Final = dirty_bytes
        self.dirty_files: Final = dirty_files


class MountpointBusy(Conflict):
    """Another mount, ours or not, is on that path."""


class NotMounted(Conflict):
    """The request needs a mount that is up."""


class Unavailable(S3mgrError):
    """S3, the network or a worker did not deliver; trying later may help."""


class TimedOut(Unavailable):
    """No answer in time."""


class Stopping(Unavailable):
    """The daemon is going down and takes no new work; the next one may be up in seconds."""


class WorkerLost(Unavailable):
    """The worker process went away while a request to it was open."""


class Archived(S3mgrError):
    """The object's storage class needs a restore before it can be read."""


class Unsupported(S3mgrError):
    """The store or the kernel does not implement it."""


class Unforeseen(S3mgrError):
    """A call of S3 failed in a way that no rule knows, e.g. with an error code of the store's own. Not tried again."""


class Corrupt(S3mgrError):
    """A file of ours is damaged, truncated, or written by a newer version. Never mended silently."""


class Defect(S3mgrError):
    """A worker met an error of ours while it answered a request. Not raised for anything that S3 or the user did."""
