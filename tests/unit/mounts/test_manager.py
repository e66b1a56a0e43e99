"""The verbs: who may do what, what is refused, what happens at the same time."""

from collections.abc import Callable

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from s3mgr.schema import Credentials, LiveOptions, MountPatch, MountRequest, Operation
from s3mgrd.errors import (
    Conflict,
    Denied,
    DirtyData,
    InvalidSpec,
    MountpointBusy,
    MountpointInvalid,
    NameConflict,
    NotFound,
    NotMounted,
    PreconditionFailed,
    S3mgrError,
    SpecConflict,
    Stopping,
    Unavailable,
)
from s3mgrd.worker.protocol import Configure, Flush, Reply, SetCredentials, SetOptions
from tests.fakes.control import (
    ALICE,
    BOB,
    KEYS,
    ROOT,
    Control,
    control,
    make_config,
    make_request,
    make_spec,
)
from tests.fakes.workers import FakeWorker, status_event

NEW_KEYS = Credentials(access_key="AKIANEW", secret_key="other-s3cr3t")


async def test_concurrent_puts_of_one_name_make_one_mount(autojump_clock: MockClock) -> None:
    async with control() as c:
        results: list[tuple[bool, Operation | None]] = []

        async def put() -> None:
            _, created, operation = await c.manager.put_mount(ROOT, "data", make_request())
            results.append((created, operation))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(put)
        assert sorted(created for created, _ in results) == [False] * 9 + [True]
        ids = {operation.id for _, operation in results if operation is not None}
        assert len(ids) == 1
        await c.manager.wait_operation(ids.pop())
        assert c.kernel.log == ["mount data"]
        assert c.get().generation == 1


async def test_concurrent_puts_of_different_mounts_tell_all_but_one_that_it_is_not_theirs(
    autojump_clock: MockClock,
) -> None:
    """Who asked for a mount is never told that it is there when another one is."""
    async with control() as c:
        ended: dict[str, Operation] = {}

        async def put(mountpoint: str) -> None:
            try:
                request = make_request(mountpoint=mountpoint)
                _, _, operation = await c.manager.put_mount(ROOT, "data", request)
            except SpecConflict:
                return
            assert operation is not None
            ended[mountpoint] = await c.manager.wait_operation(operation.id)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(put, f"/mnt/{number}")
        won = [mountpoint for mountpoint, operation in ended.items() if operation.error is None]
        assert won == [c.get().spec.mountpoint]
        errors = [operation.error for operation in ended.values() if operation.error is not None]
        assert all("came in between" in error.detail for error in errors)


async def test_concurrent_puts_of_one_mountpoint_let_one_win(autojump_clock: MockClock) -> None:
    async with control() as c:
        lost: list[S3mgrError] = []

        async def put(name: str) -> None:
            try:
                await c.manager.put_mount(ROOT, name, make_request(name, mountpoint="/mnt/same"))
            except MountpointBusy as error:
                lost.append(error)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(put, f"mount{number}")
        assert len(lost) == 4
        assert len(c.names()) == 1


async def test_the_same_put_again_is_a_success_and_changes_nothing(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        first = await c.mount(credentials=KEYS)
        mount, created, operation = await c.manager.put_mount(ROOT, "data", make_request())
        assert (created, operation) == (False, None)
        assert mount.generation == first.generation
        assert mount.has_credentials  # a request cannot repeat what it cannot read
        assert len(c.workers.started) == 1


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"region": "eu-west-1"}, "/spec/region"),
        ({"endpoint": "http://other:9000"}, "/spec/endpoint"),
        ({"read_only": True}, "/spec/options/read_only"),
        ({"prefix": "a/"}, "/spec/options/prefix"),
        ({"mountpoint": "/mnt/elsewhere"}, "/spec/mountpoint"),
    ],
)
async def test_a_mount_that_is_up_refuses_another_spec(
    changes: dict[str, object], pointer: str, autojump_clock: MockClock
) -> None:
    async with control() as c:
        await c.mount()
        with pytest.raises(SpecConflict) as caught:
            await c.manager.put_mount(ROOT, "data", MountRequest(spec=make_spec(**changes)))
        assert caught.value.pointer == pointer
        assert caught.value.hint


