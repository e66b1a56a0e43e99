# over 600 lines because one life of a mount is read as one story
"""A mount from its first attempt to its end, driven on fakes under the autojump clock."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from s3mgr.schema import FlushReport, Operation
from s3mgrd.errors import (
    BucketNotFound,
    CredentialsRejected,
    MountpointInvalid,
    NotMounted,
    S3mgrError,
    Unavailable,
    WorkerLost,
)
from s3mgrd.mounts.link import DISMANTLE_S
from s3mgrd.worker.protocol import (
    Configure,
    Configured,
    Discard,
    Drain,
    Invalidate,
    Reply,
    RestoreConflict,
    Serve,
    Stop,
    SupervisorRequest,
)
from tests.fakes.control import KEYS, ROOT, Control, control, make_config, make_request
from tests.fakes.workers import FakeWorker, FakeWorkers, report, status_event


def failing(kind: type[SupervisorRequest], *errors: S3mgrError):  # type: ignore[no-untyped-def]  # noqa: ANN201 - a Script
    remaining = list(errors)

    async def script(worker: FakeWorker, message: SupervisorRequest) -> Reply | None:
        await trio.lowlevel.checkpoint()
        if isinstance(message, kind) and remaining:
            raise remaining.pop(0)
        return None

    return script


async def slow_to_serve(worker: FakeWorker, message: SupervisorRequest) -> None:
    if isinstance(message, Serve):
        await trio.sleep(1)
    elif not worker.serving and not isinstance(message, Configure):
        raise NotMounted("this worker is not configured")


async def unmount(c: Control, name: str = "data", **how: object) -> Operation:
    options = {"mode": "clean", "timeout_s": 60.0, **how}
    operation = await c.manager.delete_mount(ROOT, name, **options)  # type: ignore[arg-type]  # test data
    assert operation is not None
    return await c.manager.wait_operation(operation.id)


async def test_a_first_mount_probes_before_it_mounts_and_serves_a_new_connection(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        mount = await c.mount(credentials=KEYS)
        worker = c.workers.live("data")
        assert [type(r) for r in worker.requests] == [Configure, Serve]
        configure, serve = worker.requests
        assert isinstance(configure, Configure)
        assert isinstance(serve, Serve)
        assert configure.probe
        assert configure.credentials is not None
        assert configure.credentials.secret_key == KEYS.secret_key
        assert configure.connection_id == c.kernel.live("data").id
        assert not serve.resumed
        assert mount.status.state == "mounted"
        assert mount.status.reason == "ready"
        assert mount.status.worker_pid == worker.pid
        assert mount.status.observed_generation == mount.generation == 1


async def test_spec_is_stored_before_anything_is_done(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.manager.put_mount(ROOT, "data", make_request())
        stored = await c.store.load()
        assert [m.name for m in stored.mounts] == ["data"]
        assert not c.kernel.connections


@pytest.mark.parametrize(
    "error",
    [BucketNotFound("no such bucket"), CredentialsRejected("bad key"), Unavailable("refused")],
    ids=lambda e: type(e).__name__,
)
async def test_a_mount_whose_creator_waits_is_forgotten_when_it_fails(
    autojump_clock: MockClock, error: S3mgrError
) -> None:
    async with control() as c:
        c.workers.script = failing(Configure, error)
        _, created, operation = await c.manager.put_mount(ROOT, "data", make_request())
        assert created
        assert operation is not None
        ended = await c.manager.wait_operation(operation.id)
        assert ended.state == "failed"
        assert ended.error is not None
        assert ended.error.detail == error.detail
        assert c.names() == []
        assert (await c.store.load()).mounts == ()
        assert c.workers.alive() == []
        assert c.workers.forgotten == ["data"]
        await c.mount("data")


async def test_a_failed_mount_that_is_kept_is_tried_again_until_it_works(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        c.workers.script = failing(Configure, *[Unavailable("refused")] * 3)
        _, _, operation = await c.manager.put_mount(
            ROOT, "data", make_request(), keep_on_failure=True
        )
        assert operation is not None
        assert (await c.manager.wait_operation(operation.id)).state == "failed"
        mount = c.get()
        assert mount.status.state == "failed"
        assert mount.status.reason == "bucket-unreachable"
        assert mount.status.retry_at is not None
        assert mount.status.log_tail == ["last words in /logs/data.log"]
        start = trio.current_time()
        await c.wait_state("mounted")
        # 1 + 2 + 4 seconds, each up to a quarter less.
        assert 5 <= trio.current_time() - start <= 8


async def test_what_a_person_must_mend_is_tried_slowly(autojump_clock: MockClock) -> None:
    async with control() as c:
        c.workers.script = failing(Configure, BucketNotFound("no such bucket"))
        await c.manager.put_mount(ROOT, "data", make_request(), keep_on_failure=True)
        await c.wait_state("failed")
        start = trio.current_time()
        await c.wait_state("mounted")
        assert 45 <= trio.current_time() - start <= 61


async def test_a_mount_attempt_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    async def hang(worker: FakeWorker, message: SupervisorRequest) -> Reply | None:
        if isinstance(message, Configure):
            await trio.sleep_forever()
        return None

    async with control(config=make_config(mount_timeout_s=20.0)) as c:
        c.workers.script = hang
        _, _, operation = await c.manager.put_mount(ROOT, "data", make_request())
        assert operation is not None
        start = trio.current_time()
        ended = await c.manager.wait_operation(operation.id)
        # A worker that does not answer Configure does answer Stop here.
        assert trio.current_time() - start <= 21
        assert ended.error is not None
        assert "longer than 20 s" in ended.error.detail
        assert c.workers.alive() == []


async def test_no_dead_mount_stays_of_an_attempt_that_is_given_up_on_a_machine_that_sleeps_meanwhile(
    autojump_clock: MockClock,
) -> None:
    """All time limits are over at once then, that of the unmount as well."""

    async def stop_at_serve(worker: FakeWorker, message: SupervisorRequest) -> Reply | None:
        if isinstance(message, Serve):
            c.kernel.live("data").stall_s = DISMANTLE_S + 1
            await trio.sleep_forever()
        return None

    async with control(config=make_config(mount_timeout_s=20.0)) as c:
        c.workers.script = stop_at_serve
        _, _, operation = await c.manager.put_mount(ROOT, "data", make_request())
        assert operation is not None
        assert (await c.manager.wait_operation(operation.id)).state == "failed"
        (connection,) = c.kernel.connections
        assert not connection.mounted
        assert connection.closed


async def test_a_bad_mountpoint_is_refused_at_once_and_nothing_is_stored(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        c.kernel.refuse["/mnt/data"] = MountpointInvalid("not empty", hint="empty it")
        with pytest.raises(MountpointInvalid):
            await c.manager.put_mount(ROOT, "data", make_request())
        assert c.names() == []


async def test_a_dead_worker_is_replaced_on_the_same_connection_at_once(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        connection = c.kernel.live("data")
        first = c.workers.live("data")
        start = trio.current_time()
        first.die()
        await c.wait_state("degraded")
        await c.wait_state("mounted")
        assert trio.current_time() == start
        second = c.workers.live("data")
        configure, serve = second.requests
        assert isinstance(configure, Configure)
        assert isinstance(serve, Serve)
        assert not configure.probe
        assert configure.connection_id == connection.id
        assert serve.resumed
        assert serve.resend
        assert c.kernel.live("data") is connection
        status = c.get().status
        assert (status.reason, status.restarts) == ("resumed", 1)


@pytest.mark.parametrize("wait_s", [0.5, 1.5])
async def test_a_question_waits_for_the_next_worker(
    autojump_clock: MockClock, wait_s: float
) -> None:
    """Whoever asks while a worker is replaced, or was just asking it, learns nothing of its death."""
    async with control(config=make_config(restart_backoff_s=1.0)) as c:
        await c.mount()
        c.workers.live("data").die()
        await c.wait_state("degraded")
        await c.wait_state("mounted")
        c.workers.script = slow_to_serve
        c.workers.live("data").die()
        await c.wait_state(
            "degraded"
        )  # for a second, and another in which the next worker is there already
        await trio.sleep(wait_s)
        await c.manager.invalidate_mount(ROOT, "data", path="")
        asked = c.workers.live("data")
        assert asked.asked(Invalidate) == [Invalidate(path="")]

        async def die(worker: FakeWorker, message: SupervisorRequest) -> None:
            await trio.lowlevel.checkpoint()
            if isinstance(message, Invalidate | RestoreConflict) and worker is asked:
                worker.die()
                await trio.sleep_forever()

        c.workers.script = die
        await c.manager.invalidate_mount(ROOT, "data", path="x")
        assert c.workers.live("data") is not asked
        assert c.workers.live("data").asked(Invalidate) == [Invalidate(path="x")]
        asked = c.workers.live("data")
        with pytest.raises(WorkerLost):  # it may have made the file: only who asked can tell
            await c.manager.restore_conflict(ROOT, "data", 1, path=None, partial=False)


async def test_further_deaths_wait_longer_and_past_the_limit_the_mount_fails(
    autojump_clock: MockClock,
) -> None:
    config = make_config(
        restart_limit=4, restart_window_s=600.0, restart_backoff_s=1.0, restart_backoff_max_s=3.0
    )
    async with control(config=config) as c:
        await c.mount()
        connection = c.kernel.live("data")
        waits = []
        for _ in range(4):
            start = trio.current_time()
            c.workers.live("data").die()
            await c.wait_state("degraded")
            await c.wait_state("mounted")
            waits.append(trio.current_time() - start)
        assert waits == pytest.approx([0, 1, 2, 3])
        c.workers.live("data").die(status=3, signal=None)
        mount = await c.wait_state("failed")
        assert mount.status.reason == "worker-crash-loop"
        assert "exited with status 3" in mount.status.message
        assert mount.status.log_tail == ["last words in /logs/data.log"]
        assert mount.desired == "mounted"
        assert connection.aborted
        assert connection.closed
        assert not connection.mounted
        await trio.sleep(10_000)
        assert c.get().status.state == "failed"  # until somebody asks
        operation = await c.manager.restart_mount(ROOT, "data")
        assert (await c.manager.wait_operation(operation.id)).state == "succeeded"
        assert c.get().status.state == "mounted"


async def test_deaths_outside_the_window_do_not_count(autojump_clock: MockClock) -> None:
    async with control(config=make_config(restart_limit=1, restart_window_s=60.0)) as c:
        await c.mount()
        for _ in range(5):
            c.workers.live("data").die()
            await c.wait_state("degraded")
            await c.wait_state("mounted")
            await trio.sleep(61)
        assert c.get().status.restarts == 5


async def test_a_replacement_that_fails_counts_as_a_death(autojump_clock: MockClock) -> None:
    async with control(config=make_config(restart_limit=3, restart_window_s=600.0)) as c:
        await c.mount()
        c.workers.script = failing(Configure, *[Unavailable("journal busy")] * 10)
        c.workers.live("data").die()
        mount = await c.wait_state("failed")
        assert mount.status.reason == "worker-crash-loop"
        assert len(c.workers.started) == 1 + 3


async def test_a_replacement_comes_up_when_the_credentials_service_is_down(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        c.workers.grant_errors = [Unavailable("no answer from 169.254.169.254")]
        c.workers.live("data").die()
        await c.wait_state("degraded")
        await c.wait_state("mounted")
        configure = c.workers.live("data").configured
        assert configure is not None
        assert configure.credentials is not None
        assert configure.credentials.access_key == "found"


async def test_without_resend_a_death_means_a_clean_remount(autojump_clock: MockClock) -> None:
    async with control() as c:
        c.kernel.can_resend = False
        await c.mount()
        old = c.kernel.live("data")
        c.workers.live("data").die()
        await c.wait_state("mounting")
        await c.wait_state("mounted")
        assert old.aborted
        assert old.closed
        assert c.kernel.live("data") is not old
        assert c.get().status.restarts == 1


async def test_an_unmount_from_outside_is_respected_and_its_uploads_finished(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        c.workers.dirty["data"] = (2, 20)
        worker.stuck = True
        c.kernel.live("data").unmount_outside()
        worker.end_session()
        mount = await c.wait_state("draining")
        assert mount.status.reason == "unmounted-outside"
        await trio.sleep(3600)
        assert worker.is_alive  # as long as S3 does not have everything
        assert c.get().desired == "unmounted"
        worker.stuck = False
        mount = await c.wait_state("unmounted")
        assert mount.status.reason == "unmounted-outside"
        assert not worker.is_alive
        await trio.sleep(3600)
        assert not c.kernel.is_mounted("data")
        await c.mount()  # mounted again when somebody asks


async def test_a_lazy_unmount_from_outside_serves_who_still_has_files_open(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        c.kernel.live("data").unmount_outside()
        await c.wait_state("draining")
        await trio.sleep(1000)
        assert worker.asked(Drain) == []
        worker.end_session()
        await c.wait_state("unmounted")
        assert len(worker.asked(Drain)) == 1


async def test_a_mount_of_fstab_is_forgotten_when_it_is_unmounted_outside(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount(origin="fstab", persist=False)
        c.kernel.live("data").unmount_outside()
        c.workers.live("data").end_session()
        await c.wait_gone()
        assert c.workers.forgotten == ["data"]


async def test_unmount_takes_the_tree_first_then_drains_then_stops(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        c.workers.dirty["data"] = (1, 10)
        ended = await unmount(c)
        assert ended.state == "succeeded"
        assert c.kernel.log == ["mount data", "unmount data"]
        assert [type(r) for r in worker.requests[2:]] == [Drain, Stop]
        assert c.names() == []
        assert c.workers.forgotten == ["data"]
        assert (await c.store.load()).mounts == ()


async def test_a_busy_tree_refuses_and_stays_mounted(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        c.kernel.live("data").busy = True
        ended = await unmount(c)
        assert ended.state == "failed"
        assert ended.error is not None
        assert "in use" in ended.error.detail
        assert "--lazy" in ended.error.hint
        mount = c.get()
        assert (mount.status.state, mount.desired) == ("mounted", "mounted")
        assert c.workers.live("data").asked(Drain) == []
        c.workers.live("data").die()  # it is tended as before
        await c.wait_state("degraded")
        await c.wait_state("mounted")


async def test_a_lazy_unmount_detaches_a_busy_tree_and_drains_when_its_users_are_gone(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        worker, connection = c.workers.live("data"), c.kernel.live("data")
        connection.busy = True
        operation = await c.manager.delete_mount(ROOT, "data", mode="lazy", timeout_s=600)
        assert operation is not None
        await c.wait_state("draining")
        await trio.sleep(100)
        assert not connection.mounted
        assert worker.is_alive
        worker.end_session()
        assert (await c.manager.wait_operation(operation.id)).state == "succeeded"


async def test_what_cannot_be_drained_in_time_is_kept_with_the_spec(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        c.workers.dirty["data"] = (3, 300)
        worker.stuck = True
        start = trio.current_time()
        ended = await unmount(c, timeout_s=60.0)
        assert trio.current_time() - start == pytest.approx(60)
        assert ended.state == "failed"
        assert ended.error is not None
        assert ended.error.slug == "dirty-data"
        assert "3 files with 300 bytes" in ended.error.detail
        mount = c.get()
        assert (mount.status.state, mount.status.reason) == ("unmounted", "undrained")
        assert (mount.status.dirty_files, mount.status.dirty_bytes) == (3, 300)
        assert mount.desired == "unmounted"
        assert c.workers.forgotten == []
        assert c.workers.alive() == []
        # The next unmount uploads it with a worker of its own, without mounting.
        assert (await unmount(c)).state == "succeeded"
        assert c.kernel.log.count("mount data") == 1
        assert c.names() == []


async def test_a_deleted_file_that_s3_still_has_is_not_forgotten(autojump_clock: MockClock) -> None:
    """Changes of names and attributes are as unsaved as data: the journal that holds them is kept."""

    async def refuse(worker: FakeWorker, message: SupervisorRequest) -> Reply | None:
        if isinstance(message, Drain):
            await trio.sleep(message.timeout_s)
            return report(
                FlushReport(
                    uploaded_files=0, remaining_files=0, remaining_bytes=0, remaining_operations=2
                )
            )
        return None

    async def has_operations(worker: FakeWorker, message: SupervisorRequest) -> Reply | None:
        await trio.lowlevel.checkpoint()
        if isinstance(message, Configure):
            return Configured(journal_files=0, journal_bytes=0, journal_operations=2)
        return None

    async with control() as c:
        await c.mount()
        c.workers.scripts["data"] = refuse
        ended = await unmount(c)
        assert ended.error is not None
        assert ended.error.slug == "dirty-data"
        assert ended.error.detail == "S3 does not have 2 changes of names and attributes of 'data'"
        assert c.workers.forgotten == []
        del c.workers.scripts["data"]
        c.workers.script = has_operations
        # The next unmount finds a journal without files, and does not take it for an empty one either.
        assert (await unmount(c)).state == "succeeded"
        assert c.workers.started[-1].asked(Drain)


async def test_discard_throws_away_what_is_left(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        c.workers.dirty["data"] = (3, 300)
        worker.stuck = True
        assert (await unmount(c, mode="discard")).state == "succeeded"
        assert [type(r) for r in worker.requests[2:]] == [Discard, Stop]
        assert c.names() == []


async def test_a_stronger_unmount_takes_over_a_drain_that_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        c.workers.dirty["data"] = (1, 10)
        worker.stuck = True
        first = await c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=3600)
        await trio.sleep(10)
        again = await c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=3600)
        assert first is not None
        assert again is not None
        assert again.id == first.id
        assert (await unmount(c, mode="discard")).state == "succeeded"
        assert (await c.manager.wait_operation(first.id)).state == "failed"
        assert c.names() == []


async def test_cancelling_a_drain_keeps_what_is_left(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        c.workers.dirty["data"] = (1, 10)
        c.workers.live("data").stuck = True
        operation = await c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=3600)
        assert operation is not None
        await trio.sleep(10)
        ended = await c.manager.cancel_operation(ROOT, operation.id)
        assert ended.state == "cancelled"
        mount = c.get()
        assert (mount.status.state, mount.status.reason) == ("unmounted", "cancelled")
        assert mount.status.dirty_bytes == 10


async def test_a_drain_reports_progress(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        c.workers.dirty["data"] = (1, 1000)
        worker.stuck = True
        worker.emit(status_event(dirty_bytes=1000, dirty_files=1))
        await trio.testing.wait_all_tasks_blocked()
        operation = await c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=60)
        assert operation is not None
        await trio.sleep(1)
        worker.emit(status_event(dirty_bytes=400, dirty_files=1))
        await trio.testing.wait_all_tasks_blocked()
        progress = c.manager.get_operation(ROOT, operation.id).progress
        assert progress is not None
        assert (progress.done, progress.total) == (600, 1000)


async def test_a_worker_that_dies_while_it_drains_is_replaced(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        c.workers.dirty["data"] = (1, 10)
        c.workers.live("data").stuck = True
        operation = await c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=600)
        assert operation is not None
        await trio.sleep(5)
        c.workers.live("data").die()
        assert (await c.manager.wait_operation(operation.id)).state == "succeeded"
        second = c.workers.started[-1]
        assert [type(r) for r in second.requests] == [Configure, Drain, Stop]
        assert not second.asked(Configure)[0].probe


async def test_a_worker_that_dies_while_the_kernel_unmounts_is_replaced(
    autojump_clock: MockClock,
) -> None:
    """The kernel writes dirty pages out before it lets go, and waits for a worker for ever."""
    async with control() as c:
        await c.mount()
        connection = c.kernel.live("data")
        connection.hang = True
        operation = await c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=600)
        assert operation is not None
        await trio.sleep(1)
        c.workers.live("data").die()
        await trio.sleep(1)
        assert c.workers.live("data").asked(Serve)[0].resumed
        ended = await c.manager.wait_operation(operation.id)
        assert ended.state == "failed"  # the unmount itself never ended
        assert c.get().status.state == "mounted"


async def test_a_worker_that_does_not_stop_is_killed(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        c.workers.live("data").deaf_to_stop = True
        start = trio.current_time()
        assert (await unmount(c)).state == "succeeded"
        assert trio.current_time() - start == pytest.approx(10)
        assert c.workers.alive() == []


async def test_unmount_while_mounting_interrupts_the_attempt(autojump_clock: MockClock) -> None:
    async def hang(worker: FakeWorker, message: SupervisorRequest) -> Reply | None:
        if isinstance(message, Configure):
            await trio.sleep_forever()
        return None

    async with control() as c:
        c.workers.script = hang
        _, _, mounting = await c.manager.put_mount(ROOT, "data", make_request())
        assert mounting is not None
        await c.wait_state("mounting")
        assert (await unmount(c)).state == "succeeded"
        assert (await c.manager.wait_operation(mounting.id)).state == "failed"
        assert c.names() == []
        assert c.workers.alive() == []


async def test_restart_replaces_the_worker_and_keeps_the_connection(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        first, connection = c.workers.live("data"), c.kernel.live("data")
        operation = await c.manager.restart_mount(ROOT, "data")
        assert (await c.manager.wait_operation(operation.id)).state == "succeeded"
        assert first.asked(Stop)
        second = c.workers.live("data")
        assert second is not first
        assert second.asked(Serve)[0].resumed
        assert c.kernel.live("data") is connection


async def test_restart_of_a_failed_mount_tries_at_once(autojump_clock: MockClock) -> None:
    async with control() as c:
        c.workers.script = failing(Configure, BucketNotFound("no such bucket"))
        await c.manager.put_mount(ROOT, "data", make_request(), keep_on_failure=True)
        await c.wait_state("failed")
        start = trio.current_time()
        operation = await c.manager.restart_mount(ROOT, "data")
        assert (await c.manager.wait_operation(operation.id)).state == "succeeded"
        assert trio.current_time() - start < 1


async def test_what_the_worker_reports_is_shown(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        worker.emit(
            status_event(health="degraded", reason="s3-unreachable", message="no", dirty_bytes=5)
        )
        mount = await c.wait_state("degraded")
        assert (mount.status.reason, mount.status.dirty_bytes) == ("s3-unreachable", 5)
        worker.emit(status_event())
        mount = await c.wait_state("mounted")
        assert mount.status.dirty_bytes == 0


async def test_a_mount_whose_bucket_is_gone_is_failed_and_goes_on_when_it_is_back(
    autojump_clock: MockClock,
) -> None:
    """It is served all the while: nobody mounts it anew, and it can be flushed, restarted and changed."""
    gone = status_event(health="bucket-gone", reason="bucket-gone", message="no", dirty_bytes=5)
    async with control() as c:
        await c.mount()
        worker = c.workers.live("data")
        worker.emit(gone)
        status = (await c.wait_state("failed")).status
        assert (status.reason, status.message, status.dirty_bytes) == ("bucket-gone", "no", 5)
        assert "goes on by itself" in status.hint
        assert status.retry_at is None
        await trio.sleep(1000)
        assert c.workers.live("data") is worker
        await c.manager.flush_mount(ROOT, "data", timeout_s=1.0)

        worker.emit(status_event())
        assert (await c.wait_state("mounted")).status.hint == ""

        # Whoever replaces its worker asks again; the next one finds out by itself.
        worker.emit(gone)
        await c.wait_state("failed")
        operation = await c.manager.restart_mount(ROOT, "data")
        assert (await c.manager.wait_operation(operation.id)).state == "succeeded"
        assert (await c.wait_state("mounted")).status.reason == "resumed"

        c.workers.live("data").emit(gone)
        await c.wait_state("failed")
        c.workers.live("data").die()
        await c.wait_state("degraded")
        await c.wait_state("mounted")

        c.workers.live("data").emit(gone)
        await c.wait_state("failed")
        assert (await unmount(c)).state == "succeeded"
        assert not c.kernel.is_mounted("data")


async def test_what_a_worker_reports_before_it_serves_is_shown(autojump_clock: MockClock) -> None:
    """It says once how it is, perhaps before the mount is up; the next worker begins anew."""
    trouble = [status_event(health="degraded", reason="metadata-damaged", message="set aside")]

    async def script(worker: FakeWorker, message: SupervisorRequest) -> None:
        if isinstance(message, Configure) and trouble:
            worker.emit(trouble.pop())
            await trio.sleep(1)

    async with control() as c:
        c.workers.script = script
        await c.mount()
        assert (await c.wait_state("degraded")).status.reason == "metadata-damaged"
        trouble.append(status_event(health="degraded", reason="metadata-damaged"))
        c.workers.live("data").die()
        await trio.sleep(5)
        assert (await c.wait_state("degraded")).status.reason == "metadata-damaged"
        c.workers.live("data").die()
        await trio.sleep(5)
        assert (await c.wait_state("mounted")).status.reason == "resumed"


async def test_a_worker_gets_keys_when_it_asks(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount("one", credentials=KEYS)
        await c.mount("two")
        await c.mount("three", anonymous=True)
        sources = [c.workers.live(n).source for n in ("one", "two", "three")]
        assert all(sources)
        assert (await sources[0]()).secret_key == KEYS.secret_key  # type: ignore[misc]  # asserted above
        assert (await sources[1]()).access_key == "found"  # type: ignore[misc]  # asserted above
        with pytest.raises(Unavailable):
            await sources[2]()  # type: ignore[misc]  # asserted above
        configured = c.workers.live("three").configured
        assert configured is not None
        assert configured.credentials is None


async def test_stop_drains_all_mounts_in_parallel_and_keeps_them_wanted(
    autojump_clock: MockClock,
) -> None:
    workers = FakeWorkers()
    async with control(workers=workers, config=make_config(shutdown_timeout_s=50.0)) as c:
        for name in ("one", "two", "three"):
            await c.mount(name)
            workers.dirty[name] = (1, 10)
        c.kernel.live("two").busy = True
        workers.live("one").stuck = True
        workers.live("three").stuck = True
        start = trio.current_time()
        await c.manager.stop()
        assert trio.current_time() - start == pytest.approx(50)
        assert workers.alive() == []
        assert not any(c.kernel.is_mounted(n) for n in ("one", "two", "three"))
        stored = {m.name: m for m in (await c.store.load()).mounts}
        assert {m.desired for m in stored.values()} == {"mounted"}
        assert not stored["two"].may_be_dirty
        assert stored["one"].may_be_dirty
        assert stored["three"].may_be_dirty


async def test_a_second_signal_cuts_the_drain_short(autojump_clock: MockClock) -> None:
    async with control(config=make_config(shutdown_timeout_s=500.0)) as c:
        await c.mount()
        c.workers.dirty["data"] = (1, 10)
        c.workers.live("data").stuck = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(c.manager.stop)
            await trio.sleep(10)
            start = trio.current_time()
            c.manager.hurry()
        assert trio.current_time() - start < 1


async def test_a_tree_that_does_not_unmount_does_not_hold_the_stop_up(
    autojump_clock: MockClock,
) -> None:
    async with control(config=make_config(shutdown_timeout_s=20.0)) as c:
        await c.mount()
        c.kernel.live("data").hang = True
        start = trio.current_time()
        await c.manager.stop()
        assert trio.current_time() - start <= 40
        assert not c.kernel.is_mounted("data")
