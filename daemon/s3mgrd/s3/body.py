"""Request bodies: bytes or a slice of a file, sent in large chunks, hashed off the event loop.

Where a call goes through aiobotocore (`s3mgrd.s3.library`), botocore takes a body that has a ``read`` method without
looking into it, and our session sends it like every other. (Handing botocore plain bytes makes a `BytesIO`, which
aiobotocore sends line by line.)

Payload signing: over ``http`` the signature covers the SHA-256 of the body, because nothing else would notice a
changed one; the file is read twice for it. Over ``https`` TLS protects the bytes and the payload goes unsigned
(``UNSIGNED-PAYLOAD``). Neither needs chunked signatures or trailers, which older radosgw does not know.
"""

import hashlib
import os
from typing import Final, NoReturn, Protocol

import trio

from s3mgrd.errors import Corrupt
from s3mgrd.s3.connections import Connection
from s3mgrd.s3.port import Body, FileSlice

CHUNK_BYTES: Final = 1 << 20
"""Large enough that the cost per chunk (a thread, a send) vanishes, small enough to bound memory and waiting."""
PIECE_BYTES: Final = 256 << 10
"""What goes through a buffer stays in the processor's cache."""
INLINE_BYTES: Final = 32 << 10
"""Bodies up to this size are hashed at once: changing threads costs more."""


class _Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class UploadBody:
    """One body for any number of attempts. `sha256` is None until `sign` was called: the payload is unsigned."""

    def __init__(self, body: Body, threads: trio.CapacityLimiter) -> None:
        self._body: Final = body
        self._threads: Final = threads
        self.length: Final = body.length if isinstance(body, FileSlice) else len(body)
        self.sha256: str | None = None

    async def sign(self) -> None:
        """Hash what is about to be sent; again for each attempt, as the answer to a mismatch is to look again."""
        self.sha256 = await self._digest("sha256")

    async def md5(self) -> str:
        """Return what S3 calls the ETag of an object that was written by one unencrypted PUT."""
        return await self._digest("md5")

    @property
    def inline(self) -> bytes | None:
        """The body, where it is so small that it is best sent together with the request's head."""
        if isinstance(self._body, bytes) and self.length <= INLINE_BYTES:
            return self._body
        return None

    async def send(self, connection: Connection) -> None:
        """Send the body.

        A file goes straight from the page cache into the socket where that is possible: what is uploaded was written or
        hashed a moment ago, so no disk is waited for.

        Raises:
            Corrupt: the file ends before the slice does.
        """
        body = self._body
        if isinstance(body, bytes):
            view = memoryview(body)
            for start in range(0, self.length, CHUNK_BYTES):
                await connection.send(view[start : start + CHUNK_BYTES])
                await trio.lowlevel.checkpoint()
        elif connection.sends_files:
            sent = await connection.send_file(body.fd, body.offset, self.length)
            if sent < self.length:
                raise _too_short(self.length - sent)
        else:
            await self._send_pieces(connection, body)

    async def _send_pieces(self, connection: Connection, body: FileSlice) -> None:
        """Send a file by way of one small buffer: through TLS."""
        view = memoryview(bytearray(min(PIECE_BYTES, self.length)))
        sent = 0
        while sent < self.length:
            piece = view[: self.length - sent]
            position = body.offset + sent
            try:
                length = os.preadv(body.fd, [piece], position, os.RWF_NOWAIT)
            except OSError:
                # It is not in memory, or this file system cannot tell.
                length = await trio.to_thread.run_sync(
                    os.preadv, body.fd, [piece], position, limiter=self._threads
                )
            if not length:
                raise _too_short(self.length - sent)
            await connection.send(piece[:length])
            await trio.lowlevel.checkpoint()
            sent += length

    def read(self, size: int = -1) -> NoReturn:
        """Mark this object as file-like for botocore, which must never read it: that would block the event loop."""
        raise NotImplementedError

    async def _digest(self, algorithm: str) -> str:
        digest: _Hash = hashlib.new(algorithm, usedforsecurity=algorithm != "md5")
        if isinstance(self._body, bytes):
            if self.length <= INLINE_BYTES:
                digest.update(self._body)
            else:
                await trio.to_thread.run_sync(digest.update, self._body, limiter=self._threads)
            return digest.hexdigest()
        # One thread call for many chunks, but not for gigabytes: a call cannot be cancelled.
        for start in range(0, self.length, 16 * CHUNK_BYTES):
            stop = min(self.length, start + 16 * CHUNK_BYTES)
            await trio.to_thread.run_sync(
                _hash_slice, self._body, start, stop, digest, limiter=self._threads
            )
        return digest.hexdigest()


def _too_short(missing: int) -> Corrupt:
    return Corrupt(f"the file to upload ends {missing} bytes before the part that belongs to it")


def _hash_slice(body: FileSlice, start: int, stop: int, digest: _Hash) -> None:
    # One buffer that stays in the processor's cache, rather than new memory for each piece.
    buffer = bytearray(PIECE_BYTES)
    view = memoryview(buffer)
    while start < stop:
        piece = view[: min(PIECE_BYTES, stop - start)]
        length = os.preadv(body.fd, [piece], body.offset + start)
        if not length:
            raise _too_short(stop - start)
        digest.update(piece[:length])
        start += length