async def test_a_put_with_other_live_options_is_applied_to_the_worker(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        mount, _, operation = await c.manager.put_mount(
            ROOT, "data", make_request(debug=True, labels={"a": "b"})
        )
        assert operation is None
        assert (mount.generation, mount.status.observed_generation) == (2, 2)
        assert c.workers.live("data").asked(SetOptions)[-1].options.debug is True


async def test_an_unmounted_mount_takes_another_spec_unless_it_holds_data(
    autojump_clock: MockClock,
) -> None:
    async with control() as c:
        await c.mount()
        c.workers.dirty["data"] = (1, 10)
        c.workers.live("data").stuck = True
        await _unmount(c, keep=True, timeout_s=1)
        with pytest.raises(DirtyData):
            await c.manager.put_mount(ROOT, "data", make_request("other", mountpoint="/mnt/data"))
        assert (await _unmount(c, keep=True)).state == "succeeded"
        assert c.get().desired == "unmounted"
        _, created, operation = await c.manager.put_mount(
            ROOT, "data", make_request("other", mountpoint="/mnt/data")
        )
        assert not created
        assert operation is not None
        await c.manager.wait_operation(operation.id)
        # What was kept for the other bucket must not be served for this one.
        assert c.workers.forgotten == ["data"]
        assert c.get().spec.bucket == "other"


async def _unmount(c: Control, *, keep: bool, timeout_s: float = 60) -> Operation:
    operation = await c.manager.delete_mount(
        ROOT, "data", mode="clean", timeout_s=timeout_s, keep=keep
    )
    assert operation is not None
    return await c.manager.wait_operation(operation.id)


async def test_preconditions(autojump_clock: MockClock) -> None:
    async with control() as c:
        with pytest.raises(PreconditionFailed):
            await c.manager.put_mount(ROOT, "data", make_request(), if_generation=1)
        await c.mount()
        with pytest.raises(NameConflict):
            await c.manager.put_mount(ROOT, "data", make_request(), only_create=True)
        with pytest.raises(PreconditionFailed):
            await c.manager.put_mount(ROOT, "data", make_request(debug=True), if_generation=2)
        with pytest.raises(PreconditionFailed):
            await c.manager.patch_mount(ROOT, "data", MountPatch(persist=False), if_generation=2)
        await c.manager.patch_mount(ROOT, "data", MountPatch(persist=False), if_generation=1)
        assert c.get().generation == 2


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/mnt/data", MountpointBusy),
        ("/mnt/data/", MountpointBusy),
        ("/mnt/data/below", MountpointInvalid),
        ("/mnt", MountpointInvalid),
        ("/mnt/data2", None),
    ],
)
async def test_mountpoints_are_unique_and_never_nested(
    path: str, kind: type[S3mgrError] | None, autojump_clock: MockClock
) -> None:
    async with control() as c:
        await c.mount("data")
        if kind is None:
            await c.mount("other", mountpoint=path)
            return
        with pytest.raises(kind, match="'data'"):
            await c.manager.put_mount(ROOT, "other", make_request("other", mountpoint=path))


