"""The schema of mount.db, as append-only migrations.

One file per mount, one process that writes it. Times are ns since the epoch (UTC); keys and names are text
(UTF-8), compared byte by byte; sizes are bytes.

inodes      One row per inode number the kernel was ever told, and per name that a listing showed.
    id               The kernel's inode number. AUTOINCREMENT: never used again, so it means the same in the next
                     worker. 1 is the root.
    parent, name     Where it is. name NULL: detached; no name leads here (unlinked, or replaced by another
                     version), but the kernel or an open file may still hold it.
    kind             1 file, 2 directory, 3 symbolic link, 4 special (FIFO, socket, device).
    size             Of the version in S3, or of the staged file at its last flush.
    mtime_ns, ...    As shown. atime_ns, ctime_ns NULL: as mtime_ns.
    mode             Permission bits without type; NULL: the mount's file_mode or dir_mode.
    uid, gid         NULL: the mount's.
    rdev             Device number of a special file.
    target           Of a symbolic link; NULL: not read yet.
    special          st_mode's type bits of kind 4, otherwise 0.
    etag             The version that this inode is; NULL: S3 has nothing for it. One inode is one version of one key,
                     but for versions that this mount wrote itself through this inode.
    remote_key       Where S3 has that version; NULL: at the key that its path spells with remote_prefix of its
                     directory. Not NULL and different from the path: the object has yet to be moved.
    remote_mtime_ns  S3's LastModified of that version, or, until a listing tells, when S3 acknowledged it, which is no
                     earlier; NULL: not known.
    attributes_known 1: mode, owner and times are those of the object's metadata (or known to be absent there).
    attributes_dirty 1: S3's metadata is older than this row.
    seen_ns          When S3 was last asked for this name alone, or the row was made here.
    listed_ns        Directories: when the last complete listing began; 0 never, 1 (STALE_NS): some time, and it is
                     not to be trusted.
    marker           Directories: 0 no marker object known, 1 it exists, 2 it shall exist and does not yet.
    remote_prefix    Directories: where S3 has the contents, ending in "/"; NULL: where the path says. Not NULL: a
                     rename that S3 has yet to follow.
    storage_class    Of a version that cannot be read before it is restored: the archive's class. NULL: it can be read.
xattrs      Extended attributes of inodes. name: with its "user."; value: bytes. Of a version in S3 they are those of its
            metadata where attributes_known is 1, and newer than that where attributes_dirty is 1.
described   What S3 keeps with the version that an inode is, besides mode, owner, times and xattrs: it goes along with each
            copy. No row: not known.
descriptions  The texts of described, each once (thousands of objects have the same type and encryption): JSON, written and
            read by fs/descriptions.py. Gone with the last row that refers to it.
hidden      Keys that cannot be shown, by directory, and why; they keep the directory from being empty.
staged      One row per inode that has a staging file (journal/staging.py).
    dirty            1: S3 lacks what the staging file has.
    base_etag        The version that unwritten ranges come from; NULL: they are zeros.
    base_size        Size of the base version, before any truncation that the staging file's log tells of.
    condition        What the upload must find: "match" base_etag, "absent", or "always".
    conflict         1: never tried again by itself. With a name: S3 takes no such file. Without: another writer was first,
                     and the data is (or, once discarded, was) a conflict copy; who has it open goes on with it alone.
    since_ns         Since when S3 lacks something of it.
    error, tries     The last failure, and how many there were; error NULL: none.
    retry_ns         From when on the upload is due, uploads that are due going in this order; NULL: somebody still writes.
                     0 and less: it was hurried, the last one is the least.
conflicts   Conflict copies: what an upload that another writer outran was to write. The data are the staging files of that
            inode, and its row in staged stays with it; no other inode ever gets the number, which is the copy's id.
    path             Where it was to be when it lost, relative to the mount.
    reason           What the other had done: "replaced" the object, "removed" it, or made one where none may "exist";
                     "recovered": mount.db was lost, and with it what the data was to become (fs/writing/recovery.py).
    winner_etag      What lay there then; NULL: nothing, or it could not be asked.
    missing          Bytes of the version it started from that nobody has any more; they read as zeros when it is restored.
    lost_ns          When it lost.
uploads     A multipart upload begun for a staged file. grows 1: it was begun while the file was being written, in parts that
            grow with their offset (fs/writing/parts.py); only those in parts are of the content as it is.
    size             Of the content that is to be completed, which has not changed since; 0: it is still being written.
    metadata         Of one that grows: the attributes it was begun with, JSON. Of others: how the file was cut.
parts       Parts that S3 has of an upload that grows. One whose bytes change is dropped before they do.
parked      Objects that hold bytes of staged files for which there is no room on the disk (journal/staging.py says which bytes). A
            row of deletes, held by the inode, belongs to each: it hides the key, and the row here keeps it from being deleted.
abandoned   Multipart uploads that nobody will complete; S3 keeps their parts, and asks money for them, until told.
beginnings  One row per request to begin a multipart upload, written before it is sent and dropped with the note of its answer. One
            that is left tells of an upload that may be there and that nobody knows (fs/writing/beginnings.py).
    until_ns         When it was over; NULL: it is being made.
copies      Multipart uploads of copies that are under way. Those of a worker that died are abandoned: the copy begins anew.
deletes     Keys that shall vanish from S3. holder: an inode that may still be open; the key stays until it is
            forgotten. etag: the version that was deleted here.
moves       A directory rename that S3 follows: copy everything below source to target, then delete it there.
moved       Keys below a move's source that are copied: the version copied and the version it became.
writes      One row per request that may be changing a key now, written before it is sent and dropped by the transaction
            that takes note of its success. A row that is left tells of a request whose outcome nobody saw: the worker
            died, or no answer came. Then what lies at the key may be ours though nothing else says so (fs/following/strays.py).
    size, mtime      What was sent: size, and the metadata's mtime; mtime NULL: it was sent without, or copied.
    etag             Of what was copied; NULL: it was sent.
calls       Changes made through the kernel that may not be answered yet: number is that of the repeat ring
            (worker/ring.py), written in the change's own transaction, so that a repeated request is answered and
            not done again. inode: what it made, or 0.
meta        Facts about the file: connection_id (whose inodes the kernel may hold), bucket identity, and uploads_paused (1:
            uploads in the background are held back until the user says otherwise).
"""

