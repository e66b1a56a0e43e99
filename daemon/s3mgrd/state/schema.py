"""The tables of state.db and the migrations that make them.

Migrations are append-only: one that was released is never edited. `APPLICATION_ID` marks the file as ours;
which migrations were applied is in sqlite-utils' own table, and one there that is not here means that a newer
s3mgr wrote the file.

Times are integers, ns since the epoch, UTC. JSON columns hold wire types of `s3mgr.schema`.
"""

from typing import Final

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

APPLICATION_ID: Final = 0x53334D47  # "S3MG"

MIGRATIONS: Final = Migrations("s3mgr.state")


@MIGRATIONS()
def m001_first_tables(db: Database) -> None:
    """Create what the first release needs."""
    # mounts: what the user wants, one row a mount; stored before anything is done about it.
    #   name          identity; matches schema.NAME_PATTERN
    #   spec          JSON MountSpec without secrets; endpoint, uid, gid, allow_other are filled in
    #   generation    >= 1, +1 with every change of the wish
    #   desired       'mounted' | 'unmounted'
    #   owner_uid/gid who created it
    #   privileged    1: an administrator declared it, so its mountpoint may belong to anybody
    #   provisional   1: its creator waits; the row goes if the first attempt fails
    #   forget        1: a DELETE is under way; the row goes once nothing is left to upload
    #   may_be_dirty  1: served since the last complete drain, so its journal may hold acknowledged data.
    #                 Invariant: set, durably, before a worker serves; such a row never goes without a drain or
    #                 the word discard
    #   reason        why it is unmounted (machine.Reason); '' otherwise
    # Invariant: no two rows have the same mountpoint (kept by the domain, which also refuses nesting).
    db.execute(
        """
        create table mounts (
            name text primary key,
            spec text not null,
            generation integer not null check (generation >= 1),
            desired text not null check (desired in ('mounted', 'unmounted')),
            owner_uid integer not null,
            owner_gid integer not null,
            created_at_ns integer not null,
            privileged integer not null check (privileged in (0, 1)),
            provisional integer not null check (provisional in (0, 1)),
            forget integer not null check (forget in (0, 1)),
            may_be_dirty integer not null check (may_be_dirty in (0, 1)),
            reason text not null
        ) strict
        """
    )
    # credentials: keys that came with a request, apart from the spec so that nothing that shows a spec can show
    # them. A mount without a row is anonymous or uses what the daemon finds (profile, files, metadata services).
    # In the clear: the file is 0600 in a directory of 0700, and the daemon must read it unattended.
    #   session_token null: none
    db.execute(
        """
        create table credentials (
            mount text primary key references mounts(name) on delete cascade,
            access_key text not null,
            secret_key text not null,
            session_token text
        ) strict
        """
    )
    # operations: long work, kept for a day after it ended so that a client can ask how it went.
    #   body           JSON Operation
    #   owner_uid      who may see it besides administrators; the mount may be gone
    #   finished_at_ns null: running. Invariant: after a start, no operation of an earlier boot is running
    db.execute(
        """
        create table operations (
            id text primary key,
            body text not null,
            owner_uid integer not null,
            finished_at_ns integer
        ) strict
        """
    )
    # events: what changed, in order; only the last few thousand are kept.
    #   cursor     never used twice, also after rows are gone (autoincrement); may have gaps
    #   body       JSON Event
    #   owner_uid  who may see it besides administrators where visibility is limited; null: everybody
    db.execute(
        """
        create table events (
            cursor integer primary key autoincrement,
            body text not null,
            owner_uid integer
        ) strict
        """
    )
    # meta: single facts about this file.
    #   key 'boot_id': id of the daemon run that opened it last
    #   key 'version': version of s3mgr that opened it last
    db.execute("create table meta (key text primary key, value text not null) strict")


def newer_migrations(db: Database) -> list[str]:
    """Name the applied migrations that this version does not know."""
    # Nothing is applied to an empty database, so what is pending there is all there is.
    known = {migration.name for migration in MIGRATIONS.pending(Database(memory=True))}
    return [migration.name for migration in MIGRATIONS.applied(db) if migration.name not in known]
