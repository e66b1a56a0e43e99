"""Problems: RFC 9457 bodies of every answer that is not a success. The slugs are API."""

from enum import StrEnum

from msgspec import Struct, field

URN = "urn:s3mgr:problem:"


class ProblemType(StrEnum):
    """Slug of a problem; `type` in the body is ``urn:s3mgr:problem:<slug>``."""

    INVALID_REQUEST = "invalid-request"
    INVALID_SPEC = "invalid-spec"
    NOT_FOUND = "not-found"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    NAME_CONFLICT = "name-conflict"
    MOUNTPOINT_BUSY = "mountpoint-busy"
    MOUNTPOINT_INVALID = "mountpoint-invalid"
    SPEC_CONFLICT = "spec-conflict"
    NOT_MOUNTED = "not-mounted"
    CONFLICT = "conflict"
    PRECONDITION_FAILED = "precondition-failed"
    DIRTY_DATA = "dirty-data"
    NOT_PERMITTED = "not-permitted"
    UNAUTHENTICATED = "unauthenticated"
    BUCKET_UNREACHABLE = "bucket-unreachable"
    BUCKET_NOT_FOUND = "bucket-not-found"
    CREDENTIALS_REJECTED = "credentials-rejected"
    BODY_TOO_LARGE = "body-too-large"
    REQUEST_TIMEOUT = "request-timeout"
    UNSUPPORTED = "unsupported"
    DRAINING = "draining"
    NOT_READY = "not-ready"
    MOUNT_FAILED = "mount-failed"
    INTERNAL = "internal"


class FieldError(Struct, frozen=True, kw_only=True):
    """One wrong field; `pointer` is an RFC 6901 JSON pointer into the request body."""

    pointer: str
    detail: str


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong, why, and what to do."""

    type: str
    title: str
    status: int
    detail: str
    instance: str = ""
    hint: str = ""
    retryable: bool = False
    mount: str | None = None
    errors: list[FieldError] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """The last part of `type`."""
        return self.type.removeprefix(URN)
