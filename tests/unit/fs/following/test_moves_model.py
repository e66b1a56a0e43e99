"""Random renames, exchanges, writes and removals against a model, with S3 following, failing, and workers dying in between."""

import copy
import os
import tempfile
from pathlib import Path
from typing import cast

import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3mgrd.errors import S3mgrError, Unavailable
from s3mgrd.fs.changing.tree import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.unit.fs.conftest import Lab

Tree = dict[str, "Tree | bytes"]
NAMES = ("a", "b", "d", "e")
PATHS = [p for n in NAMES for p in (n, *(f"{n}/{m}" for m in NAMES), f"{n}/d/a", f"{n}/d/b")]

paths = st.sampled_from(PATHS)
steps = st.one_of(
    st.tuples(st.just("rename"), paths, paths, st.sampled_from([0, 0, 0, RENAME_NOREPLACE])),
    st.tuples(st.just("rename"), paths, paths, st.just(RENAME_EXCHANGE)),
    st.tuples(st.just("write"), paths, st.binary(max_size=3), st.just(0)),
    st.tuples(st.just("unlink"), paths, st.just(""), st.just(0)),
    st.tuples(st.just("mkdir"), paths, st.just(""), st.just(0)),
    st.tuples(st.just("rmdir"), paths, st.just(""), st.just(0)),
    st.tuples(st.just("pass"), st.integers(0, 30), st.just(""), st.just(0)),
    st.tuples(st.just("fail"), st.integers(1, 8), st.just(""), st.just(0)),
    st.tuples(st.just("crash"), st.just(""), st.just(""), st.just(0)),
    st.tuples(st.just("expire"), st.just(""), st.just(""), st.just(0)),
)


class Model:
    """What a local file system would do; raises OSError where it would."""

    def __init__(self) -> None:
        self.root: Tree = {}

    def _place(self, path: str) -> tuple[Tree, str]:
        node: Tree = self.root
        *above, name = path.split("/")
        for part in above:
            found = node.get(part)
            if not isinstance(found, dict):
                raise OSError
            node = found
        return node, name

    def _get(self, path: str) -> "Tree | bytes":
        place, name = self._place(path)
        if name not in place:
            raise OSError
        return place[name]

    def write(self, path: str, data: bytes) -> None:
        place, name = self._place(path)
        if isinstance(place.get(name), dict):
            raise OSError
        place[name] = data

    def unlink(self, path: str) -> None:
        place, name = self._place(path)
        if not isinstance(place.get(name), bytes):
            raise OSError
        del place[name]

    def mkdir(self, path: str) -> None:
        place, name = self._place(path)
        if name in place:
            raise OSError
        place[name] = {}

    def rmdir(self, path: str) -> None:
        place, name = self._place(path)
        if place.get(name) != {}:
            raise OSError
        del place[name]

    def rename(self, old: str, new: str, flags: int) -> None:
        moved = self._get(old)
        place, name = self._place(new)
        if flags == RENAME_EXCHANGE:
            if f"{new}/".startswith(f"{old}/") != f"{old}/".startswith(f"{new}/"):
                raise OSError
            there = self._get(new)
            old_place, old_name = self._place(old)
            old_place[old_name], place[name] = there, moved
            return
        if name in place:
            if flags == RENAME_NOREPLACE:
                raise OSError
            if old == new:
                return
            there = place[name]
            if isinstance(there, dict) != isinstance(moved, dict) or (
                there and isinstance(there, dict)
            ):
                raise OSError
        if isinstance(moved, dict) and f"{new}/".startswith(f"{old}/"):
            raise OSError
        old_place, old_name = self._place(old)
        del old_place[old_name]
        place[name] = moved


async def shown(lab: Lab, path: str = "") -> Tree:
    """Walk the mount."""
    found: Tree = {}
    for name in await lab.ls(path):
        below = f"{path}/{name}".strip("/")
        found[name.rstrip("/")] = (
            await shown(lab, below) if name.endswith("/") else await lab.read(below)
        )
    return found


def stored(lab: Lab) -> Tree:
    """Read the bucket as another tool would."""
    root: Tree = {}
    for key in lab.stored():
        node = root
        *above, name = key.split("/")
        for part in above:
            node = cast("Tree", node.setdefault(part, {}))
        if name:
            node[name] = lab.data(key)
    return root


async def apply(lab: Lab, model: Model, step: tuple[str, str, str | bytes, int]) -> None:
    """Make one change in both; where S3 has to be asked and does not answer, in neither."""
    kind, path, other, flags = step
    arguments: tuple[object, ...] = (path,)
    if kind in ("rename", "write"):
        arguments = (path, other, flags) if kind == "rename" else (path, other)
    before = copy.deepcopy(model.root)
    outcomes = []
    try:
        getattr(model, kind)(*arguments)
        outcomes.append("done")
    except OSError:
        outcomes.append("refused")
    try:
        await getattr(lab, kind)(*arguments)
        outcomes.append("done")
    except S3mgrError:
        # S3 had to be asked. What an upload could not send is kept, and is what the file is.
        if kind != "write":
            model.root = before
        return
    except (OSError, AssertionError):
        outcomes.append("refused")
    assert outcomes[0] == outcomes[1], step


async def play(directory: Path, program: list[tuple[str, str, str | bytes, int]]) -> None:
    lab, model = Lab(directory), Model()
    for key in ("a", "d/a", "d/b", "d/d/a", "e/a", "e/d/b"):
        lab.store.insert(key, key.encode())
        model.root = stored(lab)
    remaining = iter(program)
    is_over = False
    failures = 0

    def fail(operation: str, key: str) -> None:
        nonlocal failures
        if failures and operation in ("copy", "put", "delete_many"):
            failures -= 1
            raise Unavailable("the network is gone")

    lab.store.before = fail
    while not is_over:
        async with lab.mounted():
            # A change is only as good as what it began with is known.
            assert await shown(lab) == model.root
            for step in remaining:
                kind, argument = step[0], step[1]
                if kind == "pass":
                    await trio.sleep(0.06)
                    for _ in range(int(argument)):
                        await trio.lowlevel.checkpoint()
                elif kind == "fail":
                    failures = int(argument)
                elif kind == "crash":
                    break
                elif kind == "expire":
                    lab.later(60)
                else:
                    failing, failures = failures, 0 if kind == "write" else failures
                    await apply(lab, model, step)
                    failures = failing if kind == "write" else failures
                assert await shown(lab) == model.root, step
            else:
                is_over = True
    failures = 0
    async with lab.mounted("second"):
        await lab.settle()
        assert lab.fs.syncer.left().is_nothing
        assert stored(lab) == model.root
        lab.later(60)
        assert await shown(lab) == model.root
        assert lab.fs.volume.moves.all() == []


@settings(
    max_examples=int(os.environ.get("S3MGR_TEST_EXAMPLES", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(steps, min_size=4, max_size=25))
def test_s3_ends_where_the_tree_is_whatever_happens_on_the_way(
    program: list[tuple[str, str, str | bytes, int]],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(play, Path(directory), program, clock=clock)
