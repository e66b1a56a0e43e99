"""Attributes: what is read from metadata, what is written, what it costs in requests, and what a copy keeps."""

import errno
import stat
from collections.abc import Mapping

import pytest
import trio

from s3mgrd.cache.nodes import Kind
from s3mgrd.errors import Unavailable
from s3mgrd.fs import attributes, descriptions, xattr_header
from s3mgrd.fs.changing.attribute_changes import AttributeChange
from s3mgrd.fs.writing.backlog import GATHER_S
from tests.unit.fs.conftest import START_NS, WHO, Lab, settings

S = 1_000_000_000
OTHERS = {"theirs": "1", "md5chksum": "ä"}
HEADERS = {"cache-control": "no-cache", "x-amz-server-side-encryption": "aws:kms"}


def spent(lab: Lab) -> dict[str, int]:
    """Return the calls since the last time, listings aside."""
    calls = {str(n): c for n, c in lab.store.calls.items() if c and n not in ("list_page", "probe")}
    lab.store.calls.clear()
    return calls


def ignore(_: int) -> None:
    """Record nothing."""


# Reading


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("0", 0),
        ("1800000000", 1_800_000_000 * S),
        ("1800000000.5", 1_800_000_000 * S + 500_000_000),
        ("1354040105.123456789", 1_354_040_105_123_456_789),
        ("1354040105.1234567891", 1_354_040_105_123_456_789),
        ("-1", -S),
        ("-1.25", -1_250_000_000),
        ("-0.000000001", -1),
        ("9223372036.854775807", (1 << 63) - 1),
        ("9223372036.9", (1 << 63) - 1),
        ("253402300799", (1 << 63) - 1),
        ("-99999999999", -((1 << 63) - 1)),
        ("", None),
        ("soon", None),
        ("1e9", None),
        ("1.", None),
        ("٣", None),
    ],
)
def test_times_of_any_writer_are_read(text: str, time_ns: int | None) -> None:
    """s3fs writes seconds or nanoseconds, rclone a decimal fraction of any length."""
    assert attributes.decode({"mtime": text}).mtime_ns == time_ns


@pytest.mark.parametrize(
    ("text", "mode", "kind", "special"),
    [
        ("33188", 0o644, Kind.FILE, 0),
        ("33225", 0o711, Kind.FILE, 0),
        ("36333", 0o6755, Kind.FILE, 0),
        ("16877", 0o755, Kind.DIRECTORY, 0),
        ("41471", 0o777, Kind.SYMLINK, 0),
        ("4516", 0o644, Kind.SPECIAL, stat.S_IFIFO),
        ("49645", 0o755, Kind.SPECIAL, stat.S_IFSOCK),
        ("8612", 0o644, Kind.SPECIAL, stat.S_IFCHR),
        ("25008", 0o660, Kind.SPECIAL, stat.S_IFBLK),
        ("420", 0o644, None, 0),
        ("99999", None, None, 0),
        ("-1", None, None, 0),
        ("rw-r--r--", None, None, 0),
    ],
)
def test_modes_tell_what_an_object_is(
    text: str, mode: int | None, kind: Kind | None, special: int
) -> None:
    found = attributes.decode({"mode": text})
    assert (found.mode, found.kind, found.special) == (mode, kind, special)


@pytest.mark.parametrize(
    ("metadata", "uid", "gid"),
    [
        ({"uid": "0", "gid": "4294967294"}, 0, 4_294_967_294),
        ({"uid": "4294967295", "gid": "-2"}, None, None),
        ({"uid": "root"}, None, None),
    ],
)
def test_owners_are_numbers(metadata: Mapping[str, str], uid: int | None, gid: int | None) -> None:
    found = attributes.decode(metadata)
    assert (found.uid, found.gid) == (uid, gid)


async def test_what_is_counted_for_our_own_metadata_suffices(lab: Lab) -> None:
    async with lab.mounted():
        node = await lab.write("a", b"")
        widest = node._replace(
            mtime_ns=-attributes.MAX_NS,
            atime_ns=-attributes.MAX_NS,
            ctime_ns=-attributes.MAX_NS,
            kind=int(Kind.SPECIAL),
            special=stat.S_IFSOCK,
            rdev=attributes.MAX_RDEV,
        )
        metadata = attributes.encode(
            widest, mode=0o7777, uid=attributes.MAX_ID, gid=attributes.MAX_ID, xattrs={}
        )
        assert descriptions.metadata_bytes(metadata) == attributes.MAX_BYTES
        assert attributes.decode(metadata).mtime_ns == -attributes.MAX_NS


