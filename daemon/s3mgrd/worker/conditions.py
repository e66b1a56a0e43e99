"""What a bucket's store does with conditions and checksums, remembered in mount.db: so that a mount can warn as it begins.

It is believed for a day. After that the store may have been upgraded, and use finds out anew.
"""

from typing import Final

import msgspec

from s3mgrd.cache.database import MountDatabase
from s3mgrd.s3.port import Checksums, Conditions

NAME: Final = "conditions"
BELIEVED_NS: Final = 86_400 * 1_000_000_000


class Found(msgspec.Struct, frozen=True):
    """What is known of a store."""

    conditions: Conditions = Conditions()
    checksums: Checksums = Checksums()


class _Record(msgspec.Struct, frozen=True):
    found_ns: int
    found: Found


class Memory:
    """What is remembered of one store."""

    def __init__(self, database: MountDatabase) -> None:
        self._database: Final = database
        self._kept = Found()

    def recall(self, now_ns: int) -> Found:
        """Return what an earlier worker found out; nothing where that is too long ago."""
        text = self._database.get_meta(NAME)
        if text is None:
            return Found()
        try:
            record = msgspec.json.decode(text, type=_Record)
        except msgspec.MsgspecError:  # of another version
            return Found()
        if not 0 <= now_ns - record.found_ns < BELIEVED_NS:
            return Found()
        self._kept = record.found
        return record.found

    def keep(self, found: Found, now_ns: int) -> None:
        """Remember what is known now, if that is news."""
        if found != self._kept:
            self._kept = found
            record = _Record(now_ns, found)
            self._database.set_meta(NAME, msgspec.json.encode(record).decode())
