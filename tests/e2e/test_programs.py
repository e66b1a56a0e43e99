"""Ordinary programs do in a mount what they do on a local disk, and S3 has afterwards what they wrote.

Most rows run a script twice, in a local directory and in the mount. Output and trees must be the same, S3 must
hold the same through another client, and so must a second mount of the bucket.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.lab import Daemon, Lab, run, shell
from tests.e2e.trees import describe, make_source, objects_of, read_bucket
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket

PARALLEL_WRITERS = 50


@dataclass(frozen=True)
class Site:
    """A bucket mounted twice, and a local tree to work with."""

    daemon: Daemon
    endpoint: Endpoint
    bucket: str
    mount: Path
    other: Path
    local: Path
    source: Path

    def check(self, name: str, *, times: bool = False) -> None:
        """Compare what ``local/name`` is to the mount, to S3, and to the second mount."""
        expected = describe(self.local / name, times=times)
        assert describe(self.mount / name, times=times) == expected
        self.daemon.flush("m")
        assert read_bucket(self.endpoint, self.bucket, f"{name}/") == objects_of(
            expected, f"{name}/"
        )
        self.daemon.api.invalidate_mount("other")
        # Times come from S3 here: they are what the first mount shows, not when the local copy was made.
        assert describe(self.other / name) == describe(self.mount / name)


@pytest.fixture(scope="module", params=["ministack", "radosgw"])
def site(request: pytest.FixtureRequest, module_lab: Lab) -> Iterator[Site]:
    """Give one bucket for all tests of this module; each works in a directory of its own."""
    endpoint: Endpoint = request.getfixturevalue(request.param)
    client = endpoint.boto3()
    bucket = make_bucket(client)
    daemon = module_lab.daemon(endpoint.kind)
    source = module_lab.directory(f"source-{endpoint.kind}")
    make_source(source)
    try:
        yield Site(
            daemon,
            endpoint,
            bucket,
            mount=daemon.mount(endpoint, bucket, "m"),
            other=daemon.mount(endpoint, bucket, "other"),
            local=module_lab.directory(f"local-{endpoint.kind}"),
            source=source,
        )
    finally:
        daemon.end()
        remove_bucket(client, bucket)
        client.close()


EDITS = """
for i in $(seq 20); do echo "line $i" >> notes; done
sed -i s/line/LINE/ notes; sed -i 3d notes
cat notes
printf 'new' > .notes.tmp; mv .notes.tmp config; printf newer > .notes.tmp; mv -f .notes.tmp config
cat config
truncate -s 10 notes; truncate -s 5000 notes; wc -c < notes
: > emptied; echo x > emptied; : > emptied
mv notes "$(printf 'renamed\\nnotes')"
"""

DD = """
dd if=/dev/zero of=big bs=64k count=40 status=none
head -c 70000 "$1/file 24.bin" | dd of=big bs=1000 seek=333 conv=notrunc status=none
printf tail | dd of=big bs=1 seek=3000000 conv=notrunc status=none
sync big
printf head | dd of=big bs=1 conv=notrunc status=none
dd if=big bs=999 skip=2 count=500 status=none | sha256sum
"""

NAMES = """
mkdir -- 'a b' $'new\\nline' 'ünïcödé' '-rf' '*' '..dots' 'back\\slash' "$(printf 'd%.0s' $(seq 255))"
for d in *; do echo "$d" > "./$d/$(printf 'f%.0s' $(seq 255))"; echo 1 > "./$d/sp ace "; done
echo 日本 > 日本; echo plus > 'a+b%20c&d=e?f#g'; echo quote > "it's \\"quoted\\""
find . | LC_ALL=C sort
if touch "$(printf 'x%.0s' $(seq 256))" 2>/dev/null; then exit 1; fi
"""

LINKS = """
echo target > file; mkdir dir
ln -s file relative; ln -s dir todir; ln -s /nowhere/at/all dangling; ln -s ../"$(basename "$PWD")"/file around
cat relative around; readlink dangling; echo through > todir/inside; cat dir/inside
ln -sfn other todir; readlink todir; rm relative; ls
if ln file hard 2>/dev/null; then rm hard; fi
"""

ATTRIBUTES = """
echo 1 > a; echo 2 > b; mkdir d; chmod 640 a; chmod 0711 d; chmod u+x,g-r b
touch -d '2001-02-03 04:05:06.123456789 UTC' a; touch -r a b; touch -d @0 d
stat -c '%n %a %.9Y' a b; stat -c '%n %a %Y' d
echo more >> b; chmod 600 b; touch -d '2030-01-01 UTC' b; stat -c '%n %a %s %.9Y' b
"""

MMAP = """
head -c 20000 /dev/zero > mapped
python3 -S -c '
import mmap, os
fd = os.open("mapped", os.O_RDWR)
with mmap.mmap(fd, 20000) as m:
    m[0:5] = b"hello"; m[8190:8200] = b"x" * 10; m.flush(); m[19990:20000] = b"y" * 10