# What it costs


async def test_a_new_file_gets_everything_with_its_upload(lab: Lab) -> None:
    """`cp -a` and tar set owner, mode, times and xattrs before they close."""
    async with lab.mounted() as fs:
        await lab.ls()
        node = await lab.write("a", b"hello", close=False)
        change = AttributeChange(mode=0o600, uid=5, gid=6, mtime_ns=7, atime_ns=8)
        await fs.attributes.change(node.id, change)
        stage = fs.stages.get(node.id)
        assert stage is not None
        stage.mtime_ns = None  # as the handler does
        await fs.attributes.set_xattr(node.id, b"user.a", b"1", ignore)
        await fs.commit(node.id)
        await lab.settle()
        assert spent(lab) == {"put": 1}
        assert lab.store.objects["a"].head.metadata == {
            "mode": str(0o100600),
            "uid": "5",
            "gid": "6",
            "mtime": "0.000000007",
            "atime": "0.000000008",
            "ctime": f"{START_NS // S}.000000000",
            "xattr": xattr_header.encode({"user.a": b"1"}),
        }


async def test_changes_after_the_close_are_one_copy(lab: Lab) -> None:
    """Rsync and shutil.copy2 set them by path; asked for one by one, sent together."""
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        spent(lab)
        await fs.attributes.change(node.id, AttributeChange(mode=0o600))
        await fs.attributes.change(node.id, AttributeChange(uid=5, gid=6))
        await fs.attributes.change(node.id, AttributeChange(mtime_ns=7, atime_ns=8))
        await fs.attributes.set_xattr(node.id, b"user.a", b"1", ignore)
        await lab.settle()
        assert spent(lab) == {"copy": 1}
        metadata = lab.store.objects["a"].head.metadata
        assert (metadata["mode"], metadata["mtime"]) == (str(0o100600), "0.000000007")
        assert xattr_header.decode(metadata["xattr"]) == {"user.a": b"1"}


async def test_what_rsync_does_is_one_upload_one_copy_one_delete(lab: Lab) -> None:
    """It writes beside the name, sets everything, then renames: the copy to the name takes all along."""
    async with lab.mounted() as fs:
        await lab.ls()
        node = await lab.write(".a.tmp", b"hello")
        await fs.attributes.change(node.id, AttributeChange(mtime_ns=7, atime_ns=8))
        await fs.attributes.change(node.id, AttributeChange(mode=0o600))
        await fs.attributes.set_xattr(node.id, b"user.a", b"1", ignore)
        await lab.rename(".a.tmp", "a")
        await lab.settle()
        assert spent(lab) == {"put": 1, "copy": 1, "delete_many": 1}
        assert lab.store.objects["a"].head.metadata["mode"] == str(0o100600)


async def test_changes_are_gathered_however_busy_the_others_are(lab: Lab) -> None:
    """A change that comes when the syncer is about to look is not sent before those that follow it."""
    async with lab.mounted() as fs:
        first, second = await lab.write("a", b"hello"), await lab.write("b", b"hello")
        await lab.settle()
        await trio.sleep(10)
        spent(lab)
        await fs.attributes.change(first.id, AttributeChange(mode=0o600))
        await trio.sleep(GATHER_S * 0.9)
        await fs.attributes.change(second.id, AttributeChange(mode=0o600))
        await trio.sleep(GATHER_S * 0.5)
        await fs.attributes.change(second.id, AttributeChange(mtime_ns=7))
        await trio.sleep(10)
        assert spent(lab) == {"copy": 2}


async def test_setting_what_is_there_already_costs_nothing(lab: Lab) -> None:
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        await fs.attributes.set_xattr(node.id, b"user.a", b"1", ignore)
        await lab.settle()
        node = await lab.get("a")
        spent(lab)
        same = AttributeChange(mode=node.mode, uid=node.uid, gid=node.gid, mtime_ns=node.mtime_ns)
        await fs.attributes.change(node.id, same)
        await fs.attributes.set_xattr(node.id, b"user.a", b"1", ignore)
        await lab.settle()
        assert spent(lab) == {}


