"""What is uploaded is what came from the kernel: bytes that change on the local disk in between are not stored."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mgrd.errors import Corrupt
from s3mgrd.journal import entered
from s3mgrd.journal.entered import Entered, sum_up
from s3mgrd.s3.algorithms import ENTERED, Checksum
from tests.unit.fs.conftest import Lab

MIB = 1 << 20


def checksum_of(data: bytes | bytearray) -> Checksum:
    return Checksum.of(ENTERED, data)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 90), st.binary(min_size=1, max_size=40)),
        max_size=12,
    ),
    st.integers(0, 100),
    st.integers(0, 130),
)
def test_a_checksum_that_is_known_is_that_of_the_bytes(
    steps: list[tuple[bool, int, bytes]], start: int, stop: int
) -> None:
    """Whatever was written in whatever order, and forgotten in between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entered, "BLOCK_BYTES", 16)
        known, content = Entered(), bytearray(130)
        for is_written, offset, data in steps:
            content[offset : offset + len(data)] = data
            if is_written:
                known.add(sum_up(offset, data))
            else:
                known.forget(offset, offset + len(data))
        found = known.of(start, stop)
        assert found in (None, checksum_of(content[start:stop]))


def test_what_was_written_forwards_is_known_by_parts_and_as_a_whole() -> None:
    content = os.urandom(3 * MIB + 12345)
    known = Entered()
    for start in range(0, len(content), 100_000):
        known.add(sum_up(start, content[start : start + 100_000]))
    for start, stop in ((0, len(content)), (MIB, 2 * MIB), (2 * MIB, len(content))):
        assert known.of(start, stop) == checksum_of(content[start:stop])


def test_no_more_is_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entered, "MAX_BLOCKS", 2)
    known = Entered()
    known.add(sum_up(0, bytes(4 * MIB)))
    assert known.of(0, MIB) is None
    assert known.of(2 * MIB, 4 * MIB) == checksum_of(bytes(2 * MIB))


@pytest.mark.parametrize("size", [100_000, 40 * MIB])
async def test_bytes_that_change_on_the_disk_before_they_are_sent_are_not_stored(
    lab: Lab, size: int
) -> None:
    """A PUT, and a multipart upload; the data is kept."""
    async with lab.mounted():
        node = await lab.write("f", b"x" * size, close=False)
        stage = lab.fs.stages.get(node.id)
        assert stage is not None
        os.pwrite(stage.file.data_fd, b"y", 10)
        with pytest.raises(Corrupt):
            await lab.fs.commit(node.id)
        assert lab.stored() == []
        os.pwrite(stage.file.data_fd, b"x", 10)
        await lab.fs.commit(node.id)
        assert lab.data("f") == b"x" * size
