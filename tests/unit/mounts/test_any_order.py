"""Whatever happens in whatever order: no illegal transition, no leak, no hang, nothing lost."""

import logging
from contextlib import suppress

import trio
from hypothesis import given, note, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from s3mgrd.errors import S3mgrError, Unavailable
from s3mgrd.state.store import memory_store
from s3mgrd.worker.protocol import Configure, Reply, SupervisorRequest
from tests.fakes.control import ROOT, Control, control, make_config, make_request
from tests.fakes.workers import FakeWorker

ACTIONS = (
    "put",
    "put keep",
    "delete",
    "delete keep",
    "lazy",
    "discard",
    "restart",
    "cancel",
    "die",
    "umount",
    "session end",
    "write",
    "stuck",
    "unstuck",
    "busy",
    "idle",
    "s3 down",
    "s3 up",
    "no resend",
    "deaf",
    "wait a moment",
    "wait long",
)
CONFIG = make_config(shutdown_timeout_s=30.0, restart_limit=2)
# Draining, killing and unmounting each have their own limits; together they stay below this.
STOP_LIMIT_S = 300.0


class Chaos:
    """Does one action after another to the mount ``data``."""

    def __init__(self, c: Control) -> None:
        self.c = c
        self.s3_is_down = False
        c.workers.script = self.answer

    async def answer(self, worker: FakeWorker, message: SupervisorRequest) -> Reply | None:
        if self.s3_is_down and isinstance(message, Configure) and message.probe:
            raise Unavailable("S3 is down")
        return None

    async def do(self, action: str) -> None:
        c = self.c
        workers = [w for w in c.workers.started if w.is_alive]
        connections = [x for x in c.kernel.connections if not x.closed]
        match action.split():
            case ["put", *keep]:
                request = make_request()
                await c.manager.put_mount(ROOT, "data", request, keep_on_failure=bool(keep))
            case ["delete", *keep]:
                await c.manager.delete_mount(
                    ROOT, "data", mode="clean", timeout_s=20, keep=bool(keep)
                )
            case ["lazy" | "discard" as mode]:
                await c.manager.delete_mount(ROOT, "data", mode=mode, timeout_s=20)
            case ["restart"]:
                await c.manager.restart_mount(ROOT, "data")
            case ["cancel"]:
                for operation in c.manager.list_operations(ROOT):
                    if (operation.state, operation.kind) == ("running", "unmount"):
                        await c.manager.cancel_operation(ROOT, operation.id)
            case ["die"]:
                for worker in workers:
                    worker.die()
            case ["umount"]:
                for connection in connections:
                    connection.unmount_outside()
            case ["session", "end"]:
                for worker in workers:
                    worker.end_session()
            case ["write"]:
                if any(w.serving for w in workers) and c.kernel.is_mounted("data"):
                    c.workers.dirty["data"] = (1, 10)
            case ["stuck" | "unstuck" as how]:
                for worker in workers:
                    worker.stuck = how == "stuck"
            case ["deaf"]:
                for worker in workers:
                    worker.deaf_to_stop = True
            case ["busy" | "idle" as how]:
                for connection in connections:
                    connection.busy = how == "busy"
            case ["s3", how]:
                self.s3_is_down = how == "down"
            case ["no", "resend"]:
                c.kernel.can_resend = False
            case ["wait", "long"]:
                await trio.sleep(1000)
            case ["wait", *_]:
                await trio.sleep(0.3)


class Complaints(logging.Handler):
    """Collects what should never be logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage() + str(record.exc_info))


async def live_through(actions: list[str], complaints: Complaints) -> None:
    # Nobody waits for a clock in a deadlock, so virtual time would stand still without this.
    with trio.fail_after(1e6), memory_store() as store:
        async with control(store=store, config=CONFIG) as c:
            chaos = Chaos(c)
            for action in actions:
                with suppress(S3mgrError):  # refused, as it may be
                    await chaos.do(action)
                await trio.lowlevel.checkpoint()
                assert c.workers.dirty.get("data", (0, 0))[0] == 0 or c.names() == ["data"], (
                    "a mount was forgotten with data that S3 does not have"
                )
            start = trio.current_time()
            await c.manager.stop()
            assert trio.current_time() - start <= STOP_LIMIT_S
            assert c.workers.alive() == []
            assert not c.kernel.is_mounted("data")
            assert all(x.closed for x in c.kernel.connections)
            running = [o for o in c.manager.list_operations(ROOT) if o.state == "running"]
            assert running == []
            left = c.workers.dirty.get("data", (0, 0))
            kept = {m.name: m for m in (await store.load()).mounts}
            # What may be in a journal is known after the end, so that the next daemon never forgets it.
            assert left == (0, 0) or kept["data"].may_be_dirty
    assert complaints.lines == []


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(ACTIONS), max_size=25))
def test_any_order_of_events_ends_well(actions: list[str]) -> None:
    note(f"{actions}")
    complaints = Complaints()
    logging.getLogger("s3mgrd").addHandler(complaints)
    try:
        trio.run(live_through, ["put", *actions], complaints, clock=MockClock(autojump_threshold=0))
    finally:
        logging.getLogger("s3mgrd").removeHandler(complaints)
