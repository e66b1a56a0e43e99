"""Where the contents of renamed directories are in S3, and what else changes when they are on their way.

The rules that `s3mgrd.fs.following.move` (which copies), the tree and the uploads share. A directory with `remote_prefix` has its
contents there; its row in `moves` says where they are being copied to. Everything here is a step of the caller's
transaction, without a checkpoint.

- Renaming a directory that is on its way gives its move another target; renaming it back takes the move away. The copies
  made so far become pending deletes.
- A name that is removed inside takes its copy along (`remove_object`); what is uploaded to where a copy lies takes its
  place (`forget_copy`). So changes inside need not wait.
- Only what a move still has to copy is in nobody's way: new names are not made there (`occupant`).
"""

import secrets
from collections.abc import Iterable
from typing import Final

import trio

from s3mgrd.cache.nodes import Inode, Node
from s3mgrd.fs.volume import Volume
from s3mgrd.journal.moves import CopiedRow, MoveRow

PARKED: Final = ".s3mgr-"
"""Part of the key of what is out of the way for a while: its own place is taken by another."""


def parked_name(key: str) -> str:
    """Return a key beside *key* (a prefix for one) that nothing else has."""
    suffix = PARKED + secrets.token_hex(8)
    return f"{key[:-1]}{suffix}/" if key.endswith("/") else key + suffix


def natural_key(volume: Volume, node: Node) -> str:
    """Return where S3 has what lies under a node's name unless its row says otherwise; a prefix for directories."""
    key = volume.prefix_in_s3(volume.node(node.parent)) + (node.name or "")
    return key + "/" if node.is_directory else key


def remote_key(volume: Volume, node: Node, key: str) -> str | None:
    """Return what a file's row must say of its object, which lies at *key*; None: it is where its path says."""
    is_home = volume.wanted_key(node) == key and natural_key(volume, node) == key
    return None if is_home else key


def relocate(volume: Volume, directory: Inode, lies_at: str) -> None:
    """Plan how S3 follows a directory that just got another path and whose contents lie at the prefix *lies_at*."""
    node = volume.node(directory)
    row = volume.moves.get(directory)
    if lies_at == natural_key(volume, node):
        volume.nodes.update(directory, remote_prefix=None)
        if row is not None:
            abandon(volume, row)
    else:
        volume.nodes.update(directory, remote_prefix=lies_at)
        target = volume.wanted_key(node)
        if row is None:
            name = node.name or ""
            put_move(volume, MoveRow(node.id, lies_at, target, node.parent, name, volume.now_ns()))
            _leave_outer(volume, directory, lies_at)
        else:
            retarget(volume, row, target)


def retarget_below(volume: Volume, directory: Inode) -> None:
    """Give the moves of directories inside *directory*, which just got another path, their new targets."""
    for row in volume.moves.all() if volume.moving else ():
        node = volume.nodes.get(row.inode)
        if row.inode != directory and node is not None and volume.is_below(node, directory):
            retarget(volume, row, volume.wanted_key(node))


def put_move(volume: Volume, row: MoveRow) -> None:
    """Note a move to be made; who waits for an earlier one of the same directory looks again."""
    volume.moves.put(row)
    settle(volume, row.inode)
    volume.moving[row.inode] = trio.Event()


def retarget(volume: Volume, row: MoveRow, target: str) -> None:
    """Have a move copy to *target* instead."""
    if row.target != target:
        _drop_copies(volume, row, volume.moves.copied(row.inode))
        volume.moves.put(row._replace(target=target))


def abandon(volume: Volume, row: MoveRow) -> None:
    """Take a move away: its directory is where its contents are, or gone."""
    _drop_copies(volume, row, volume.moves.copied(row.inode))
    volume.moves.drop(row.inode)
    settle(volume, row.inode)


def settle(volume: Volume, inode: int) -> None:
    """Wake who waits for the move of a directory."""
    event = volume.moving.pop(inode, None)
    if event is not None:
        event.set()


def occupant(volume: Volume, key: str, *, is_file: bool = False) -> trio.Event | None:
    """Return what to wait for before anything new may be at *key*: the place still holds what another move copies.

    What *is_file* has nothing below it, so that only a move from around it is in its way.
    """
    for row in volume.moves.all() if volume.moving else ():
        is_inside = f"{key}/".startswith(row.source) and (not is_file or key.startswith(row.source))
        if is_inside or (not is_file and row.source.startswith(f"{key}/")):
            return volume.moving.get(row.inode)
    return None


def is_others(rows: Iterable[MoveRow], row: MoveRow, key: str) -> bool:
    """Whether *key*, below the source of the move *row*, is that of another of *rows*, of a directory inside."""
    return any(
        key.startswith(other.source) and other.source.startswith(row.source)
        for other in rows
        if other.inode != row.inode
    )


def remove_object(volume: Volume, key: str, *, etag: str | None, holder: int | None) -> None:
    """Note that *key* shall vanish from S3, and the copy of it that a move made."""
    now_ns = volume.now_ns()
    volume.journal.add_delete(key, etag=etag, holder=holder, now_ns=now_ns)
    for row in volume.moves.all() if volume.moving else ():
        copied = volume.moves.copied_key(row.inode, key) if key.startswith(row.source) else None
        if copied is not None:
            _drop_copies(volume, row, [copied])


def forget_copy(volume: Volume, key: str, *, by: Node) -> None:
    """Note that the copy which a move made at *key* is replaced by what *by* has, or about to be.

    Until it is, the row of a file whose own copy that is says where its object lies: the move may end before, and would leave the
    object there for ever.
    """
    for row in volume.moves.all() if volume.moving else ():
        source = row.source + key[len(row.target) :] if key.startswith(row.target) else None
        if source is None or volume.moves.copied_key(row.inode, source) is None:
            continue
        volume.moves.drop_copied(row.inode, [source])
        if by.etag is not None and by.remote_key is None and volume.key_in_s3(by) == source:
            volume.nodes.update(by.id, remote_key=source)


def _leave_outer(volume: Volume, directory: Inode, lies_at: str) -> None:
    """A directory that leaves one which is on its way goes its own way: the copies of its contents are not wanted there."""
    for outer in volume.moves.all():
        if outer.inode != directory and lies_at.startswith(outer.source):
            _drop_copies(volume, outer, volume.moves.copied_below(outer.inode, lies_at))


def _drop_copies(volume: Volume, row: MoveRow, copied: list[CopiedRow]) -> None:
    """Have copies deleted that nobody wants where they are, and forget that they were made."""
    now_ns = volume.now_ns()
    for copy in copied:
        target = row.target_of(copy.key)
        volume.journal.add_delete(target, etag=copy.new_etag, holder=None, now_ns=now_ns)
    volume.moves.drop_copied(row.inode, [copy.key for copy in copied])
