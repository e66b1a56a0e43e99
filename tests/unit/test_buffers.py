"""Memory that is lent again and again."""

import threading

from s3mgrd.buffers import LARGEST, SMALLEST, Lender

MIB = 1 << 20


def test_memory_is_lent_again_when_the_last_view_of_it_is_gone() -> None:
    """A slice is a view like any other: while somebody has one, nobody else gets the memory."""
    lender = Lender(8 * MIB)
    view = lender.lend(MIB)
    view[:4] = b"data"
    part = view[:4]
    del view
    assert (lender.lent_bytes, lender.spare_bytes) == (MIB, 0)
    other = lender.lend(MIB)
    other[:4] = b"more"
    assert bytes(part) == b"data"
    del part
    assert (lender.lent_bytes, lender.spare_bytes) == (MIB, MIB)
    again = lender.lend(MIB - 5)
    assert (len(again), bytes(again[:4])) == (MIB - 5, b"data"), "it is other memory"


def test_no_more_is_kept_than_allowed_with_what_is_lent() -> None:
    """What comes back beyond the limit goes to the system; of other sizes first, since this one is wanted now."""
    lender = Lender(4 * MIB)
    large = [lender.lend(2 * MIB) for _ in range(3)]
    small = lender.lend(MIB)
    large.clear()
    assert lender.spare_bytes == 2 * MIB
    more = [lender.lend(MIB) for _ in range(3)]
    more.clear()
    assert lender.spare_bytes == 3 * MIB, "the larger one had to go"
    del small
    assert (lender.lent_bytes, lender.spare_bytes) == (0, 4 * MIB)
    lender.trim()
    assert lender.spare_bytes == 0


def test_what_is_small_or_very_large_is_not_kept() -> None:
    """Every size is served; the lender minds only those that are asked for often and cost something."""
    lender = Lender(64 * MIB)
    views = [lender.lend(size) for size in (0, 1, SMALLEST - 1, LARGEST + 1)]
    assert [len(view) for view in views] == [0, 1, SMALLEST - 1, LARGEST + 1]
    assert lender.lent_bytes == 0
    views.clear()
    assert lender.spare_bytes == 0


def test_a_buffer_may_come_back_in_another_thread() -> None:
    """The block cache writes in a thread, and may be the last that has a buffer."""
    lender = Lender(8 * MIB)
    views = [lender.lend(MIB)]
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    assert (lender.lent_bytes, lender.spare_bytes) == (0, MIB)
