"""The repeat ring: how a change that was made but not answered is recognised when the kernel sends it again.

The problem. A worker dies between committing a mkdir and answering it. The kernel sends the request to the next
worker, which must answer success, not EEXIST. A *new* mkdir of the same name must get EEXIST.

What is known for certain. `worker.session` reads, before libfuse does, which requests the kernel sends once more
(it marks them; libfuse does not show the mark). So a repeat is never guessed from who called last: only a request
that the dead worker had read and not answered can be one. What the mark does not tell is how far the dead worker got.

The design: intent first, and the commit carries its number.

1. `begin` writes an intent (operation, parent, name, thread → a number) to this memory, which outlives workers,
   *before* anything is changed.
2. The file system stores the number in the same SQLite transaction as the change. That transaction alone decides
   whether the change was made; nothing else has to be atomic with it.
3. `end` is called when the handler is about to return. The slot is freed in the next turn of the loop: libfuse has
   written the answer by then, because pyfuse3 answers without a checkpoint after the handler returned.
4. The next worker is told which requests come again (`resume`). For one of these, `begin` returns the former intent
   itself, with the former number. The file system looks that up: stored means made, so it answers with what is
   there; not stored means that nothing happened, so it does it now. The number stays the same however often workers
   die on the way, so the answer does too.

5. A caller may be killed while its call waits in the kernel to be read again; then that never comes. But when the
   kernel is asked, it moves all that comes again to the head of its queue before it returns (fuse_resend in
   fs/fuse/dev.c). So `worker.receiving`, which reads alone, tells what of it was read (`arrived`), and that all was
   (`all_arrived`) once it finds nothing to read. Then the intents of calls that were not among it are forgotten: an
   equal call, which is a new one, must not be taken for the repetition, and no number is kept in mount.db for the dead.
   The first request without the mark would not do for that, though the kernel has none before the marked ones: the
   INIT that `worker.session` makes is read before all, and has no mark.

The alternative, a record in the same transaction without this memory, cannot tell an answered change from an
unanswered one, and would cost a second transaction per change to say so.

Several callers may share a thread number: 0 stands for every thread outside of the daemon's pid namespace. Equal
requests of equal threads are therefore counted, not only remembered. Which of two concurrent, equal calls gets the
success that one of them earned is as undefined as it is without a crash.

Memory layout (native byte order, written by one process at a time): a header, then `CAPACITY` slots. A slot is
written body first and number last; 0 means free. kill -9 between the two stores leaves the slot free, and the change
not begun. Plain memory, no system calls: microseconds per change.
"""

import hashlib
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import trio

from s3mgrd.errors import Corrupt
from s3mgrd.fs.kernel.repeats import Call
from s3mgrd.fuse.abi import Resent
from s3mgrd.worker.protocol import RING_BYTES

MAGIC: Final = b"s3mgrrg1"
HEADER: Final = struct.Struct("=8sQ")
"""Magic; the last number given out."""
NEXT: Final = struct.Struct("=Q")
NEXT_OFFSET: Final = 8
SLOT: Final = struct.Struct("=Q24s")
"""Number (0: free); digest of the call."""
SLOTS_OFFSET: Final = 64
DIGEST_BYTES: Final = 24
CAPACITY: Final = (RING_BYTES - SLOTS_OFFSET) // SLOT.size

_CALL: Final = struct.Struct("=IQIQI")


class Intent(NamedTuple):
    """A change that is about to be made.

    Attributes:
        number: unique on this kernel connection; store it in the transaction that makes the change.
        repeated: a worker that died had begun this very call. If the number is stored, the change is made already.
        slot: of this memory.
    """

    number: int
    repeated: bool
    slot: int


def call_digest(call: Call | Resent) -> bytes:
    """Name a call by what the kernel repeats of it."""
    new_parent, new_name = call.target or (0, b"")
    packed = _CALL.pack(call.op, call.parent, call.thread, new_parent, len(call.name))
    return hashlib.blake2b(packed + call.name + new_name, digest_size=DIGEST_BYTES).digest()