async def test_an_access_time_alone_is_sent_with_the_next_change(lab: Lab) -> None:
    """So that relatime, and `touch -a`, never cost a request."""
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        spent(lab)
        await fs.attributes.change(node.id, AttributeChange(atime_ns=8))
        await lab.settle()
        assert spent(lab) == {}
    async with lab.mounted("second") as fs:
        assert (await lab.get("a")).atime_ns == 8
        await fs.attributes.change(node.id, AttributeChange(mode=0o600))
        await lab.settle()
        assert lab.store.objects["a"].head.metadata["atime"] == "0.000000008"


async def test_a_version_is_asked_for_at_most_once_ever(lab: Lab) -> None:
    """Not after a restart, a listing, a rename, a change of attributes or of content, nor when we wrote it ourselves."""
    lab.settings = settings(attributes="full")
    for name in ("a", "b"):
        lab.store.insert(name, b"x", metadata=OTHERS, headers=HEADERS)
    async with lab.mounted():
        assert await lab.ls() == ["a", "b"]
        assert spent(lab) == {"head": 2}
    for connection in ("second", "third"):
        async with lab.mounted(connection) as fs:
            lab.later(100)
            assert await lab.ls() == ["a", "b"]
            assert await lab.read("a") == b"x"
            assert spent(lab) == {"get_range": 1}
    async with lab.mounted("fourth") as fs:
        await lab.rename("a", "c")
        await lab.settle()
        assert spent(lab) == {"copy": 1, "delete_many": 1}
        await fs.attributes.change((await lab.get("c")).id, AttributeChange(mode=0o600))
        await lab.settle()
        assert spent(lab) == {"copy": 1}
        node = await lab.get("b")
        await fs.stages.write(node.id, 1, b"y")
        await fs.commit(node.id)
        assert spent(lab) == {"get_range": 1, "put": 1}
        await lab.write("new", b"z")
        assert spent(lab) == {"put": 1}
        await lab.mkdir("d")
        await lab.settle()
        assert spent(lab) == {"put": 1}
        lab.later(100)
        assert await lab.ls() == ["b", "c", "d/", "new"]
        await fs.attributes.change((await lab.get("d")).id, AttributeChange(mode=0o700))
        await lab.settle()
        assert spent(lab) == {"put": 1}
        await lab.rename("d", "e")
        await lab.settle()
        assert spent(lab) == {"copy": 1, "delete_many": 1}
    async with lab.mounted("fifth"):
        lab.later(100)
        assert await lab.ls() == ["b", "c", "e/", "new"]
        assert spent(lab) == {}


async def test_one_file_of_a_plain_directory_is_looked_at(lab: Lab) -> None:
    """Neither stat nor listing extended attributes turns into a request for each file."""
    for number in range(20):
        lab.store.insert(f"d/{number}", b"x")
    async with lab.mounted() as fs:
        await lab.ls()
        spent(lab)
        await lab.ls("d")
        for number in range(20):
            node = await lab.get(f"d/{number}")
            assert await fs.attributes.xattr_names(node.id) == []
        assert spent(lab) == {"head": 1}


async def test_what_another_changed_is_asked_for_again(lab: Lab) -> None:
    """The same bytes and ETag with a later date, of a file that we wrote and of one that we learned; also of a marker."""
    changed = {"mode": "33152", "xattr": xattr_header.encode({"user.b": b"2"}), "theirs": "2"}
    lab.store.insert("theirs", b"x", metadata={"mode": "33188", "theirs": "1", "uid": "5"})
    async with lab.mounted() as fs:
        await lab.ls()
        await lab.write("ours", b"x")
        await lab.mkdir("d")
        await lab.settle()
        lab.later(100)
        await lab.ls()
        lab.store.clock = lambda: START_NS + 1000 * S
        for key in ("ours", "theirs", "d/"):
            data = lab.data(key)
            mode = {"mode": "16832"} if key == "d/" else {}
            lab.store.insert(key, data, metadata=changed | mode)
        for path in (
            "d",
            "",
            "",
        ):  # a marker is seen in its own directory, and shown in the one around it
            lab.later(100)
            await lab.ls(path)
        for path in ("ours", "theirs", "d"):
            node = await lab.get(path)
            assert fs.volume.mode(node) == (0o700 if path == "d" else 0o600)
            assert await fs.attributes.xattr(node.id, b"user.b") == b"2"
            await fs.attributes.change(node.id, AttributeChange(uid=7))
        await lab.settle()
        for key in ("ours", "theirs", "d/"):
            metadata = lab.store.objects[key].head.metadata
            assert (metadata["theirs"], metadata["uid"]) == ("2", "7")


