"""Every route, as a client sees it."""

from datetime import UTC, datetime
from typing import Any

import pytest

from s3mgr.schema import Problem
from s3mgrd.mounts.service import Principal
from tests.fakes.service import FakeService
from tests.unit.api.client import Client

SPEC = {"bucket": "b", "mountpoint": "/mnt/logs"}
REQUEST = {"spec": SPEC}


def arguments(service: FakeService, method: str) -> dict[str, Any]:
    """Return the arguments of the last call of *method*, without the caller."""
    found = [args for name, args in service.calls if name == method]
    return {k: v for k, v in found[-1].items() if k != "who"}


async def test_the_list_carries_the_cursor_to_watch_from(
    client: Client, service: FakeService
) -> None:
    service.add_mount("logs")
    service.emit("mount.added", "logs")
    answer = await client.get("/v1/mounts")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert [m["name"] for m in answer.json["items"]] == ["logs"]
    assert answer.json["cursor"] == 1


async def test_the_list_is_filtered_by_state_and_label(
    client: Client, service: FakeService
) -> None:
    service.add_mount("logs")
    answer = await client.get("/v1/mounts?state=failed&label=team%3Dx")
    assert answer.json["items"] == []
    assert arguments(service, "list_mounts") == {"state": "failed", "label": "team=x"}


async def test_a_mount_is_read_with_its_generation_as_entity_tag(
    client: Client, service: FakeService
) -> None:
    service.add_mount("logs")
    answer = await client.get("/v1/mounts/logs")
    assert (answer.status, answer.headers["etag"]) == (200, '"1"')
    assert answer.json["spec"]["bucket"] == "b"
    assert datetime.fromisoformat(answer.json["created_at"]).tzinfo == UTC
    assert answer.json["created_at"].endswith("Z")


async def test_a_fresh_entity_tag_does_not_hide_a_changed_status(
    client: Client, service: FakeService
) -> None:
    """The tag is the spec's generation; the status changes without it, so 304 would lie."""
    service.add_mount("logs")
    assert (await client.get("/v1/mounts/logs", If_None_Match='"1"')).status == 200


async def test_put_creates_waits_and_says_where(client: Client, service: FakeService) -> None:
    answer = await client.request("PUT", "/v1/mounts/logs", REQUEST)
    assert answer.status == 201
    assert answer.headers["location"] == "/v1/mounts/logs"
    assert answer.headers["etag"] == '"1"'
    assert not arguments(service, "put_mount")["keep_on_failure"]


async def test_put_of_the_same_spec_again_is_a_success_that_changes_nothing(
    client: Client, service: FakeService
) -> None:
    await client.request("PUT", "/v1/mounts/logs", REQUEST)
    answer = await client.request("PUT", "/v1/mounts/logs", REQUEST)
    assert (answer.status, answer.headers["etag"]) == (200, '"1"')
    assert "location" not in answer.headers
    assert len(service.operations) == 1


async def test_put_that_is_not_settled_in_time_answers_202_and_goes_on(
    client: Client, service: FakeService
) -> None:
    service.auto_end = None
    answer = await client.request("PUT", "/v1/mounts/logs?wait_s=0.01", REQUEST)
    assert (answer.status, answer.json["state"]) == (202, "running")
    assert answer.headers["location"] == "/v1/operations/op-1"
    assert "preference-applied" not in answer.headers
    assert not arguments(service, "put_mount")["keep_on_failure"]
    assert service.operations["op-1"].state == "running"


@pytest.mark.parametrize("prefer", ["respond-async", "return=minimal, Respond-Async; x=1"])
async def test_a_caller_that_prefers_not_to_wait_is_answered_at_once(
    client: Client, service: FakeService, prefer: str
) -> None:
    """Whoever does not wait would not learn of a failure, so the mount is kept to be looked at."""
    service.auto_end = None
    answer = await client.request("PUT", "/v1/mounts/logs", REQUEST, headers={"Prefer": prefer})
    assert (answer.status, answer.headers["preference-applied"]) == (202, "respond-async")
    assert arguments(service, "put_mount")["keep_on_failure"]


