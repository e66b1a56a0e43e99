"""Request bodies: bytes or a slice of a file, sent in large chunks, hashed off the event loop.

Where a call goes through aiobotocore (`s3mgrd.s3.library`), botocore takes a body that has a ``read`` method without
looking into it, and our session sends it like every other. (Handing botocore plain bytes makes a `BytesIO`, which
aiobotocore sends line by line.)

Every body goes with a checksum, in a header that the signature covers. Where the caller knows what it was when the
bytes came in (`FileSlice.checksum`), that is what S3 verifies, so that damage on the way through the local disk is found, too.
Where S3 is to verify one of another algorithm, both are computed, and the first compared here.

Payload signing: where the store is not known to verify that checksum, the signature covers the SHA-256 of the body as well; the
file is read twice for it. Otherwise the payload goes unsigned (``UNSIGNED-PAYLOAD``). Neither needs chunked signatures or
trailers, which older radosgw does not know.
"""

import hashlib
import os
from collections.abc import Iterable
from typing import Final, NoReturn, Protocol

import trio

from s3mgrd.errors import Corrupt
from s3mgrd.s3.algorithms import Algorithm, Buffer, Checksum
from s3mgrd.s3.checksums import Begun
from s3mgrd.s3.connections import Connection
from s3mgrd.s3.port import Body, FileSlice

CHUNK_BYTES: Final = 1 << 20
"""Large enough that the cost per chunk (a thread, a send) vanishes, small enough to bound memory and waiting."""
PIECE_BYTES: Final = 256 << 10
"""What goes through a buffer stays in the processor's cache."""
INLINE_BYTES: Final = 32 << 10
"""Bodies up to this size are hashed at once: changing threads costs more."""


class _Digest(Protocol):
    def update(self, data: Buffer, /) -> None: ...


class _Crc:
    """A CRC in the manner of hashlib."""

    def __init__(self, algorithm: Algorithm) -> None:
        self._algorithm: Final = algorithm
        self._value = 0

    def update(self, data: Buffer, /) -> None:
        self._value = self._algorithm.of(data, self._value)

    @property
    def checksum(self) -> Checksum:
        return Checksum(self._algorithm, self._value)


class UploadBody:
    """One body for any number of attempts.

    Args:
        body: the bytes.
        threads: where they are hashed.
        upload: the one that they are a part of.

    Attributes:
        length: in bytes.
        sha256: of the payload in hex; None: it goes unsigned.
        checksum: what S3 is told; None until `prepare` has computed it, or where it is told none.
    """

    def __init__(
        self, body: Body, threads: trio.CapacityLimiter, upload: Begun | None = None
    ) -> None:
        self._body: Final = body
        self._threads: Final = threads
        self.upload: Final = upload
        self.length: Final = body.length if isinstance(body, FileSlice) else len(body)
        self.sha256: str | None = None
        self._entered: Final = body.checksum if isinstance(body, FileSlice) else None
        self.checksum: Checksum | None = None

    async def prepare(self, *, sign: bool, algorithm: Algorithm | None) -> None:
        """Compute what goes into the request's head.

        Args:
            sign: hash the payload; again for each attempt, as the answer to a mismatch is to look again.
            algorithm: of the checksum that goes with it. Where that came with the body, nothing is read for it.

        Raises:
            Corrupt: the bytes are not those that came in.
        """
        self.sha256 = None
        if self.checksum is not None and self.checksum.algorithm is not algorithm:
            self.checksum = None
        if self._entered is not None and self._entered.algorithm is algorithm:
            self.checksum = self._entered
        if sign:
            digest = hashlib.sha256()
            await self._look(algorithm, digest)
            self.sha256 = digest.hexdigest()
        elif algorithm is not None and self.checksum is None:
            await self._look(algorithm)

    async def verify(self) -> None:
        """Read the bytes and compute their checksum. Raises `Corrupt` if they are not those that came in."""
        await self._look(None if self.checksum is None else self.checksum.algorithm)

    async def _look(self, algorithm: Algorithm | None, *digests: _Digest) -> None:
        """Let *digests* see all bytes, and compute their checksum; compare what came with them."""
        entered = self._entered
        wanted = {algorithm, None if entered is None else entered.algorithm}
        crcs = [_Crc(one) for one in wanted if one is not None]
        await self._feed(*digests, *crcs)
        for crc in crcs:
            found = crc.checksum
            if entered is not None and found.algorithm is entered.algorithm and found != entered:
                raise Corrupt(
                    "what was written has changed on the local disk since: it is kept and not uploaded",
                    hint="check the disk and the memory of this machine",
                )
            if found.algorithm is algorithm:
                self.checksum = found

    async def md5(self) -> str:
        """Return what S3 calls the ETag of an object that was written by one unencrypted PUT."""
        digest = hashlib.md5(usedforsecurity=False)
        await self._feed(digest)
        return digest.hexdigest()

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

    async def _feed(self, *digests: _Digest) -> None:
        """Let *digests* see all bytes."""
        if isinstance(self._body, bytes):
            if self.length <= INLINE_BYTES:
                _update(digests, self._body)
            else:
                await trio.to_thread.run_sync(_update, digests, self._body, limiter=self._threads)
            return
        # One thread call for many chunks, but not for gigabytes: a call cannot be cancelled.
        for start in range(0, self.length, 16 * CHUNK_BYTES):
            stop = min(self.length, start + 16 * CHUNK_BYTES)
            await trio.to_thread.run_sync(
                _update_from_file, digests, self._body, start, stop, limiter=self._threads
            )


def _too_short(missing: int) -> Corrupt:
    return Corrupt(f"the file to upload ends {missing} bytes before the part that belongs to it")


def _update(digests: Iterable[_Digest], data: Buffer) -> None:
    for digest in digests:
        digest.update(data)


def _update_from_file(digests: Iterable[_Digest], body: FileSlice, start: int, stop: int) -> None:
    # One buffer that stays in the processor's cache, rather than new memory for each piece.
    buffer = bytearray(PIECE_BYTES)
    view = memoryview(buffer)
    while start < stop:
        piece = view[: min(PIECE_BYTES, stop - start)]
        length = os.preadv(body.fd, [piece], body.offset + start)
        if not length:
            raise _too_short(stop - start)
        _update(digests, piece[:length])
        start += length
