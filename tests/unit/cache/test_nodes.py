"""Rows of inodes: what is remembered of them is never out of date."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from s3mgrd.cache.database import MountDatabase, open_database
from s3mgrd.cache.nodes import ROOT, Inode, Kind, NodeTable
from s3mgrd.journal.tables import Journal


@pytest.fixture
def database(tmp_path: Path) -> Iterator[MountDatabase]:
    opened, _ = open_database(tmp_path / "mount.db")
    yield opened
    opened.close()


def test_a_row_is_read_again_after_every_change(database: MountDatabase) -> None:
    """Also one that was made past the table, as the journal does."""
    nodes = NodeTable(database)
    inode = nodes.insert(ROOT, "a", Kind.FILE, 1)
    before = nodes.get(inode)
    assert before is not None
    assert nodes.get(inode) is before
    nodes.update(inode, size=5)
    with database.transaction() as db:
        db.execute("UPDATE inodes SET mtime_ns = 2")
    after = nodes.get(inode)
    assert after is not None
    assert (after.size, after.mtime_ns) == (5, 2)
    nodes.drop(inode)
    assert nodes.get(inode) is None


def test_a_row_is_read_again_after_a_rollback(database: MountDatabase) -> None:
    """What was read inside a transaction that failed never was."""
    nodes = NodeTable(database)
    inode = nodes.insert(ROOT, "a", Kind.FILE, 1)

    def change_and_fail() -> None:
        with database.transaction():
            nodes.update(inode, size=5)
            changed = nodes.get(inode)
            assert changed is not None
            assert changed.size == 5
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change_and_fail()
    after = nodes.get(inode)
    assert after is not None
    assert after.size == 0


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        (Kind.FILE, {}),
        (Kind.FILE, {"etag": "1", "remote_key": "elsewhere"}),
        (Kind.SYMLINK, {"target": "a"}),
        (Kind.DIRECTORY, {"marker": 2}),
        (Kind.DIRECTORY, {"remote_prefix": "elsewhere/"}),
    ],
)
def test_what_s3_lacks_is_found_however_deep(
    database: MountDatabase, kind: Kind, columns: dict[str, object]
) -> None:
    """Until it has it, or until no name leads there; and not beside the directory that was asked of."""
    nodes = NodeTable(database)
    top = nodes.insert(ROOT, "top", Kind.DIRECTORY, 1)
    beside = nodes.insert(ROOT, "beside", Kind.DIRECTORY, 1)
    deep = nodes.insert(nodes.insert(top, "a", Kind.DIRECTORY, 1), "b", Kind.DIRECTORY, 1)
    nodes.insert(deep, "stored", Kind.FILE, 1, etag="1")
    assert not nodes.has_ours_below(top)
    inode = nodes.insert(deep, "ours", kind, 1, **columns)
    assert nodes.has_ours_below(top)
    assert not nodes.has_ours_below(beside)
    nodes.detach(inode)
    assert not nodes.has_ours_below(top)


def test_staged_data_is_found_however_deep(database: MountDatabase) -> None:
    """Also of a file that S3 has in another version."""
    nodes, journal = NodeTable(database), Journal(database)
    top = nodes.insert(ROOT, "top", Kind.DIRECTORY, 1)
    deep = nodes.insert(top, "a", Kind.DIRECTORY, 1)
    inode = nodes.insert(deep, "file", Kind.FILE, 1, etag="1")
    journal.put_staged(inode, dirty=True, base_etag="1", base_size=1, condition="match", now_ns=1)
    assert nodes.has_ours_below(top)
    journal.clean_staged(inode)
    assert not nodes.has_ours_below(top)


def test_a_remembered_row_follows_what_the_table_itself_changes(database: MountDatabase) -> None:
    """It is what a look into the table would tell, also after changes of other tables, and of what was made a moment ago."""
    nodes, journal = NodeTable(database), Journal(database)
    directory = nodes.insert(ROOT, "d", Kind.DIRECTORY, 1, mode=0o755)
    inode = nodes.insert(directory, "a", Kind.FILE, 1, mode=0o644, seen_ns=5)
    with database.transaction():
        nodes.update(directory, mtime_ns=7, ctime_ns=8)
        journal.put_call(1, inode, oldest=1)
        journal.put_staged(
            inode, dirty=True, base_etag=None, base_size=0, condition="always", now_ns=1
        )
    told = nodes.get(directory), nodes.get(inode)
    assert told == (NodeTable(database).get(directory), NodeTable(database).get(inode))
    assert told[0] is not None
    assert (told[0].mtime_ns, told[0].ctime_ns) == (7, 8)
    database.execute("SELECT 1")
    assert nodes.get(directory) is told[0], "nothing else changed it"


def test_what_a_rolled_back_transaction_changed_is_not_remembered(database: MountDatabase) -> None:
    nodes = NodeTable(database)
    inode = nodes.insert(ROOT, "a", Kind.FILE, 1)
    nodes.get(inode)

    def fail() -> None:
        with database.transaction():
            nodes.update(inode, size=9)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    found = nodes.get(inode)
    assert found is not None
    assert found.size == 0


def a_tree(nodes: NodeTable, directories: int, files: int) -> list[Inode]:
    """Make directories with files in each, and one file beside them; returns the directories."""
    made = [nodes.insert(ROOT, f"d{i}", Kind.DIRECTORY, 1) for i in range(directories)]
    nodes.insert(ROOT, "beside", Kind.FILE, 1)
    for i, directory in enumerate(made):
        for k in range(files if i else 0):
            nodes.insert(directory, f"f{k}", Kind.FILE, 1, size=i)
    return made


@pytest.mark.parametrize("limit", [2, 3, 256])
def test_what_was_learned_ahead_is_what_would_be_read(database: MountDatabase, limit: int) -> None:
    """Also of a directory without entries, of one with more than are asked for, and from the middle on."""
    nodes = NodeTable(database)
    made = a_tree(nodes, directories=4, files=3)
    expected = [list(nodes.listed(directory, limit=limit)) for directory in made]
    rest = list(nodes.listed(made[1], after=expected[1][0].id, limit=limit))
    nodes.look_ahead(ROOT)
    assert list(nodes.listed(made[1], after=expected[1][0].id, limit=limit)) == rest
    assert [list(nodes.listed(directory, limit=limit)) for directory in made] == expected
    assert [nodes.get(directory) for directory in made] == [
        NodeTable(database).get(directory) for directory in made
    ]


@pytest.mark.parametrize("change", ["insert", "drop", "rename", "rollback"])
def test_what_was_learned_ahead_is_forgotten_with_every_change(
    database: MountDatabase, change: str
) -> None:
    """Whatever changed, and through whom."""
    nodes, others = NodeTable(database), NodeTable(database)
    first, second = a_tree(nodes, directories=2, files=1)
    (child,) = nodes.listed(second)
    nodes.look_ahead(ROOT)
    if change == "insert":
        others.insert(first, "new", Kind.FILE, 1)
    elif change == "drop":
        others.drop(child.id)
    elif change == "rename":
        others.update(child.id, name="other", parent=first)
    else:

        def fail() -> None:
            with database.transaction():
                others.drop(child.id)
                nodes.look_ahead(ROOT)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
    for directory in (first, second):
        assert list(nodes.listed(directory)) == list(others.listed(directory))


def test_little_is_learned_ahead(database: MountDatabase) -> None:
    """Of many directories, or of large ones, nothing is: whoever wants one of them asks for it."""
    nodes = NodeTable(database)
    with database.transaction():
        first = a_tree(nodes, directories=2, files=600)[0]
        a_tree_below = [nodes.insert(first, f"d{i}", Kind.DIRECTORY, 1) for i in range(65)]
    nodes.look_ahead(ROOT)
    assert not nodes._ahead
    nodes.look_ahead(first)
    assert not nodes._ahead
    nodes.drop(a_tree_below[0])
    nodes.look_ahead(first)
    assert set(nodes._ahead) == set(a_tree_below[1:])


def test_a_name_that_was_not_there_is_found_however_it_came(database: MountDatabase) -> None:
    """That it was looked for in vain is remembered for no longer."""
    nodes = NodeTable(database)
    other = nodes.insert(ROOT, "other", Kind.DIRECTORY, 1)

    def rename() -> None:
        nodes.update(other, name="a")

    def write_past() -> None:
        with database.transaction() as db:
            db.execute("UPDATE inodes SET name = 'a' WHERE id = ?", (other,))

    ways: list[Callable[[], object]] = [
        lambda: nodes.insert(ROOT, "a", Kind.FILE, 1),
        lambda: nodes.insert_many(ROOT, Kind.FILE, [("a", 1, 0, "etag", 1)]),
        rename,
        write_past,
    ]
    for come in ways:
        assert nodes.find(ROOT, "a") is None
        assert nodes.find(ROOT, "a") is None
        come()
        found = nodes.find(ROOT, "a")
        assert found is not None
        nodes.update(found.id, name=f"was-a-{found.id}")


def test_inode_numbers_grow_whoever_gives_them(database: MountDatabase) -> None:
    """What is listed is listed in their order, and no number is given twice."""
    nodes = NodeTable(database)

    def lose() -> None:
        with database.transaction():
            for i in range(5000):
                nodes.insert(ROOT, f"lost-{i}", Kind.FILE, 1)
            raise RuntimeError

    given = [nodes.insert(ROOT, "0", Kind.FILE, 1)]
    many = [(f"many-{i}", 1, 0, "etag", 1) for i in range(5000)]
    given += nodes.insert_many(ROOT, Kind.FILE, many)
    with pytest.raises(RuntimeError):
        lose()
    given += [nodes.insert(ROOT, f"{i}", Kind.FILE, 1) for i in range(1, 5000)]
    nodes.drop(given[-1])
    given.append(NodeTable(database).insert(ROOT, "last", Kind.FILE, 1))
    assert given == sorted(set(given))