async def test_a_failed_operation_that_was_waited_for_answers_with_its_problem(
    client: Client, service: FakeService
) -> None:
    service.auto_end = "failed"
    service.auto_error = Problem(
        type="urn:s3mgr:problem:credentials-rejected",
        title="S3 rejects the credentials",
        status=502,
        detail="the secret key is wrong",
        hint="check it",
        mount="logs",
    )
    answer = await client.request("PUT", "/v1/mounts/logs", REQUEST)
    assert (answer.status, answer.slug) == (502, "credentials-rejected")
    assert (answer.json["hint"], answer.json["mount"]) == ("check it", "logs")
    assert answer.json["instance"] == "urn:uuid:" + answer.headers["x-request-id"]


async def test_a_failed_operation_with_an_impossible_status_is_a_500(
    client: Client, service: FakeService, expected_errors: set[str]
) -> None:
    expected_errors.add("s3mgrd.api.app")
    service.auto_end = "failed"
    service.auto_error = Problem(type="x", title="t", status=99999, detail="d")
    answer = await client.request("PUT", "/v1/mounts/logs", REQUEST)
    assert answer.status == 500
    service.auto_error = None
    answer = await client.request("PUT", "/v1/mounts/other", REQUEST)
    assert (answer.status, answer.slug) == (500, "internal")


async def test_a_cancelled_operation_that_was_waited_for_is_a_conflict(
    client: Client, service: FakeService
) -> None:
    service.add_mount("logs")
    service.auto_end = "cancelled"
    answer = await client.request("DELETE", "/v1/mounts/logs")
    assert (answer.status, answer.slug) == (409, "conflict")


async def test_if_none_match_creates_only(client: Client, service: FakeService) -> None:
    create = {"If-None-Match": "*"}
    assert (await client.request("PUT", "/v1/mounts/x", REQUEST, headers=create)).status == 201
    assert arguments(service, "put_mount")["only_create"]
    answer = await client.request("PUT", "/v1/mounts/x", REQUEST, headers=create)
    assert (answer.status, answer.slug, answer.json["mount"]) == (412, "precondition-failed", "x")
    assert answer.json["hint"] == "choose another name"
    answer = await client.request("PUT", "/v1/mounts/x", REQUEST, headers={"If-None-Match": '"1"'})
    assert (answer.status, answer.slug) == (400, "invalid-request")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ('"1"', 200),
        ('"7", "1"', 200),
        (' "7","1" ', 200),
        ("*", 200),
        ('"2"', 412),
        ('W/"1"', 412),
        ('"01"', 412),
        ('"a,b"', 412),
        ('""', 412),
        ("1", 400),
        ('"1', 400),
        ('"1" "1"', 400),
        ('"1",', 400),
    ],
)
async def test_if_match_replaces_only_that_generation(
    client: Client, service: FakeService, header: str, status: int
) -> None:
    service.add_mount("logs")
    requests: list[tuple[str, object]] = [
        ("PATCH", {"persist": False}),
        ("PUT", {"spec": {"bucket": "other", "mountpoint": "/mnt/logs"}}),
        ("DELETE", None),
    ]
    for method, body in requests:
        service.add_mount("logs")
        answer = await client.request(method, "/v1/mounts/logs", body, headers={"If-Match": header})
        assert answer.status == (204 if (method, status) == ("DELETE", 200) else status), method
        if status == 412:
            assert answer.slug == "precondition-failed"
            assert service.mounts["logs"].generation == 1


async def test_if_match_never_creates(client: Client, service: FakeService) -> None:
    answer = await client.request("PUT", "/v1/mounts/x", REQUEST, headers={"If-Match": "*"})
    assert (answer.status, answer.slug) == (412, "precondition-failed")
    assert service.mounts == {}


