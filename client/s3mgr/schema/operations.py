"""Operations: long work that goes on whether or not somebody waits for it."""

from datetime import datetime
from typing import Literal

from msgspec import Struct

from s3mgr.schema.problems import Problem

OperationKind = Literal["mount", "unmount", "flush", "restart", "rename", "warm", "pin"]
OperationState = Literal["running", "succeeded", "failed", "cancelled"]


class Progress(Struct, frozen=True, kw_only=True):
    """How far; `total` is None where nobody knows, and may grow. `bytes_…`: the same in bytes where the unit is another."""

    done: int
    total: int | None
    unit: Literal["bytes", "files", "objects"]
    bytes_done: int | None = None
    bytes_total: int | None = None


class Operation(Struct, frozen=True, kw_only=True):
    """One piece of long work; kept for a day after it ended. `boot_id` names the daemon run that did it.

    `rename`: S3 follows the rename of a directory; those that take longer than a second are shown. `detail` has both names,
    `message` what the last try failed with while it goes on. `warm` and `pin` bring files into the block cache; `detail` has
    their paths, `message` how many files were left out.
    """

    id: str
    kind: OperationKind
    target: str
    state: OperationState
    created_at: datetime
    boot_id: str
    finished_at: datetime | None = None
    progress: Progress | None = None
    error: Problem | None = None
    detail: str = ""
    message: str = ""


class OperationList(Struct, frozen=True, kw_only=True):
    """GET /v1/operations: the operations that the caller may see, oldest first."""

    items: list[Operation]
