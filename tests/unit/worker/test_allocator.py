"""How a worker keeps memory."""

import gc

from s3mgrd.worker import allocator


def test_python_looks_for_garbage_less_often_and_still_does() -> None:
    before = gc.get_threshold()
    try:
        allocator.look_rarely()
        assert gc.get_threshold() == (allocator.LOOKED_AT, *before[1:])
        assert gc.isenabled()
    finally:
        gc.set_threshold(*before)