from sqlite_utils import Database, Migrations

migrations = Migrations("s3mgr-mount")

SCHEMA_VERSION = 11
APPLICATION_ID = 0x73336D67  # "s3mg"


_TABLES = """
CREATE TABLE inodes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    parent INTEGER NOT NULL,
    name TEXT,
    kind INTEGER NOT NULL,
    size INTEGER NOT NULL DEFAULT 0,
    mtime_ns INTEGER NOT NULL,
    atime_ns INTEGER,
    ctime_ns INTEGER,
    mode INTEGER,
    uid INTEGER,
    gid INTEGER,
    rdev INTEGER NOT NULL DEFAULT 0,
    target TEXT,
    special INTEGER NOT NULL DEFAULT 0,
    etag TEXT,
    remote_key TEXT,
    remote_mtime_ns INTEGER,
    attributes_known INTEGER NOT NULL DEFAULT 0,
    attributes_dirty INTEGER NOT NULL DEFAULT 0,
    seen_ns INTEGER NOT NULL DEFAULT 0,
    listed_ns INTEGER NOT NULL DEFAULT 0,
    marker INTEGER NOT NULL DEFAULT 0,
    remote_prefix TEXT
);
CREATE UNIQUE INDEX inodes_by_name ON inodes (parent, name) WHERE name IS NOT NULL;
CREATE INDEX inodes_by_parent ON inodes (parent) WHERE name IS NOT NULL;
CREATE INDEX inodes_detached ON inodes (id) WHERE name IS NULL;
CREATE INDEX inodes_by_remote_key ON inodes (remote_key) WHERE remote_key IS NOT NULL;
CREATE INDEX inodes_attributes_dirty ON inodes (id) WHERE attributes_dirty = 1;
CREATE INDEX inodes_marker_wanted ON inodes (id) WHERE marker = 2;
CREATE TABLE hidden (
    directory INTEGER NOT NULL,
    key TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (directory, key)
) WITHOUT ROWID;
CREATE TABLE staged (
    inode INTEGER PRIMARY KEY,
    dirty INTEGER NOT NULL,
    base_etag TEXT,
    base_size INTEGER NOT NULL,
    condition TEXT NOT NULL,
    conflict INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    since_ns INTEGER NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    retry_ns INTEGER
);
CREATE TABLE uploads (
    inode INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    upload_id TEXT NOT NULL,
    part_size INTEGER NOT NULL,
    size INTEGER NOT NULL
);
CREATE TABLE deletes (
    key TEXT PRIMARY KEY,
    etag TEXT,
    holder INTEGER,
    since_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE moves (
    inode INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    target TEXT NOT NULL,
    source_parent INTEGER NOT NULL,
    source_name TEXT NOT NULL,
    since_ns INTEGER NOT NULL
);
CREATE TABLE moved (
    inode INTEGER NOT NULL,
    key TEXT NOT NULL,
    etag TEXT NOT NULL,
    new_etag TEXT NOT NULL,
    PRIMARY KEY (inode, key)
) WITHOUT ROWID;
CREATE TABLE calls (
    number INTEGER PRIMARY KEY,
    inode INTEGER NOT NULL
);
CREATE TABLE meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
"""


