# over 600 lines because every command is held to the same conventions side by side
"""Every command against a fake daemon: what is asked, what is said, how it exits."""

import csv
import io
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from s3mgr.cli import output
from s3mgr.schema import (
    CacheEntry,
    ConditionSupport,
    Event,
    FailedUpload,
    FlushReport,
    LogTail,
    MountList,
    PendingRename,
    Progress,
)

from .conftest import Run
from .fake_daemon import (
    CACHE,
    INFO,
    WHEN,
    Answer,
    FakeDaemon,
    Request,
    make_mount,
    make_operation,
    make_problem,
)

RENAME = PendingRename(
    id="7-1", source="d/", target="e/", since=datetime(2026, 1, 2, tzinfo=UTC),
    objects_done=3, objects_total=9, bytes_done=1 << 20, bytes_total=3 << 20, error="no",
)  # fmt: skip
FAILED = FailedUpload(path="a/b.bin", size_bytes=2048, error="AccessDenied", since=WHEN, tries=3)


def location(operation_id: str = "op-1") -> dict[str, str]:
    return {"Location": f"/v1/operations/{operation_id}"}


class TestMount:
    def test_sends_the_spec_and_says_so(
        self, daemon: FakeDaemon, run: Run, clean_environment: Path
    ) -> None:
        result = run("mount", "s3://data/in/put/", "mnt", "--region", "eu-west-1", "-o", "ro,uid=7")
        assert (result.code, result.out) == (0, "")
        assert result.err == f"mounted 'data-in-put' (data/in/put) on {clean_environment}/mnt\n"
        (put,) = daemon.sent("PUT")
        assert (put.path, put.query) == ("/v1/mounts/data-in-put", {"wait_s": "30.0"})
        spec = put.json["spec"]
        assert spec["bucket"] == "data"
        assert spec["mountpoint"] == f"{clean_environment}/mnt"
        assert (spec["region"], spec["origin"], spec["persist"]) == ("eu-west-1", "cli", True)
        assert spec["endpoint"] is None
        assert spec["options"]["prefix"] == "in/put/"
        assert (spec["options"]["read_only"], spec["options"]["uid"]) == (True, 7)
        assert put.json["credentials"] is None

    def test_a_store_without_conditions_is_warned_of(self, daemon: FakeDaemon, run: Run) -> None:
        mount = make_mount(conditional_writes="unsupported")
        daemon.answer("PUT", "/v1/mounts/data", Answer(201, mount))
        result = run("mount", "-q", "data", "mnt")
        assert result.code == 0
        assert "warning: the endpoint does not evaluate the conditions of writes" in result.err

    def test_the_same_again_is_a_success_and_says_so(self, daemon: FakeDaemon, run: Run) -> None:
        assert run("mount", "data", "mnt").code == 0
        result = run("mount", "data", "mnt")
        assert result.code == 0
        assert "'data' (data) on " in result.err
        assert "is mounted already" in result.err
        assert list(daemon.mounts) == ["data"]

    def test_a_changed_option_is_not_called_the_same(self, daemon: FakeDaemon, run: Run) -> None:
        run("mount", "data", "mnt")
        result = run("mount", "data", "mnt", "-o", "concurrency=4")
        assert (result.code, "changed the options of" in result.err) == (0, True)

    def test_a_bucket_mounted_twice_gets_a_numbered_name(
        self, daemon: FakeDaemon, run: Run
    ) -> None:
        run("mount", "data", "one")
        run("mount", "data", "two")
        run("mount", "data", "two")
        assert list(daemon.mounts) == ["data", "data-2"]

    def test_a_made_up_name_that_is_taken_meanwhile_is_given_up(
        self, daemon: FakeDaemon, run: Run
    ) -> None:
        daemon.refuse(
            "PUT", "/v1/mounts/data", make_problem("precondition-failed", 412, "It exists.")
        )
        assert run("mount", "data", "mnt").code == 0
        assert [put.path for put in daemon.sent("PUT")] == [
            "/v1/mounts/data",
            "/v1/mounts/data-2",
        ]
        assert all(put.headers["if-none-match"] == "*" for put in daemon.sent("PUT"))

    def test_a_given_name_is_never_changed(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount("mine", mountpoint="/elsewhere"))
        problem = make_problem("name-conflict", 409, "The name 'mine' is taken.")
        daemon.refuse("PUT", "/v1/mounts/mine", problem)
        result = run("mount", "data", "mnt", "--name", "mine")
        assert result.code == 6
        assert result.err == (
            "s3mgr: cannot mount 'mine': the name 'mine' is taken\n"
            "hint: choose another name with --name\n"
        )
        assert "if-none-match" not in daemon.sent("PUT")[0].headers

    def test_waits_for_the_operation(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.answer("PUT", "/v1/mounts/data", Answer(202, make_operation("running"), location()))
        daemon.operations = [make_operation("running"), make_operation()]
        result = run("mount", "data", "mnt", "--timeout", "50s")
        assert (result.code, result.err.startswith("mounted 'data'")) == (0, True)
        assert daemon.sent("PUT")[0].query == {"wait_s": "30.0"}

    def test_time_is_up(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.answer("PUT", "/v1/mounts/data", Answer(202, make_operation("running"), location()))
        daemon.operations = [make_operation("running")]
        result = run("mount", "data", "mnt", "--timeout", "0.1s")
        assert result.code == 7
        assert "mounting 'data': not done in time; the daemon carries on" in result.err
        assert "hint: follow it: s3mgr show data\n" in result.err

    def test_a_failed_operation_is_told_like_a_refusal(self, daemon: FakeDaemon, run: Run) -> None:
        problem = make_problem("bucket-not-found", 404, "Bucket 'data' not found.", hint="Look.")
        daemon.answer("PUT", "/v1/mounts/data", Answer(202, make_operation("running"), location()))
        daemon.operations = [make_operation("failed", error=problem)]
        result = run("mount", "data", "mnt")
        assert result.code == 4
        assert result.err == "s3mgr: cannot mount 'data': bucket 'data' not found\nhint: Look.\n"

    def test_no_wait_prefers_an_early_answer(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.answer("PUT", "/v1/mounts/data", Answer(202, make_operation("running"), location()))
        result = run("mount", "data", "mnt", "--no-wait")
        assert result.code == 0
        assert "in the background; see s3mgr show data" in result.err
        (put,) = daemon.sent("PUT")
        assert (put.query, put.headers["prefer"]) == ({}, "respond-async")
        assert not [r for r in daemon.sent("GET") if "operations" in r.path]

    def test_quiet_says_nothing_and_json_is_data(self, daemon: FakeDaemon, run: Run) -> None:
        result = run("mount", "data", "mnt", "-q", "--json")
        assert (result.code, result.err) == (0, "")
        assert json.loads(result.out)["name"] == "data"

    @pytest.mark.parametrize(
        ("args", "line"),
        [
            (("http://x/y", "m"), "cannot mount 'http://x/y': 'http://x/y' is not a bucket"),
            (("/data", "m"), "cannot mount '/data': '/data' names no bucket"),
            (("s3://", "m"), "cannot mount 's3://': 's3://' names no bucket"),
            (("data", ""), "cannot mount 'data': the directory is empty"),
            (("data", "m\udcff"), "cannot mount 'data': the directory's name is not valid UTF-8"),
            (("d/a", "m", "-o", "prefix=b"), "cannot mount 'd/a': the prefix after the bucket and"),
            (("d", "m", "--read-only", "-o", "rw"), "cannot mount 'd': --read-only contradicts -o"),
            (("d", "m", "--debug", "-o", "debug=no"), "cannot mount 'd': --debug contradicts -o"),
            (("d" * 300, "m"), f"cannot mount '{'d' * 300}': the request is invalid: Expected"),
            (("d", "m", "--timeout", "soon"), "invalid value for '--timeout': 'soon' is not a dur"),
            (("d", "m", "--timeout", "25h"), "invalid value for '--timeout': '25h' is longer than"),
            (("d",), "missing argument 'DIR'"),
            (("d", "m", "--bogus"), "no such option"),
        ],
    )
    def test_wrong_input_is_refused_before_the_daemon_is_asked(
        self, daemon: FakeDaemon, run: Run, args: tuple[str, ...], line: str
    ) -> None:
        result = run("mount", *args)
        assert result.code == 2
        assert result.err.startswith(f"s3mgr: {line}")
        assert daemon.requests == []

    def test_describes_every_option(self, run: Run) -> None:
        result = run("mount", "--help-options")
        assert result.code == 0
        for name in ("prefix", "part_size_bytes", "write_mode"):
            assert f"\n{name}  (" in "\n" + result.out


class TestUnmount:
    def test_by_name_and_by_directory(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount("a"), make_mount("b", mountpoint=os.path.realpath("here")))
        result = run("umount", "a", "./here/", "b")
        assert result.code == 0
        assert result.err == (
            "unmounted 'a' from /mnt/a; everything is in S3\n"
            f"unmounted 'b' from {os.path.realpath('here')}; everything is in S3\n"
        )
        assert daemon.mounts == {}
        assert daemon.sent("DELETE")[0].query == {
            "mode": "clean",
            "timeout_s": "300.0",
            "wait_s": "0.3",
        }

    def test_says_what_was_drained(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount())
        daemon.answer(
            "DELETE", "/v1/mounts/logs", Answer(202, make_operation("running"), location())
        )
        done = Progress(done=3 << 20, total=3 << 20, unit="bytes")
        daemon.operations = [make_operation("running"), make_operation(progress=done)]
        result = run("unmount", "logs", "--keep")
        assert result.err == (
            "unmounted 'logs' from /mnt/logs; 3.0 MiB uploaded, everything is in S3; "
            "its definition is kept (s3mgr show logs)\n"
        )
        assert daemon.sent("DELETE")[0].query["keep"] == "true"

    def test_says_what_stays_in_the_journal(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount(dirty_bytes=2048, dirty_files=1, failed_uploads=[FAILED]))
        problem = make_problem("dirty-data", 409, "Data is left.")
        daemon.refuse("DELETE", "/v1/mounts/logs", problem)
        result = run("unmount", "logs", "--timeout", "1m")
        assert result.code == 8
        assert "a/b.bin" in result.err
        assert (
            "s3mgr: 'logs' is unmounted from /mnt/logs, but S3 does not have 2.0 KiB in 1 file; "
            "it stays in the journal\n"
            "hint: mount it again to upload them, or s3mgr unmount --discard logs\n"
        ) in result.err
        assert daemon.sent("DELETE")[0].query["timeout_s"] == "60.0"

    def test_one_failure_does_not_stop_the_others(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount("a"), make_mount("b"))
        daemon.refuse("DELETE", "/v1/mounts/a", make_problem("conflict", 409, "It is busy."))
        result = run("unmount", "--all")
        assert result.code == 8
        assert "s3mgr: cannot unmount 'a': it is busy\n" in result.err
        assert list(daemon.mounts) == ["a"]

    @pytest.mark.parametrize(
        ("args", "code", "text"),
        [
            (("nope",), 4, "cannot unmount 'nope': there is no mount 'nope'"),
            (("/no/pe",), 4, "cannot unmount '/no/pe': nothing of ours is mounted on /no/pe"),
            (("nope", "--ignore-missing"), 0, "'nope' is not mounted"),
            (("nope", "logs"), 8, "unmounted 'logs'"),
            (("nope", "nada"), 4, "there is no mount 'nada'"),
            ((), 2, "give either NAME|DIR or --all"),
            (("logs", "--all"), 2, "give either NAME|DIR or --all"),
            (("logs", "--lazy", "--discard"), 2, "--lazy and --discard exclude each other"),
            (("logs", "--discard"), 2, "--discard throws away data, and nobody can be asked"),
        ],
    )
    def test_missing_mounts_and_contradictions(
        self, daemon: FakeDaemon, run: Run, args: tuple[str, ...], code: int, text: str
    ) -> None:
        daemon.add(make_mount())
        result = run("unmount", *args)
        assert (result.code, text in result.err) == (code, True)

    def test_nothing_to_do_is_a_success(self, daemon: FakeDaemon, run: Run) -> None:
        result = run("unmount", "--all")
        assert (result.code, result.err) == (0, "nothing is mounted\n")

    def test_all_leaves_what_belongs_to_others(self, daemon: FakeDaemon, run: Run) -> None:
        mine = msgspec.structs.replace(make_mount("mine"), owner_uid=os.geteuid())
        daemon.add(mine, msgspec.structs.replace(make_mount("theirs"), owner_uid=12345))
        refusal = make_problem("not-permitted", 403, "It belongs to another user.")
        daemon.refuse("DELETE", "/v1/mounts/theirs", refusal)
        result = run("unmount", "--all")
        assert (result.code, list(daemon.mounts)) == (0, ["theirs"])
        assert "'theirs' belongs to another user and stays\n" in result.err
        assert run("unmount", "theirs").code == 5

    @pytest.mark.parametrize("flags", [("--lazy",), ("--discard", "--yes")])
    def test_passes_the_mode(self, daemon: FakeDaemon, run: Run, flags: tuple[str, ...]) -> None:
        daemon.add(make_mount())
        assert run("unmount", "logs", *flags).code == 0
        assert daemon.sent("DELETE")[0].query["mode"] == flags[0].removeprefix("--")

    def test_shows_progress_on_a_terminal(
        self, daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("s3mgr.cli.waiting.is_terminal", lambda _stream: True)
        monkeypatch.setattr("s3mgr.cli.waiting.PROGRESS_AFTER_S", 0.0)
        daemon.add(make_mount())
        daemon.answer(
            "DELETE", "/v1/mounts/logs", Answer(202, make_operation("running"), location())
        )
        half = Progress(done=1 << 20, total=3 << 20, unit="bytes")
        daemon.operations = [make_operation("running", progress=half), make_operation()]
        assert "draining 'logs'… 2.0 MiB left" in run("unmount", "logs").err


class TestLs:
    @pytest.fixture(autouse=True)
    def two_mounts(self, daemon: FakeDaemon) -> None:
        daemon.add(
            make_mount(
                "data", bucket="big", prefix="in/", dirty_bytes=1536, message="slow: \x1b[2J"
            ),
            make_mount("logs", state="failed", reason="worker-lost"),
        )

    def test_a_table_with_whole_values_in_a_pipe(self, run: Run) -> None:
        assert run("ls").out == (
            "NAME  STATE    BUCKET  MOUNTPOINT  DIRTY  SINCE                 MESSAGE\n"
            "data  mounted  big/in  /mnt/data    1536  2024-05-17T08:30:00Z  slow: \\x1b[2J\n"
            "logs  failed   logs    /mnt/logs       0  2024-05-17T08:30:00Z  worker-lost\n"
        )

    def test_a_table_for_people_on_a_terminal(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("s3mgr.cli.commands.ls.is_terminal", lambda _stream: True)
        monkeypatch.setattr("s3mgr.cli.commands.ls.terminal_width", lambda: 60)
        result = run("ls", "--color", "always")
        assert "1.5 KiB" in result.out
        assert "\x1b[31mfailed\x1b[0m" in result.out
        assert "slow: \\x1…" in result.out

    @pytest.mark.parametrize(
        ("args", "expected"),
        [
            (("-q",), "data\nlogs\n"),
            (("logs", "-q"), "logs\n"),
            (("/mnt/logs", "-q"), "logs\n"),
            (("--format", "{name}:{mountpoint}"), "data:/mnt/data\nlogs:/mnt/logs\n"),
            (("--format", "{name:>6}|"), "  data|\n  logs|\n"),
            (("--format", "{name}\\t{worker_pid}."), "data\t.\nlogs\t.\n"),
            (
                ("--no-header", "logs"),
                "logs  failed  logs  /mnt/logs  0  2024-05-17T08:30:00Z  worker-lost\n",
            ),
        ],
    )
    def test_chosen_forms(self, run: Run, args: tuple[str, ...], expected: str) -> None:
        result = run("ls", *args)
        assert (result.code, result.out) == (0, expected)

    def test_json_is_the_answer_of_the_api_with_fields_we_do_not_know(
        self, daemon: FakeDaemon, run: Run
    ) -> None:
        document = msgspec.to_builtins(MountList(items=list(daemon.mounts.values()), cursor=7))
        document["items"][0]["from_the_future"] = {"x": 1}
        daemon.answer("GET", "/v1/mounts", Answer(200, document))
        assert json.loads(run("ls", "--json").out) == json.loads(msgspec.json.encode(document))
        assert json.loads(run("ls", "--json", "data").out)["items"] == json.loads(
            msgspec.json.encode(document["items"][:1])
        )
        assert run("ls", "-q").out == "data\nlogs\n"

    def test_json_lines_and_csv_have_stable_names(self, run: Run) -> None:
        lines = [json.loads(line) for line in run("ls", "--format", "jsonl").out.splitlines()]
        assert lines[0] == {
            "name": "data",
            "state": "mounted",
            "bucket": "big",
            "prefix": "in/",
            "mountpoint": "/mnt/data",
            "dirty_bytes": 1536,
            "dirty_files": 0,
            "since": "2024-05-17T08:30:00Z",
            "reason": "",
            "message": "slow: \x1b[2J",
            "endpoint": None,
            "region": "us-east-1",
            "owner_uid": 0,
            "generation": 1,
            "restarts": 0,
            "worker_pid": None,
        }
        rows = list(csv.DictReader(io.StringIO(run("ls", "--format", "csv").out)))
        assert [row["name"] for row in rows] == ["data", "logs"]
        assert list(rows[0]) == list(lines[0])

    @pytest.mark.parametrize(
        ("template", "text"),
        [
            ("{nome}", "--format knows no field 'nome'; there are name, state"),
            ("{name.__class__}", "--format knows no field 'name.__class__'"),
            ("{0}", "--format knows no field '0'"),
            ("{name", "is not a template"),
            ("{name:d}", "is not a template"),
            ("yaml", "--format 'yaml' is none of table, json, jsonl, csv"),
        ],
    )
    def test_a_bad_template_is_a_usage_error(self, run: Run, template: str, text: str) -> None:
        result = run("ls", "--format", template)
        assert (result.code, text in result.err) == (2, True)

    def test_missing_names_are_an_error_and_the_others_are_shown(self, run: Run) -> None:
        result = run("ls", "-q", "logs", "nope")
        assert (result.code, result.out) == (4, "logs\n")
        assert "s3mgr: cannot list 'nope': there is no such mount\n" in result.err

    def test_an_empty_list_is_a_header(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.mounts.clear()
        result = run("ls")
        assert (result.code, len(result.out.splitlines())) == (0, 1)
        assert run("ls", "--no-header").out == ""


class TestShow:
    @pytest.mark.parametrize(
        ("summary", "each", "text"),
        [
            ("unknown", {}, "unknown"),
            (
                "supported",
                dict.fromkeys(("put_if_match", "put_if_absent"), "supported"),
                "supported",
            ),
            (
                "unsupported",
                {"put_if_match": "unsupported", "delete": "unsupported"},
                "unsupported (not supported: put-if-match, delete)",
            ),
        ],
    )
    def test_what_the_store_does_with_conditions(
        self, daemon: FakeDaemon, run: Run, summary: str, each: dict[str, Any], text: str
    ) -> None:
        daemon.add(make_mount(conditional_writes=summary, conditions=ConditionSupport(**each)))
        assert f"conditional writes:  {text}\n" in run("show", "logs").out

    def test_conflict_copies_are_counted(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount(conflicts=2, conflict_bytes=2048))
        assert "conflict copies:     2.0 KiB in 2 files (s3mgr conflicts logs)\n" in (
            run("show", "logs").out
        )

    def test_everything_that_a_person_needs(self, daemon: FakeDaemon, run: Run) -> None:
        mount = make_mount(
            prefix="in/",
            state="degraded",
            reason="s3-unreachable",
            message="connection refused",
            worker_pid=77,
            worker_memory_bytes=50 << 20,
            restarts=2,
            dirty_bytes=2048,
            dirty_files=1,
            failed_uploads=[FAILED],
            renames=[RENAME],
            log_tail=["last words"],
        )
        spec = msgspec.structs.replace(
            mount.spec, options=msgspec.structs.replace(mount.spec.options, read_only=True)
        )
        daemon.add(msgspec.structs.replace(mount, spec=spec))
        result = run("show", "/mnt/logs")
        assert result.code == 0
        for text in (
            "state:               degraded for ",
            "message:             connection refused",
            "prefix:              in/",
            "worker:              pid 77, 50.0 MiB, restarted 2 times",
            "not in S3 yet:       2.0 KiB in 1 file",
            "credentials:         given with the mount (not shown)",
            "  read_only = true",
            "  d/    e/      3/9  1.0 MiB/3.0 MiB  2026-01-02T00:00:00Z  no",
            "  a/b.bin  2.0 KiB      3  2024-05-17T08:30:00Z  -      AccessDenied",
            "  last words",
        ):
            assert text in result.out

    def test_json_is_the_answer_of_the_api(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount(worker_pid=77))
        shown = json.loads(run("show", "logs", "--json").out)
        assert shown == json.loads(msgspec.json.encode(daemon.mounts["logs"]))
        assert shown["status"]["worker_pid"] == 77

    def test_no_such_mount(self, daemon: FakeDaemon, run: Run) -> None:
        result = run("show", "nope")
        assert (result.code, result.out) == (4, "")
        assert result.err == "s3mgr: there is no mount 'nope'\nhint: see what there is: s3mgr ls\n"


class TestCache:
    def test_totals_and_entries(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount())
        result = run("cache", "logs", "/mnt/logs/a")
        assert result.code == 0
        assert "metadata hits:              30 of 40 (75 %)\n" in result.out
        assert "listing hits:               1 of 2 (50 %)\n" in result.out
        entry = (
            "   17  file  2.0 KiB       0     0       0   3s    26s  request  known       a/b.txt\n"
        )
        assert entry in result.out
        assert "a//b\\n                    empty component\n" in result.out
        assert "nothing                no\n" in result.out
        assert daemon.requests[-1].query == {"path": "a", "limit": "100"}

    def test_follows_the_pages_up_to_the_limit(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount())

        def page(request: Request) -> Answer:
            first = int(request.query.get("cursor", "0"))
            items = [
                CacheEntry(path=f"f{n}", kind="file", inode=n, size_bytes=0)
                for n in range(first, min(first + int(request.query["limit"]), 2500))
            ]
            cursor = None if not items or items[-1].inode == 2499 else str(items[-1].inode + 1)
            bare = msgspec.structs.replace(CACHE, hidden=[], absent=[])
            return Answer(200, msgspec.structs.replace(bare, items=items, cursor=cursor))

        daemon.script["GET", "/v1/mounts/logs/cache"] = page
        assert len(json.loads(run("cache", "logs", "--all", "--json").out)["items"]) == 2500
        some = json.loads(run("cache", "logs", "--limit", "1200", "--json").out)
        assert (len(some["items"]), some["cursor"]) == (1200, "1200")
        assert "list them with --all" in run("cache", "logs").err
        assert json.loads(run("cache", "logs", "--limit", "0", "--json").out)["items"] == []


class TestActions:
    def test_flush(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount())
        result = run("flush", "logs", "--timeout", "90")
        assert result.err == "flushed 'logs': 3 files uploaded, everything is in S3\n"
        assert daemon.requests[-1].json == {"timeout_s": 90.0}

    def test_flush_that_leaves_something_is_partial(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount(), make_mount("other"))
        left = FlushReport(
            uploaded_files=1, remaining_files=1, remaining_bytes=2048, failed_uploads=[FAILED]
        )
        daemon.answer("POST", "/v1/mounts/logs/flush", Answer(200, left))
        result = run("flush", "logs", "other")
        assert result.code == 8
        assert "a/b.bin" in result.err
        assert (
            "s3mgr: flushed 'logs' in part: S3 does not have 2.0 KiB in 1 file yet\n" in result.err
        )
        assert "flushed 'other'" in result.err

    @pytest.mark.parametrize(
        ("path", "sent"),
        [
            ((), ""),
            (("a/b",), "a/b"),
            (("./a//b/",), "a/b"),
            (("/mnt/logs/a",), "a"),
            (("/mnt/logs",), ""),
        ],
    )
    def test_invalidate(
        self, daemon: FakeDaemon, run: Run, path: tuple[str, ...], sent: str
    ) -> None:
        daemon.add(make_mount())
        result = run("invalidate", "logs", *path)
        assert (result.code, result.err) == (0, "forgot 2 listings and 40 names of 'logs'\n")
        assert daemon.requests[-1].json == {"path": sent}

    @pytest.mark.parametrize("path", ["/mnt/logs2", "/etc", "a/../../b", "bad-\udcff"])
    def test_invalidate_refuses_paths_outside(
        self, daemon: FakeDaemon, run: Run, path: str
    ) -> None:
        daemon.add(make_mount())
        assert run("invalidate", "logs", path).code == 2
        assert daemon.sent("POST") == []

    def test_restart(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount())
        running = Answer(202, make_operation("running"), location())
        daemon.answer("POST", "/v1/mounts/logs/restart", running)
        daemon.operations = [make_operation("running"), make_operation()]
        result = run("restart", "logs")
        assert (result.code, result.err) == (0, "restarted the worker of 'logs'\n")

    def test_restart_that_was_cancelled_is_a_failure(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount())
        running = Answer(202, make_operation("running"), location())
        daemon.answer("POST", "/v1/mounts/logs/restart", running)
        daemon.operations = [make_operation("cancelled")]
        assert run("restart", "logs").code == 1

    @pytest.mark.parametrize("verb", ["flush", "restart"])
    def test_nothing_is_done_when_a_name_is_wrong(
        self, daemon: FakeDaemon, run: Run, verb: str
    ) -> None:
        daemon.add(make_mount())
        assert run(verb, "logs", "nope").code == 4
        assert daemon.sent("POST") == []


class TestEvents:
    def test_lines_for_people(self, daemon: FakeDaemon, run: Run) -> None:
        event = Event(
            cursor=8,
            type="mount.state",
            time=WHEN,
            mount="logs",
            data={"state": "mounted", "n": None},
        )
        daemon.events = [[event]]
        result = run("events", "--count", "1")
        assert result.out == "2024-05-17T08:30:00Z 8 mount.state logs state=mounted\n"
        assert daemon.requests[-1].query == {"since": "7"}

    def test_a_persons_line_leaves_out_most_of_an_operation(
        self, daemon: FakeDaemon, run: Run
    ) -> None:
        problem = make_problem("internal", 500, "It broke.")
        operation = msgspec.to_builtins(make_operation("failed", error=problem))
        changed = Event(
            cursor=8, type="operation.changed", time=WHEN, mount="a", data={"operation": operation}
        )
        daemon.events = [[changed]]
        assert run("events", "--count", "1").out == (
            "2024-05-17T08:30:00Z 8 operation.changed a operation.kind=unmount "
            "operation.state=failed operation.error=It broke.\n"
        )

    def test_json_lines_across_a_broken_stream(
        self, daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("s3mgr.cli.commands.events.RECONNECT_PAUSE_S", 0.0)
        first, second = (Event(cursor=n, type="mount.added", time=WHEN) for n in (3, 4))
        daemon.events = [[first], [], [second]]
        result = run("events", "--since", "0", "--json", "--count", "2")
        assert [json.loads(line)["cursor"] for line in result.out.splitlines()] == [3, 4]
        assert [r.query["since"] for r in daemon.requests] == ["0", "3", "3"]

    def test_a_daemon_that_stays_away_is_an_error(
        self, daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("s3mgr.cli.commands.events.RECONNECT_PAUSE_S", 0.0)
        result = run("events")
        assert result.code == 3

    def test_a_refusal_is_told(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.refuse("GET", "/v1/events", make_problem("not-permitted", 403, "You may not."))
        result = run("events", "--since", "3")
        assert result.code == 5
        assert result.err.startswith("s3mgr: cannot watch events: you may not\nhint: use sudo")


class TestLogs:
    def test_the_last_lines(self, daemon: FakeDaemon, run: Run) -> None:
        daemon.add(make_mount())
        assert run("logs", "logs", "-n", "2").out == "first\nsecond\n"
        assert daemon.requests[-1].query == {"lines": "2"}

    def test_following_goes_on_from_the_offset(
        self, daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("s3mgr.cli.commands.logs.POLL_S", 0.0)
        daemon.add(make_mount())
        gone = make_problem("not-found", 404, "The mount is gone.")
        daemon.answer(
            "GET",
            "/v1/mounts/logs/logs",
            Answer(200, LogTail(lines=["one"], offset=4)),
            Answer(200, LogTail(lines=["two\x07"], offset=9)),
            Answer(404, gone),
        )
        result = run("logs", "logs", "-f")
        assert (result.code, result.out) == (4, "one\ntwo\\x07\n")
        assert [r.query.get("offset") for r in daemon.requests[1:]] == [None, "4", "9"]


class TestVersion:
    def test_of_the_client(self, run: Run) -> None:
        assert run("version").out == "s3mgr 0.1.0\n"
        assert run("--version").out == "s3mgr 0.1.0\n"
        assert json.loads(run("version", "--json").out) == {"client": {"version": "0.1.0"}}

    @pytest.mark.parametrize(
        ("resend", "text"),
        [(True, "yes"), (False, "no (a dead worker"), (None, "not known before the first mount")],
    )
    def test_of_daemon_and_kernel(
        self, daemon: FakeDaemon, run: Run, resend: bool | None, text: str
    ) -> None:
        kernel = msgspec.structs.replace(INFO.kernel, resend=resend)
        daemon.answer("GET", "/v1/info", Answer(200, msgspec.structs.replace(INFO, kernel=kernel)))
        result = run("version", "--verbose")
        assert result.code == 0
        assert result.err == ""
        assert "daemon: s3mgrd 0.1.0, API 1, pid 4242, of the system\n" in result.out
        assert f"FUSE_NOTIFY_RESEND: {text}" in result.out
        assert "warning: the disk of the cache is nearly full\n" in result.out
        shown = json.loads(run("version", "-v", "--json").out)
        assert shown["daemon"]["kernel"]["resend"] is resend

    def test_without_a_daemon(self, run: Run) -> None:
        result = run("version", "--verbose", "--host", "unix:///nowhere/s")
        assert result.code == 0
        assert "daemon: not running: there is no socket /nowhere/s\n" in result.out
        shown = json.loads(run("version", "-v", "--json", "--host", "unix:///nowhere/s").out)
        assert shown["daemon"] is None


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (812, "812 B"),
        (1536, "1.5 KiB"),
        (1 << 20, "1.0 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (5 << 40, "5.0 TiB"),
        (3 << 60, "3072 PiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert output.human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (200, "3m20s"),
        (7200, "2h"),
        (187_200, "2d4h"),
        (-3, "0s"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert output.human_duration(seconds) == text


def test_times_are_utc() -> None:
    assert output.timestamp(datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2024-01-02T03:04:05Z"


def test_wide_characters_keep_columns_aligned() -> None:
    table = output.render_table(("A", "B"), [("日本", "x"), ("abc", "y")])
    assert table == "A     B\n日本  x\nabc   y\n"
