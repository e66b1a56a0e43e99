"""The port of what recognises repeated calls, `s3mgrd.worker.ring`: which changes it is told of, and how."""

from typing import Any, Final, NamedTuple, Protocol


class Call(NamedTuple):
    """A change as the kernel asks for it, and again of the next worker: all by which it is known again.

    Args:
        op: of `Opcode`; both kinds of rename are RENAME2.
        parent: inode of the directory, or of the object itself for what names nothing.
        name: entry in it, or empty.
        thread: the caller's thread as FUSE tells it (`RequestContext.pid`), also 0.
        target: new parent and new name of a rename.
    """

    op: int
    parent: int
    name: bytes
    thread: int
    target: tuple[int, bytes] | None = None


class Intent(Protocol):
    """A change that is about to be made: see `s3mgrd.worker.ring`."""

    @property
    def number(self) -> int:
        """Unique on this kernel connection, and growing."""

    @property
    def repeated(self) -> bool:
        """Whether a worker that died had begun this very call, under this number."""


class RepeatRing(Protocol):
    """What recognises a repeated call: the port of `s3mgrd.worker.ring.Ring`."""

    def begin(self, call: Call) -> Any:  # noqa: ANN401 - an Intent of the ring's own class, which `end` wants back
        """Note that a change is about to be made."""

    def awaited(self, call: Call) -> int | None:
        """Return the number of a call that a worker which died had begun, and that has yet to be repeated."""

    def end(self, intent: Any) -> None:  # noqa: ANN401
        """Forget it once it is answered."""

    def answered(self, intent: Any) -> None:  # noqa: ANN401
        """Forget it now: it is answered."""

    @property
    def oldest(self) -> int:
        """The smallest number that may still be asked about."""


class Opcode:
    """FUSE opcodes of the changes that must not be done twice (linux/fuse.h)."""

    SYMLINK: Final = 6
    MKNOD: Final = 8
    MKDIR: Final = 9
    UNLINK: Final = 10
    RMDIR: Final = 11
    SETXATTR: Final = 21
    REMOVEXATTR: Final = 24
    CREATE: Final = 35
    RENAME2: Final = 45
