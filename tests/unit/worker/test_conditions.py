"""What was found out about a store is believed for a day."""

from pathlib import Path

from s3mgrd.cache.database import open_database
from s3mgrd.s3.port import Checksums, Conditions
from s3mgrd.worker.conditions import BELIEVED_NS, NAME, Found, Memory

FOUND = Found(
    Conditions(put_if_match="supported", delete="unsupported"),
    Checksums("supported", "CRC64NVME"),
)


def test_what_was_found_out_is_believed_for_a_day(tmp_path: Path) -> None:
    database, _ = open_database(tmp_path / "mount.db")
    assert Memory(database).recall(5) == Found()
    Memory(database).keep(FOUND, 5)
    assert Memory(database).recall(5) == FOUND
    assert Memory(database).recall(BELIEVED_NS + 4) == FOUND
    assert Memory(database).recall(BELIEVED_NS + 5) == Found()
    assert Memory(database).recall(4) == Found(), "the clock was set back"
    database.close()


def test_what_is_known_already_does_not_become_younger(tmp_path: Path) -> None:
    """Otherwise a store that is used every day would never be asked again."""
    database, _ = open_database(tmp_path / "mount.db")
    Memory(database).keep(FOUND, 5)
    memory = Memory(database)
    memory.keep(memory.recall(6), 6)
    assert Memory(database).recall(BELIEVED_NS + 5) == Found()
    database.close()


def test_what_another_version_wrote_is_found_out_again(tmp_path: Path) -> None:
    database, _ = open_database(tmp_path / "mount.db")
    database.set_meta(NAME, '{"found_ns": 5, "conditions": "yes"}')
    assert Memory(database).recall(5) == Found()
    database.close()