# What is kept


@pytest.mark.parametrize("attributes_option", ["lazy", "full"])
async def test_others_metadata_and_headers_stay(lab: Lab, attributes_option: str) -> None:
    """Through a change of attributes, a rename of file and directory, and an edit."""
    lab.settings = settings(attributes=attributes_option)
    lab.store.insert(
        "d/a", b"hello", metadata=OTHERS, content_type="text/css", storage_class="STANDARD_IA",
        headers=HEADERS,
    )  # fmt: skip
    async with lab.mounted() as fs:
        await fs.attributes.change((await lab.get("d/a")).id, AttributeChange(mode=0o600))
        await lab.settle()
        await lab.rename("d/a", "d/b")
        await lab.settle()
        await lab.rename("d", "e")
        await lab.settle()
        node = await lab.get("e/b")
        await fs.stages.write(node.id, 5, b" world")
        await fs.commit(node.id)
        stored = lab.store.objects["e/b"]
        assert stored.data == b"hello world"
        assert stored.head.metadata.items() >= OTHERS.items()
        assert stored.head.metadata["mode"] == str(0o100600)
        assert (stored.head.content_type, stored.head.storage_class) == ("text/css", "STANDARD_IA")
        assert stored.head.headers == HEADERS


async def test_a_marker_that_others_made_keeps_what_it_has(lab: Lab) -> None:
    """Also content, which a mount does not show."""
    lab.store.insert("d/", b"content", metadata=OTHERS, content_type="text/plain", headers=HEADERS)
    lab.store.insert("e/", metadata=OTHERS, content_type="text/plain", headers=HEADERS)
    async with lab.mounted() as fs:
        for name in ("d", "e"):
            await lab.ls(name)
            await fs.attributes.change((await lab.get(name)).id, AttributeChange(mode=0o700))
        await lab.settle()
        for key, data in (("d/", b"content"), ("e/", b"")):
            stored = lab.store.objects[key]
            assert (stored.data, stored.head.content_type) == (data, "text/plain")
            assert stored.head.metadata.items() >= OTHERS.items()
            assert stored.head.metadata["mode"] == str(0o40700)
            assert stored.head.headers == HEADERS


async def test_an_overwritten_file_is_a_new_one(lab: Lab) -> None:
    """What others said of the bytes before says nothing of these."""
    lab.store.insert("a.css", b"hello", metadata=OTHERS, content_type="x/y", headers=HEADERS)
    async with lab.mounted():
        await lab.write("a.css", b"other")
        head = lab.store.objects["a.css"].head
        assert (head.content_type, head.headers) == ("text/css", {})
        assert not OTHERS.keys() & head.metadata.keys()


async def test_metadata_that_only_looks_like_ours_stays(lab: Lab) -> None:
    lab.store.insert("a", b"hello", metadata={"xattr": "something else"})
    async with lab.mounted() as fs:
        node = await lab.get("a")
        assert await fs.attributes.xattr_names(node.id) == []
        await fs.attributes.change(node.id, AttributeChange(mode=0o600))
        await lab.settle()
        assert lab.store.objects["a"].head.metadata["xattr"] == "something else"


# Extended attributes