@migrations()
def create(db: Database) -> None:
    """Make the first schema."""
    for statement in _TABLES.split(";"):  # executescript would commit before it begins
        if statement.strip():
            db.conn.execute(statement)


@migrations()
def remember_writes(db: Database) -> None:
    """Add the tables of requests whose outcome is not known, and of uploads that nobody will complete."""
    db.conn.execute(
        "CREATE TABLE abandoned (upload_id TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID"
    )
    db.conn.execute(
        """
        CREATE TABLE writes (
            id INTEGER PRIMARY KEY,
            key TEXT NOT NULL,
            size INTEGER NOT NULL,
            mtime TEXT,
            etag TEXT
        )
        """
    )
    db.conn.execute("CREATE INDEX writes_by_key ON writes (key)")


@migrations()
def keep_conflicts(db: Database) -> None:
    """Add the table of conflict copies."""
    db.conn.execute(
        """
        CREATE TABLE conflicts (
            inode INTEGER PRIMARY KEY,
            path TEXT NOT NULL,
            reason TEXT NOT NULL,
            winner_etag TEXT,
            missing INTEGER NOT NULL,
            lost_ns INTEGER NOT NULL
        )
        """
    )


@migrations()
def keep_extras(db: Database) -> None:
    """Add the tables of extended attributes and of what S3 keeps with a version; what was learned without them is asked again."""
    db.conn.execute(
        """
        CREATE TABLE xattrs (
            inode INTEGER NOT NULL,
            name TEXT NOT NULL,
            value BLOB NOT NULL,
            PRIMARY KEY (inode, name)
        ) WITHOUT ROWID
        """
    )
    db.conn.execute("CREATE TABLE descriptions (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)")
    db.conn.execute(
        "CREATE TABLE described (inode INTEGER PRIMARY KEY, description INTEGER NOT NULL)"
    )
    db.conn.execute("CREATE INDEX described_by_description ON described (description)")
    db.conn.execute(
        """
        CREATE TRIGGER inode_gone AFTER DELETE ON inodes BEGIN
            DELETE FROM xattrs WHERE inode = OLD.id;
            DELETE FROM described WHERE inode = OLD.id;
        END
        """
    )
    db.conn.execute(
        """
        CREATE TRIGGER description_unused AFTER DELETE ON described BEGIN
            DELETE FROM descriptions WHERE id = OLD.description
                AND NOT EXISTS (SELECT 1 FROM described WHERE description = OLD.description);
        END
        """
    )
    db.conn.execute(
        "UPDATE inodes SET attributes_known = 0 WHERE attributes_dirty = 0 AND id > 1 "
        "AND (etag IS NOT NULL OR kind = 2)"
    )