async def test_patch_changes_live_fields(client: Client, service: FakeService) -> None:
    service.add_mount("logs")
    answer = await client.request(
        "PATCH",
        "/v1/mounts/logs",
        {"options": {"debug": True}, "labels": {"team": None}},
        headers={"Content-Type": "application/merge-patch+json; charset=utf-8"},
    )
    assert (answer.status, answer.headers["etag"]) == (200, '"2"')
    patch = arguments(service, "patch_mount")["patch"]
    assert (patch.options.debug, patch.labels) == (True, {"team": None})


async def test_delete_unmounts_and_is_idempotent(client: Client, service: FakeService) -> None:
    service.add_mount("logs")
    for _ in range(2):
        answer = await client.request("DELETE", "/v1/mounts/logs")
        assert (answer.status, answer.body) == (204, b"")
        assert "content-type" not in answer.headers
    assert service.mounts == {}


async def test_delete_passes_on_how_to_unmount(client: Client, service: FakeService) -> None:
    service.add_mount("logs")
    service.auto_end = None
    answer = await client.request(
        "DELETE", "/v1/mounts/logs?mode=discard&timeout_s=1.5&keep=true&wait_s=0"
    )
    assert (answer.status, answer.json["kind"]) == (202, "unmount")
    assert arguments(service, "delete_mount") == {
        "name": "logs",
        "mode": "discard",
        "timeout_s": 1.5,
        "keep": True,
    }


@pytest.mark.parametrize("body", [None, {}, {"timeout_s": 7}])
async def test_flush_reports_what_is_left(
    client: Client, service: FakeService, body: object
) -> None:
    service.add_mount("logs")
    answer = await client.request("POST", "/v1/mounts/logs/flush", body)
    assert (answer.status, answer.json["uploaded_files"]) == (200, 2)
    assert arguments(service, "flush_mount")["timeout_s"] == (7 if body else 300)


async def test_invalidate_takes_a_path(client: Client, service: FakeService) -> None:
    service.add_mount("logs")
    answer = await client.request("POST", "/v1/mounts/logs/invalidate", {"path": "a/b"})
    assert answer.json == {"listings": 1, "entries": 3}
    assert arguments(service, "invalidate_mount") == {"name": "logs", "path": "a/b"}


async def test_restart_waits_for_the_new_worker(client: Client, service: FakeService) -> None:
    service.add_mount("logs")
    answer = await client.request("POST", "/v1/mounts/logs/restart")
    assert (answer.status, answer.json["state"]) == (200, "succeeded")
    service.auto_end = None
    answer = await client.request("POST", "/v1/mounts/logs/restart?wait_s=0")
    assert (answer.status, answer.headers["location"]) == (202, "/v1/operations/op-2")


async def test_a_repeated_restart_with_the_same_key_does_not_restart_again(
    client: Client, service: FakeService
) -> None:
    service.add_mount("logs")
    service.add_mount("other")
    key = {"Idempotency-Key": "k1"}
    first = await client.request("POST", "/v1/mounts/logs/restart", headers=key)
    again = await client.request("POST", "/v1/mounts/logs/restart", headers=key)
    assert first.json["id"] == again.json["id"] == "op-1"
    other = await client.request("POST", "/v1/mounts/other/restart", headers=key)
    assert other.json["id"] == "op-2"
    del service.operations["op-1"]
    service.operations["op-9"] = service.operations["op-2"]
    late = await client.request("POST", "/v1/mounts/logs/restart", headers=key)
    assert late.json["id"] == "op-3"


@pytest.mark.parametrize("action", ["flush", "invalidate", "restart"])
@pytest.mark.parametrize(("key", "status"), [("k", 200), ("k" * 255, 200), ("k" * 256, 400)])
async def test_actions_accept_a_key_of_reasonable_length(
    client: Client, service: FakeService, action: str, key: str, status: int
) -> None:
    service.add_mount("logs")
    answer = await client.request(
        "POST", f"/v1/mounts/logs/{action}", headers={"Idempotency-Key": key}
    )
    assert answer.status == status