async def test_extended_attributes_come_back_in_another_mount(lab: Lab) -> None:
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        directory = await lab.mkdir("d")
        for number in (node.id, directory.id):
            await fs.attributes.set_xattr(number, b"user.a", b"\0\xff", ignore)
            await fs.attributes.set_xattr(number, "user.ä".encode(), b"", ignore)
            await fs.attributes.set_xattr(number, b"user.gone", b"1", ignore)
            await fs.attributes.remove_xattr(number, b"user.gone", ignore)
        await lab.settle()
    (lab.directory / "mount.db").unlink()
    async with lab.mounted("second") as fs:
        for path in ("a", "d"):
            number = (await lab.get(path)).id
            names = await fs.attributes.xattr_names(number)
            assert names == [b"user.a", "user.ä".encode()]
            assert await fs.attributes.xattr(number, b"user.a") == b"\0\xff"
            assert await fs.attributes.xattr(number, "user.ä".encode()) == b""
            with pytest.raises(OSError, match="No data") as caught:
                await fs.attributes.xattr(number, b"user.gone")
            assert caught.value.errno == errno.ENODATA


async def test_a_change_keeps_extended_attributes_that_were_not_asked_for(lab: Lab) -> None:
    value = xattr_header.encode({"user.theirs": b"1"})
    lab.store.insert("a", b"hello", metadata={"xattr": value})
    async with lab.mounted() as fs:
        await lab.ls()
        await fs.attributes.set_xattr((await lab.get("a")).id, b"user.ours", b"2", ignore)
        await lab.settle()
        found = xattr_header.decode(lab.store.objects["a"].head.metadata["xattr"])
        assert found == {"user.ours": b"2", "user.theirs": b"1"}


@pytest.mark.parametrize(
    "name",
    [
        b"security.capability",
        b"security.selinux",
        b"trusted.a",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
        b"osx.a",
        b"user",
    ],
)
async def test_other_namespaces_are_not_supported(lab: Lab, name: bytes) -> None:
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        for attempt in (
            fs.attributes.xattr(node.id, name),
            fs.attributes.set_xattr(node.id, name, b"", ignore),
            fs.attributes.remove_xattr(node.id, name, ignore),
        ):
            with pytest.raises(OSError, match="not supported") as caught:
                await attempt
            assert caught.value.errno == errno.EOPNOTSUPP


async def test_without_attributes_there_are_no_extended_ones(lab: Lab) -> None:
    lab.settings = settings(attributes="off")
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        assert await fs.attributes.xattr_names(node.id) == []
        with pytest.raises(OSError, match="not supported"):
            await fs.attributes.set_xattr(node.id, b"user.a", b"", ignore)
        assert lab.store.objects["a"].head.metadata == {}


async def test_a_name_that_is_not_utf8_cannot_be_kept(lab: Lab) -> None:
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        with pytest.raises(OSError, match="multibyte") as caught:
            await fs.attributes.set_xattr(node.id, b"user.\xff", b"", ignore)
        assert caught.value.errno == errno.EILSEQ


async def test_what_s3_has_no_room_for_is_refused_before_it_is_sent(lab: Lab) -> None:
    """The sum of user metadata, others' included; and what fits now fits after any chown."""
    lab.store.insert("full", b"x", metadata={"theirs": "x" * 2000})
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        await lab.settle()
        spent(lab)
        with pytest.raises(OSError, match="No space") as caught:
            await fs.attributes.set_xattr(node.id, b"user.a", b"x" * 1500, ignore)
        assert caught.value.errno == errno.ENOSPC
        assert await fs.attributes.xattr_names(node.id) == []
        await fs.attributes.set_xattr(node.id, b"user.a", b"x" * 1400, ignore)
        with pytest.raises(OSError, match="No space"):
            await fs.attributes.set_xattr(node.id, b"user.b", b"", ignore)
        widest = AttributeChange(
            mode=0o7777, uid=attributes.MAX_ID, gid=attributes.MAX_ID,
            mtime_ns=-attributes.MAX_NS, atime_ns=-attributes.MAX_NS,
        )  # fmt: skip
        await fs.attributes.change(node.id, widest)
        await lab.settle()
        metadata = lab.store.objects["a"].head.metadata
        assert 2000 < descriptions.metadata_bytes(metadata) <= 2048
        full = await lab.get("full")
        with pytest.raises(OSError, match="No space"):
            await fs.attributes.change(full.id, AttributeChange(mode=0o600))
        await fs.stages.write(full.id, 1, b"y")
        await fs.commit(full.id)  # bytes are not refused for want of room for a time
        stored = lab.store.objects["full"]
        assert stored.data == b"xy"
        assert stored.head.metadata.items() >= {"theirs": "x" * 2000, "mode": "33188"}.items()
        assert "ctime" not in stored.head.metadata