class Ring:
    """The changes under way on one kernel connection. All methods are synchronous, without a checkpoint.

    Args:
        fd: the connection's memfd of `RING_BYTES`; stays the caller's.

    Raises:
        Corrupt: it is not such a memory.
    """

    def __init__(self, fd: int) -> None:
        if os.fstat(fd).st_size != RING_BYTES:
            raise Corrupt(f"the repeat ring is not {RING_BYTES} bytes long")
        self._map = mmap.mmap(fd, RING_BYTES)
        magic, last = HEADER.unpack_from(self._map)
        if magic == bytes(len(MAGIC)):
            HEADER.pack_into(self._map, 0, MAGIC, 0)
        elif magic != MAGIC:
            raise Corrupt("the repeat ring was written by another version")
        self._last: int = last
        self._used: dict[int, int] = {}  # slot → number
        self._inherited: dict[bytes, list[int]] = {}  # call → its slots, oldest first
        self._arrived: dict[bytes, int] = {}  # call → how many were read again and have not begun
        self._free: list[int] = []
        self._ended: list[int] = []
        self._load()

    def _load(self) -> None:
        """Read what the former worker left."""
        found = []
        for slot in range(CAPACITY):
            number, digest = SLOT.unpack_from(self._map, SLOTS_OFFSET + slot * SLOT.size)
            if number:
                found.append((number, slot, digest))
                self._used[slot] = number
                self._last = max(self._last, number)
            else:
                self._free.append(slot)
        for _, slot, digest in sorted(found):
            self._inherited.setdefault(digest, []).append(slot)

    def resume(self, resent: Iterable[Resent]) -> None:
        """Keep of the former worker's intents those whose calls the kernel sends again; forget the others.

        An intent whose call does not come again was answered, or its caller was killed. Of equal ones the newest
        are kept: a thread's earlier call was answered before it made the next.
        """
        expected: dict[bytes, int] = {}
        for call in resent:
            digest = call_digest(call)
            expected[digest] = expected.get(digest, 0) + 1
        self._keep_inherited(expected)

    def arrived(self, call: Resent) -> None:
        """Note that a call which comes again was read; it may take a while until it begins."""
        digest = call_digest(call)
        if digest in self._inherited:
            self._arrived[digest] = self._arrived.get(digest, 0) + 1

    def all_arrived(self) -> None:
        """Forget the former worker's intents whose calls have not `arrived`: their callers are dead."""
        self._keep_inherited(self._arrived)
        self._arrived.clear()

    def _keep_inherited(self, expected: Mapping[bytes, int]) -> None:
        for digest, slots in list(self._inherited.items()):
            keep = expected.get(digest, 0)
            surplus = max(0, len(slots) - keep)
            for slot in slots[:surplus]:
                self._release(slot)
            del slots[:surplus]
            if not slots:
                del self._inherited[digest]

    def begin(self, call: Call) -> Intent:
        """Note that a change is about to be made; call it before the first write of any kind."""
        digest = call_digest(call)
        inherited = self._inherited.get(digest)
        if inherited:
            slot = inherited.pop(0)
            if not inherited:
                del self._inherited[digest]
            if self._arrived.get(digest):
                self._arrived[digest] -= 1
            return Intent(self._used[slot], repeated=True, slot=slot)
        if not self._free:
            # Cannot happen while CAPACITY exceeds the session's tasks; see `session.MAX_TASKS`.
            raise RuntimeError("more changes under way than the repeat ring has room for")
        self._last += 1
        NEXT.pack_into(self._map, NEXT_OFFSET, self._last)
        slot = self._free.pop()
        offset = SLOTS_OFFSET + slot * SLOT.size
        self._map[offset + NEXT.size : offset + SLOT.size] = digest
        NEXT.pack_into(self._map, offset, self._last)
        self._used[slot] = self._last
        return Intent(self._last, repeated=False, slot=slot)

    def awaited(self, call: Call) -> int | None:
        """Return the number of a call of the dead worker that has yet to be repeated."""
        if not self._inherited:
            return None
        slots = self._inherited.get(call_digest(call))
        return self._used[slots[0]] if slots else None

    def end(self, intent: Intent) -> None:
        """Forget *intent* once the answer is written; the handler returns next, without a checkpoint."""
        if not self._ended:
            trio.lowlevel.current_trio_token().run_sync_soon(self._settle)
        self._ended.append(intent.slot)

    def answered(self, intent: Intent) -> None:
        """Forget *intent* now: the answer is written."""
        self._release(intent.slot)

    def _settle(self) -> None:
        if self._map.closed:
            return
        for slot in self._ended:
            self._release(slot)
        self._ended.clear()

    def _release(self, slot: int) -> None:
        NEXT.pack_into(self._map, SLOTS_OFFSET + slot * SLOT.size, 0)
        del self._used[slot]
        self._free.append(slot)

    @property
    def oldest(self) -> int:
        """The smallest number that may still be asked about; what is stored below it can be deleted."""
        return min(self._used.values(), default=self._last + 1)

    def close(self) -> None:
        """Unmap the memory."""
        self._map.close()