async def test_stats_cache_and_logs_are_read(client: Client, service: FakeService) -> None:
    service.add_mount("logs")
    assert (await client.get("/v1/mounts/logs/stats")).json["worker_pid"] == 4711
    cache = await client.get("/v1/mounts/logs/cache?path=%C3%A4&cursor=c&limit=5")
    assert (cache.json["cursor"], cache.json["items"][0]["path"]) == ("next", "a/ä")
    assert arguments(service, "mount_cache") == {
        "name": "logs",
        "path": "ä",
        "cursor": "c",
        "limit": 5,
    }
    logs = await client.get("/v1/mounts/logs/logs?lines=3&offset=17")
    assert logs.json == {"lines": ["one", "two"], "offset": 8}
    assert arguments(service, "mount_logs") == {"name": "logs", "lines": 3, "offset": 17}


async def test_conflict_copies_are_listed_restored_and_discarded(
    client: Client, service: FakeService
) -> None:
    service.add_mount("logs")
    for number in (7, 8):
        service.add_conflict(number, "a")
    page = await client.get("/v1/mounts/logs/conflicts?limit=1")
    assert (page.json["total"], page.json["cursor"]) == (2, "7")
    assert page.json["items"][0]["reason"] == "replaced"
    rest = await client.get("/v1/mounts/logs/conflicts?cursor=7")
    assert [c["id"] for c in rest.json["items"]] == [8]
    restored = await client.request("POST", "/v1/mounts/logs/conflicts/7/restore")
    assert restored.json == {"path": "a.conflict", "size_bytes": 3}
    assert arguments(service, "restore_conflict") == {
        "name": "logs",
        "conflict_id": 7,
        "path": None,
        "partial": False,
    }
    for path in ("7", "0", "x", "-1", "9" * 30):
        gone = await client.request("DELETE", f"/v1/mounts/logs/conflicts/{path}")
        assert gone.status == 404
    done = await client.request("DELETE", "/v1/mounts/logs/conflicts/8")
    assert (done.status, done.body) == (204, b"")


async def test_archived_objects_are_listed_and_restored(
    client: Client, service: FakeService
) -> None:
    service.add_mount("logs")
    for path in ("d/a", "d/b", "e"):
        service.add_archived(path)
    page = await client.get("/v1/mounts/logs/archived?path=d&limit=1")
    assert [(o["path"], o["state"]) for o in page.json["items"]] == [("d/a", "archived")]
    rest = await client.get(f"/v1/mounts/logs/archived?path=d&cursor={page.json['cursor']}")
    assert ([o["path"] for o in rest.json["items"]], rest.json["cursor"]) == (["d/b"], None)
    body = {"path": "d", "days": 2, "tier": "Bulk", "limit": 1}
    done = await client.request("POST", "/v1/mounts/logs/archived/restore", body)
    assert (done.status, done.json["begun"], done.json["failed"]) == (200, 1, 0)
    assert done.json["cursor"] is not None
    every = await client.request("POST", "/v1/mounts/logs/archived/restore")
    assert (every.status, every.json["begun"]) == (200, 3)
    for wrong in ({"days": 0}, {"tier": "fast"}, {"path": "d", "force": True}, {"limit": 101}):
        refused = await client.request("POST", "/v1/mounts/logs/archived/restore", wrong)
        assert refused.status in (400, 422)
    assert (await client.get("/v1/mounts/logs/archived?limit=0")).status == 422


