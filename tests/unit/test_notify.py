"""What systemd is told."""

import socket
from pathlib import Path

import pytest

from s3mgrd.notify import Notifier


def test_without_systemd_nothing_happens() -> None:
    notifier = Notifier.from_environment({})
    notifier.ready()
    assert notifier.watchdog_s is None


def test_messages_and_a_clean_environment(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "60000000", "LISTEN_FDS": "1", "A": "b"}
        notifier = Notifier.from_environment(environ)
        assert environ == {"A": "b"}
        assert notifier.watchdog_s == 60
        notifier.ready()
        notifier.status("draining\nlogs: 3 MiB left", extend_s=30)
        notifier.ping()
        notifier.stopping()
        assert [manager.recv(1000).decode() for _ in range(4)] == [
            "READY=1\nSTATUS=",
            "STATUS=draining logs: 3 MiB left\nEXTEND_TIMEOUT_USEC=30000000",
            "WATCHDOG=1",
            "STOPPING=1",
        ]
    notifier.ping()  # nobody listens any more


def test_the_abstract_namespace() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0s3mgr-notify-test")
        Notifier("@s3mgr-notify-test", None).ready()
        assert manager.recv(100).startswith(b"READY=1")


@pytest.mark.parametrize("pid", ["1", "nonsense"])
def test_a_watchdog_meant_for_another_process_is_none_of_ours(pid: str) -> None:
    environ = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": pid}
    assert Notifier.from_environment(environ).watchdog_s is None
