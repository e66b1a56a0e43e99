"""Events: what changed, in order, resumable by cursor."""

from datetime import datetime
from typing import Any, Literal

from msgspec import Struct, field

EventType = Literal[
    "mount.added",
    "mount.changed",
    "mount.removed",
    "mount.state",
    "mount.conflict",
    "operation.changed",
    "daemon.stopping",
    "reset",
]


class Event(Struct, frozen=True, kw_only=True):
    """One event. `cursor` grows by at least one; `reset` means: too old, list again."""

    cursor: int
    type: EventType
    time: datetime
    mount: str | None = None
    data: dict[str, Any] = field(default_factory=dict)  # Any: the payload depends on the type