async def test_what_changes_while_it_is_sent_is_sent_again(lab: Lab) -> None:
    async with lab.mounted() as fs:
        node = await lab.write("a", b"hello")
        await fs.attributes.set_xattr(node.id, b"user.a", b"1", ignore)
        with lab.store.hold("copy") as hold:
            fs.syncer.wake()
            await hold.arrived()
            await fs.attributes.set_xattr(node.id, b"user.a", b"2", ignore)
        await lab.settle()
        found = xattr_header.decode(lab.store.objects["a"].head.metadata["xattr"])
        assert found == {"user.a": b"2"}


async def test_a_crash_loses_no_attribute(lab: Lab) -> None:
    async with lab.mounted(sync=False) as fs:
        node = await lab.write("a", b"hello")
        await fs.attributes.set_xattr(node.id, b"user.a", b"1", ignore)
        lab.store.fail_next("copy", Unavailable("down"))
    async with lab.mounted("second") as fs:
        await lab.settle()
        await lab.settle()
        assert "xattr" in lab.store.objects["a"].head.metadata
        assert fs.syncer.left().is_nothing


async def test_extras_go_with_their_inode(lab: Lab) -> None:
    async with lab.mounted() as fs:
        lab.store.insert("a", b"hello", metadata=OTHERS)
        node = await lab.get("a")
        await fs.attributes.set_xattr(node.id, b"user.a", b"1", ignore)
        await lab.settle()
        await lab.unlink("a")
        await lab.settle()
        fs.syncer.release_forgotten()
        for table in ("xattrs", "described", "descriptions"):
            count = fs.volume.database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - names from above
            assert count == 0, table


# Special files


@pytest.mark.parametrize(
    ("st_mode", "rdev"),
    [
        (stat.S_IFIFO | 0o640, 0),
        (stat.S_IFSOCK | 0o755, 0),
        (stat.S_IFCHR | 0o666, (1 << 8) | 3),
        (stat.S_IFBLK | 0o660, 0xFFF0_00FF),
    ],
)
async def test_special_files_are_metadata_and_nothing_else(
    lab: Lab, st_mode: int, rdev: int
) -> None:
    async with lab.mounted() as fs:
        await lab.ls()
        await fs.tree.mknod(1, "s", st_mode, rdev, WHO, ignore)  # type: ignore[arg-type] # the root's number
        await lab.settle()
        assert spent(lab) == {"put": 1}
        assert lab.data("s") == b""
        await lab.rename("s", "t")
        await lab.settle()
    (lab.directory / "mount.db").unlink()
    async with lab.mounted("second"):
        node = await lab.get("t")
        assert (node.kind, attributes.type_bits(node)) == (Kind.SPECIAL, stat.S_IFMT(st_mode))
        assert node.rdev == rdev


@pytest.mark.parametrize("how", ["listed", "asked for"])
async def test_attributes_that_wait_for_an_upload_outlive_a_copy_of_the_object(
    lab: Lab, how: str
) -> None:
    """S3's copy of an object, as of a renamed directory, has a later date than the attributes were learned with."""
    lab.store.insert("a", b"12", metadata={"uid": "0", "mode": str(0o100644)})
    async with lab.mounted(sync=False) as fs:
        await lab.ls()
        node = await lab.get("a")
        await fs.metadata.know(node.id)
        await lab.write("a", b"345", close=False)
        await fs.attributes.change(node.id, AttributeChange(uid=7, mode=0o600))
        lab.later(60)
        lab.store.clock = lambda: START_NS + 60 * 10**9
        lab.store.insert("a", b"12", metadata={"uid": "0", "mode": str(0o100644)})
        if how == "listed":
            await lab.ls()
            await fs.metadata.know(node.id)
        else:
            fs.metadata.learn(fs.volume.node(node.id), await lab.store.head("a"))
        shown = await lab.get("a")
        assert (shown.id, fs.volume.owner(shown)[0], fs.volume.mode(shown)) == (node.id, 7, 0o600)
        await fs.commit(node.id)
    assert lab.store.objects["a"].head.metadata["uid"] == "7"
    assert lab.data("a") == b"345"