async def test_patch_changes_live_options_labels_and_keys(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount(credentials=KEYS, labels={"a": "1", "b": "2"})
        worker = c.workers.live("data")
        patch = MountPatch(
            options=LiveOptions(metadata_ttl_s=1.0),
            labels={"a": None, "c": "3"},
            credentials=NEW_KEYS,
            persist=False,
        )
        mount = await c.manager.patch_mount(ROOT, "data", patch)
        assert mount.spec.options.metadata_ttl_s == 1.0
        assert mount.spec.labels == {"b": "2", "c": "3"}
        assert not mount.spec.persist
        assert (mount.generation, mount.status.observed_generation) == (2, 2)
        assert worker.asked(SetOptions)[-1].options.metadata_ttl_s == 1.0
        assert worker.asked(SetCredentials)[-1].credentials == NEW_KEYS
        again = await c.manager.patch_mount(ROOT, "data", patch)
        assert again.generation == 2


async def test_patched_keys_make_a_failed_mount_try_at_once(autojump_clock: MockClock) -> None:
    async def picky(worker: FakeWorker, message: object) -> Reply | None:
        if isinstance(message, Configure):
            assert message.credentials is not None
            if message.credentials.access_key != NEW_KEYS.access_key:
                raise Denied("not these")
        return None

    async with control() as c:
        c.workers.script = picky
        await c.manager.put_mount(
            ROOT, "data", make_request(credentials=KEYS), keep_on_failure=True
        )
        await c.wait_state("failed")
        start = trio.current_time()
        await c.manager.patch_mount(ROOT, "data", MountPatch(credentials=NEW_KEYS))
        await c.wait_state("mounted")
        assert trio.current_time() - start < 1


async def test_keys_are_refused_where_the_mount_has_others(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount(anonymous=True)
        with pytest.raises(InvalidSpec) as caught:
            await c.manager.patch_mount(ROOT, "data", MountPatch(credentials=NEW_KEYS))
        assert caught.value.pointer == "/credentials"


async def test_secrets_never_leave(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with control() as c:
        await c.mount(credentials=KEYS)
        await c.manager.patch_mount(ROOT, "data", MountPatch(credentials=NEW_KEYS))
        async with c.manager.subscribe(ROOT, since=0) as events:
            seen = [await anext(events) for _ in range(3)]
        shown = msgspec.json.encode([c.manager.list_mounts(ROOT), seen, c.manager.info()])
        text = shown.decode() + caplog.text + repr(KEYS) + repr((await c.store.load()).mounts)
        for secret in (KEYS.secret_key, NEW_KEYS.secret_key):
            assert secret not in text


Verb = Callable[[Control], object]


async def test_others_see_what_the_configuration_shows(autojump_clock: MockClock) -> None:
    allowed = ("/home/alice",)
    mine = make_request("mine", mountpoint="/home/alice/m", credentials=KEYS)
    for visibility, seen in (("all", ["mine", "root"]), ("own", ["mine"])):
        config = make_config(list_visibility=visibility, allowed_mountpoints=allowed)
        async with control(config=config) as c:
            await c.mount("root")
            await c.manager.put_mount(ALICE, "mine", mine)
            assert [m.name for m in c.manager.list_mounts(ALICE).items] == seen
            if visibility == "own":
                with pytest.raises(NotFound):
                    c.manager.get_mount(ALICE, "root")
                with pytest.raises(NameConflict):
                    await c.manager.put_mount(ALICE, "root", mine)
                assert (
                    await c.manager.delete_mount(ALICE, "root", mode="clean", timeout_s=1) is None
                )
            else:
                with pytest.raises(Denied):
                    await c.manager.delete_mount(ALICE, "root", mode="clean", timeout_s=1)
                with pytest.raises(Denied):
                    await c.manager.mount_logs(BOB, "mine", lines=1, offset=None)
    async with control(config=make_config(list_visibility="none")) as c:
        with pytest.raises(Denied):
            c.manager.list_mounts(ALICE)
        with pytest.raises(Denied):
            c.manager.subscribe(ALICE, since=None)


@pytest.mark.parametrize(
    ("mountpoint", "options", "keys", "refused"),
    [
        ("/home/alice/m", {}, KEYS, None),
        ("/home/alice/m", {"anonymous": True}, None, None),
        ("/home/alicex/m", {}, KEYS, "may not mount on"),
        ("/etc", {}, KEYS, "may not mount on"),
        ("/home/alice/m", {}, None, "own credentials"),
        ("/home/alice/m", {"profile": "root"}, None, "own credentials"),
        ("/home/alice/m", {"uid": 0}, KEYS, "uid or gid"),
        ("/home/alice/m", {"gid": 0}, KEYS, "uid or gid"),
    ],
)
async def test_what_other_users_may_mount(
    mountpoint: str,
    options: dict[str, object],
    keys: Credentials | None,
    refused: str | None,
    autojump_clock: MockClock,
) -> None:
    async with control(config=make_config(allowed_mountpoints=("/home/alice",))) as c:
        request = make_request(mountpoint=mountpoint, credentials=keys, **options)
        if refused is None:
            mount, _, _ = await c.manager.put_mount(ALICE, "data", request)
            assert mount.owner_uid == ALICE.uid
            assert mount.spec.options.uid == ALICE.uid
            assert c.kernel.owners[mountpoint] == ALICE.uid
        else:
            with pytest.raises(Denied, match=refused):
                await c.manager.put_mount(ALICE, "data", request)
    async with control() as c:
        with pytest.raises(Denied, match="only administrators"):
            await c.manager.put_mount(
                ALICE, "data", make_request(mountpoint=mountpoint, credentials=keys, **options)
            )


async def test_observation_needs_a_mount_that_is_up(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        c.workers.live("data").emit(status_event(dirty_bytes=10, dirty_files=1))
        await trio.testing.wait_all_tasks_blocked()
        assert c.get().status.dirty_files == 1
        report = await c.manager.flush_mount(ROOT, "data", timeout_s=5)
        assert report.remaining_files == 0
        assert c.get().status.dirty_files == 0, "the worker's own report comes later"
        assert c.workers.live("data").asked(Flush)[0].timeout_s == 5
        assert (await c.manager.invalidate_mount(ROOT, "data", path="a")).entries == 2
        cache = await c.manager.mount_cache(ROOT, "data", path="", cursor=None, limit=1)
        assert cache.entries_total == 1
        tail = await c.manager.mount_logs(ROOT, "data", lines=5, offset=None)
        assert tail.lines == ["last words in /logs/data.log"]
        await _unmount(c, keep=True)
        with pytest.raises(NotMounted):
            await c.manager.mount_stats(ROOT, "data")
        with pytest.raises(NotMounted):
            await c.manager.restart_mount(ROOT, "data")
        with pytest.raises(NotFound):
            await c.manager.mount_stats(ROOT, "absent")


async def test_a_stopping_daemon_takes_no_new_wishes(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        c.workers.dirty["data"] = (1, 10)
        c.workers.live("data").stuck = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(c.manager.stop)
            await trio.sleep(1)
            assert c.manager.draining() == [("data", 0)]
            assert not c.manager.readiness().ready
            for verb in (
                c.manager.put_mount(ROOT, "other", make_request("other")),
                c.manager.patch_mount(ROOT, "data", MountPatch(persist=False)),
                c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=1),
                c.manager.restart_mount(ROOT, "data"),
            ):
                with pytest.raises(Stopping):
                    await verb


async def test_delete_of_what_does_not_exist_is_a_success(autojump_clock: MockClock) -> None:
    async with control() as c:
        assert await c.manager.delete_mount(ROOT, "x", mode="clean", timeout_s=1) is None


async def test_only_a_drain_can_be_cancelled(autojump_clock: MockClock) -> None:
    async def hang(worker: FakeWorker, message: object) -> Reply | None:
        await trio.sleep_forever()
        return None

    async with control() as c:
        c.workers.script = hang
        _, _, operation = await c.manager.put_mount(ROOT, "data", make_request())
        assert operation is not None
        with pytest.raises(Conflict):
            await c.manager.cancel_operation(ROOT, operation.id)
        with pytest.raises(NotFound):
            await c.manager.cancel_operation(ROOT, "nonsense")


async def test_a_put_while_it_is_unmounted_is_refused(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount()
        c.workers.dirty["data"] = (1, 10)
        c.workers.live("data").stuck = True
        await c.manager.delete_mount(ROOT, "data", mode="clean", timeout_s=100)
        await trio.sleep(1)
        with pytest.raises(Conflict, match="being unmounted"):
            await c.manager.put_mount(ROOT, "data", make_request())


async def test_a_full_disk_refuses_wishes_and_leaves_nothing_half_done(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control() as c:

        async def full(record: object) -> None:
            raise Unavailable("disk full")

        with monkeypatch.context() as patched:
            patched.setattr(c.store, "save_mount", full)
            with pytest.raises(Unavailable):
                await c.manager.put_mount(ROOT, "data", make_request())
        assert c.names() == []
        assert [o.state for o in c.manager.list_operations(ROOT)] == ["cancelled"]
        await c.mount()


async def test_lists_filter_by_state_and_label(autojump_clock: MockClock) -> None:
    async with control() as c:
        await c.mount("one", labels={"team": "a"})
        await c.mount("two", labels={"team": "b"})

        def names(**how: str) -> list[str]:
            return [m.name for m in c.manager.list_mounts(ROOT, **how).items]

        assert names(state="mounted") == ["one", "two"]
        assert names(state="failed") == []
        assert names(label="team") == ["one", "two"]
        assert names(label="team=b") == ["two"]
        assert names(label="team=") == []