async def test_the_upload_queue_is_listed_paused_resumed_and_hurried(
    client: Client, service: FakeService
) -> None:
    service.add_mount("logs")
    for path in ("a", "b"):
        service.add_queued(path)
    page = await client.get("/v1/mounts/logs/queue?limit=1")
    assert (page.json["total_files"], page.json["total_bytes"]) == (2, 6)
    assert [(f["path"], f["state"]) for f in page.json["items"]] == [("a", "waiting")]
    rest = await client.get(f"/v1/mounts/logs/queue?cursor={page.json['cursor']}")
    assert ([f["path"] for f in rest.json["items"]], rest.json["cursor"]) == (["b"], None)
    paused = await client.request("POST", "/v1/mounts/logs/queue/pause")
    assert (paused.status, paused.json["is_paused"], paused.json["items"]) == (200, True, [])
    resumed = await client.request("POST", "/v1/mounts/logs/queue/resume")
    assert resumed.json["is_paused"] is False
    hurried = await client.request("POST", "/v1/mounts/logs/queue/hurry", {"path": "b"})
    assert (hurried.status, service.queue[0].path) == (200, "b")
    assert arguments(service, "hurry_upload") == {"name": "logs", "path": "b"}
    gone = await client.request("POST", "/v1/mounts/logs/queue/hurry", {"path": "x"})
    assert (gone.status, gone.slug) == (404, "not-found")
    for body in ({}, {"path": ""}, {"path": "b", "force": True}):
        refused = await client.request("POST", "/v1/mounts/logs/queue/hurry", body)
        assert refused.status in (400, 422)
    assert (await client.get("/v1/mounts/logs/queue?limit=101")).status == 422


async def test_operations_are_listed_read_waited_for_and_cancelled(
    client: Client, service: FakeService
) -> None:
    service.add_mount("logs")
    service.auto_end = None
    await client.request("DELETE", "/v1/mounts/logs?wait_s=0&keep=true")
    await client.request("POST", "/v1/mounts/logs/restart?wait_s=0")
    listed = await client.get("/v1/operations?mount=logs")
    assert [o["id"] for o in listed.json["items"]] == ["op-1", "op-2"]
    assert (await client.get("/v1/operations?mount=none")).json == {"items": []}
    running = await client.get("/v1/operations/op-1?wait_s=0.01")
    assert (running.status, running.json["state"]) == (200, "running")
    cancelled = await client.request("DELETE", "/v1/operations/op-1")
    assert cancelled.json["state"] == "cancelled"
    refused = await client.request("DELETE", "/v1/operations/op-2")
    assert (refused.status, refused.slug) == (409, "conflict")
    for bad in ("none", "%2e%2e", "a%20b"):
        assert (await client.get(f"/v1/operations/{bad}")).slug == "not-found"


async def test_info_says_what_the_daemon_is(client: Client) -> None:
    answer = await client.get("/v1/info")
    assert (answer.status, answer.json["version"]) == (200, "9.9")


async def test_livez_and_readyz_answer_by_status(client: Client, service: FakeService) -> None:
    assert (await client.get("/livez")).status == 204
    ready = await client.get("/readyz")
    assert (ready.status, ready.json["ready"]) == (200, True)
    service.ready = type(ready_ := service.ready)(
        ready=False, checks={**ready_.checks, "reconciled": False}
    )
    answer = await client.get("/readyz")
    assert (answer.status, answer.slug, answer.headers["retry-after"]) == (503, "not-ready", "5")
    assert "reconciled" in answer.json["detail"]
    assert "store" not in answer.json["detail"]


async def test_the_caller_is_known_by_peer_credentials(
    client: Client, service: FakeService
) -> None:
    await client.get("/v1/mounts")
    who: Principal = service.calls[-1][1]["who"]
    assert who.is_admin
    assert who.pid > 0
    assert who.gid in who.groups


async def test_head_is_get_without_a_body(client: Client, service: FakeService) -> None:
    service.add_mount("logs")
    for target in ("/v1/mounts", "/v1/mounts/logs", "/v1/events", "/openapi.json"):
        answer = await client.request("HEAD", target)
        assert (answer.status, answer.body) == (200, b""), target
    assert service.subscriber_count == 0