os.close(fd)
print(open("mapped", "rb").read().strip(b"\\0").count(0))
'
sha256sum mapped
"""

OPEN_FILES = """
exec 3<> file; echo one >&3; rm file; echo two >&3
if [ -e file ]; then exit 1; fi
cat /proc/self/fd/3; exec 3>&-
python3 -S -c '
import os
def attempt(flags):
    try: os.close(os.open("made", flags, 0o600)); return "ok"
    except FileExistsError: return "exists"
flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
print(attempt(flags), attempt(flags), attempt(os.O_CREAT | os.O_WRONLY))
a = os.open("shared", os.O_CREAT | os.O_RDWR); b = os.open("shared", os.O_RDWR | os.O_APPEND)
os.write(a, b"12345"); os.write(b, b"678"); os.pwrite(a, b"X", 2); print(os.pread(b, 99, 0)); os.ftruncate(a, 4)
os.write(b, b"end"); os.close(b); os.pwrite(a, b"late", 20); os.close(a); print(open("shared", "rb").read())
x = os.open("kept", os.O_CREAT | os.O_RDWR); os.write(x, b"old"); os.close(x)
x = os.open("kept", os.O_RDWR); open("kept.new", "w").write("new"); os.rename("kept.new", "kept")
print(os.pread(x, 9, 0), open("kept").read()); os.write(x, b"lost"); os.close(x)
'
"""

DIRECTORIES = """
mkdir -p a/b/c e; echo 1 > a/b/c/1; echo 2 > a/2
mv a moved; ls moved/b/c; mv moved/b e/b; rmdir moved 2>/dev/null && exit 1
mv e/b/c/1 .; rmdir e/b/c; mv -T moved e/b/sub; mkdir twice; rmdir twice; mkdir twice
mkdir full; echo x > full/x; if mv -T twice full 2>/dev/null; then exit 1; fi
rm -r full; mv -T twice full; mv 1 2; mv 2 1
find . | LC_ALL=C sort
"""

SCRIPTS = {
    "cp -r": 'cp -r "$1" copy; cp -r copy again; rm -rf copy/d0; diff -r "$1/d1" again/d1; cat again/link',
    "tar": 'tar -C "$1" -c . | tar x -p; tar c --sort=name --mtime=@0 . | tar x -O | sha256sum',
    "edits": EDITS,
    "dd": DD,
    "names": NAMES,
    "links": LINKS,
    "attributes": ATTRIBUTES,
    "mmap": MMAP,
    "open files": OPEN_FILES,
    "directories": DIRECTORIES,
}


@pytest.mark.parametrize("program", SCRIPTS)
def test_a_program_does_in_a_mount_what_it_does_on_a_disk(site: Site, program: str) -> None:
    """Output, tree, objects and the view of a second mount are those of a local disk."""
    outputs = []
    for base in (site.local, site.mount):
        (base / program).mkdir()
        outputs.append(shell(f"umask 022\n{SCRIPTS[program]}", site.source, cwd=base / program))
    assert outputs[1] == outputs[0]
    site.check(program, times=program == "tar")


def test_rsync_sends_nothing_the_second_time(site: Site) -> None:
    """Sizes, times, modes and links are kept as rsync left them, and another mount sees the same."""
    command = ["rsync", "-a", "--itemize-changes"]
    (site.local / "rsync").mkdir()
    run(*command, f"{site.source}/", f"{site.local}/rsync/")
    first = run(*command, f"{site.source}/", f"{site.mount}/rsync/")
    assert "file 1.bin" in first
    assert run(*command, f"{site.source}/", f"{site.mount}/rsync/") == ""
    site.check("rsync", times=True)
    assert run(*command, "--dry-run", f"{site.source}/", f"{site.other}/rsync/") == ""


def test_git_works_in_a_mount(site: Site) -> None:
    """Clone, commit, switch, garbage collection, and an fsck of what another mount sees."""
    origin = site.source.parent / f"origin-{site.endpoint.kind}"
    shell(
        'git init -q -b main "$1"; cp -r "$2"/. "$1"; cd "$1"; git add .; git commit -q -m one',
        origin,
        site.source,
    )
    clone = site.mount / "git"
    shell(
        """
        git clone -q "$1" "$2"; cd "$2"
        sed -i '1s/^/edited /' 'file 8.bin'; git commit -q -a -m two
        git switch -q -c branch; git mv 'file 8.bin' moved; git commit -q -m three; git switch -q main
        git merge -q branch; git gc -q; git fsck --full --strict; git status --porcelain
        """,
        origin,
        clone,
    )
    site.daemon.flush("m")
    site.daemon.api.invalidate_mount("other")
    assert shell(
        "cd $1; git fsck --full --strict; git status --porcelain; git log --format=%s",
        site.other / "git",
    ) == ("three\ntwo\none\n")


def test_find_and_du_see_what_is_there(site: Site) -> None:
    """Names, types and sizes of a tree, and no size of nothing."""
    shell('mkdir $2/find; cp -a "$1"/. $2/find', site.source, site.mount)
    listing = "cd $1; find . -mindepth 1 -printf '%y %P %l %m\\n' | LC_ALL=C sort; find . -type f -printf '%s\\n' | sort"
    assert shell(listing, site.mount / "find") == shell(listing, site.source)
    sizes = "cd $1; find . -type f -print0 | LC_ALL=C sort -z | du --files0-from=- -b"
    assert shell(sizes, site.mount / "find") == shell(sizes, site.source)
    blocks = int(run("du", "-s", "-B1", site.mount / "find").split()[0])
    used = sum(path.stat().st_size for path in site.source.rglob("*.bin"))
    assert used <= blocks <= used + 512 * 60


def test_fifty_writers_at_once(site: Site) -> None:
    """Each writes a file of its own and appends lines to one that all share."""
    (site.mount / "writers").mkdir()
    (site.local / "writers").mkdir()
    script = """
        cd $1; : > shared
        for i in $(seq $2); do
            ( for n in 1 2; do head -c 60000 /dev/zero | tr '\\0' "\\\\$((i % 8 + 60))" >> own-$i; echo "line $i" >> shared; done ) &
        done
        wait
        [ $(cat own-* | wc -c) = $(($2 * 120000)) ]
    """
    for base in (site.local, site.mount):
        shell(script, base / "writers", str(PARALLEL_WRITERS))
        shared = base / "writers" / "shared"
        lines = sorted(shared.read_text().splitlines())
        assert lines == sorted(f"line {i + 1}" for i in range(PARALLEL_WRITERS) for _ in range(2))
        shared.write_text("\n".join(lines))
    site.check("writers")


def test_a_directory_read_while_it_changes_shows_what_stayed_exactly_once(site: Site) -> None:
    """POSIX leaves open only whether names that come or go meanwhile are shown."""
    directory = site.mount / "changing"
    directory.mkdir()
    for number in range(400):
        (directory / f"{number}").touch()
    seen = []
    with os.scandir(directory) as entries:
        for count, entry in enumerate(entries):
            seen.append(entry.name)
            if count < 100:
                (directory / f"new {count}").touch()
                (directory / f"{399 - count}").unlink()
            elif count < 150:
                (directory / f"{count}").rename(directory / f"renamed {count}")
    stayed = {str(n) for n in range(300) if not 100 <= n < 150}
    assert len(seen) == len(set(seen))
    assert stayed <= set(seen)
    expected = stayed | {f"new {n}" for n in range(100)} | {f"renamed {n}" for n in range(100, 150)}
    assert set(os.listdir(directory)) == expected
    site.daemon.flush("m")
    objects = read_bucket(site.endpoint, site.bucket, "changing/")
    assert set(objects) == {f"changing/{name}" for name in expected}