@migrations()
def order_directories(db: Database) -> None:
    """Find directories by when they were listed, for pruning; by where they are, and what S3 lacks, for looking into trees."""
    db.conn.execute("CREATE INDEX inodes_by_listing ON inodes (listed_ns) WHERE kind = 2")
    db.conn.execute(
        "CREATE INDEX inodes_directories ON inodes (parent) WHERE kind = 2 AND name IS NOT NULL"
    )
    db.conn.execute(
        "CREATE INDEX inodes_ours ON inodes (parent) WHERE name IS NOT NULL AND (remote_key IS NOT NULL "
        "OR remote_prefix IS NOT NULL OR marker = 2 OR (kind <> 2 AND etag IS NULL))"
    )


@migrations()
def find_due_uploads(db: Database) -> None:
    """Find the uploads that are due without looking at all of them."""
    db.conn.execute("CREATE INDEX staged_due ON staged (retry_ns) WHERE dirty = 1 AND conflict = 0")


@migrations()
def count_what_is_left(db: Database) -> None:
    """Count what S3 lacks without looking at all of it: the status does twice a second."""
    db.conn.execute("CREATE INDEX staged_clean ON staged (inode) WHERE dirty = 0")
    db.conn.execute("CREATE INDEX deletes_held ON deletes (holder) WHERE holder IS NOT NULL")
    db.conn.execute(
        "CREATE INDEX inodes_misplaced ON inodes (id) WHERE remote_key IS NOT NULL AND name IS NOT NULL"
    )


@migrations()
def know_archives(db: Database) -> None:
    """Remember which versions lie in an archive; what was listed without is listed again."""
    db.conn.execute("ALTER TABLE inodes ADD COLUMN storage_class TEXT")
    db.conn.execute("UPDATE inodes SET listed_ns = 1 WHERE listed_ns > 1")
    db.conn.execute("UPDATE inodes SET seen_ns = 0 WHERE seen_ns > 0")


@migrations()
def upload_while_written(db: Database) -> None:
    """Let uploads begin while their file is being written: note which parts are good."""
    db.conn.execute("ALTER TABLE uploads ADD COLUMN grows INTEGER NOT NULL DEFAULT 0")
    db.conn.execute("ALTER TABLE uploads ADD COLUMN metadata TEXT")
    db.conn.execute(
        """
        CREATE TABLE parts (
            inode INTEGER NOT NULL,
            number INTEGER NOT NULL,
            etag TEXT NOT NULL,
            size INTEGER NOT NULL,
            PRIMARY KEY (inode, number)
        ) WITHOUT ROWID
        """
    )
    db.conn.execute(
        """
        CREATE TRIGGER upload_gone AFTER DELETE ON uploads BEGIN
            DELETE FROM parts WHERE inode = OLD.inode;
        END
        """
    )


@migrations()
def park_bytes(db: Database) -> None:
    """Let bytes that S3 is to get, and the disk has no room for, wait in S3."""
    db.conn.execute(
        "CREATE TABLE parked (key TEXT PRIMARY KEY, inode INTEGER NOT NULL) WITHOUT ROWID"
    )
    db.conn.execute("CREATE INDEX parked_by_inode ON parked (inode)")
    db.conn.execute(
        """
        CREATE TRIGGER parked_gone AFTER DELETE ON parked BEGIN
            UPDATE deletes SET holder = NULL WHERE key = OLD.key;
        END
        """
    )


@migrations()
def note_beginnings(db: Database) -> None:
    """Note which uploads S3 is asked to begin, for those whose answer nobody sees."""
    db.conn.execute(
        """
        CREATE TABLE beginnings (
            number INTEGER PRIMARY KEY,
            key TEXT NOT NULL,
            since_ns INTEGER NOT NULL,
            until_ns INTEGER
        )
        """
    )


@migrations()
def note_copies(db: Database) -> None:
    """Note the uploads of copies by parts, for those whose worker dies."""
    db.conn.execute(
        "CREATE TABLE copies (upload_id TEXT PRIMARY KEY, key TEXT NOT NULL) WITHOUT ROWID"
    )
