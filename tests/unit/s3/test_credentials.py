"""The daemon's own credentials, from each place that can be had without AWS."""

import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from s3mgr.schema import MountSpec
from s3mgrd.errors import CredentialsRejected, Unavailable
from s3mgrd.s3.credentials import resolve, resolve_credentials
from tests.servers.scripted import Answer, serve

PROFILES = """\
[default]
aws_access_key_id = KEYDEFAULT
aws_secret_access_key = secret-default
[work]
aws_access_key_id = KEYWORK
aws_secret_access_key = secret-work
aws_session_token = token-work
[half]
aws_access_key_id = KEYHALF
"""


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this machine's own AWS configuration out of sight."""
    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_PROFILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_profile_is_read_by_its_name(tmp_path: Path) -> None:
    """Also checks the entry that runs its own event loop."""
    (tmp_path / "credentials").write_text(PROFILES)
    spec = MountSpec(bucket="b", mountpoint="/m", profile="work")
    grant = resolve(spec)
    assert (grant.access_key, grant.secret_key, grant.session_token, grant.expires_at) == (
        "KEYWORK",
        "secret-work",
        "token-work",
        None,
    )
    assert "secret-work" not in repr(grant)


async def test_without_a_profile_the_default_one_is_used(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(PROFILES)
    assert (await resolve_credentials(None)).access_key == "KEYDEFAULT"


async def test_the_environment_comes_first_unless_a_profile_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text(PROFILES)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEYENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-env")
    assert (await resolve_credentials(None)).access_key == "KEYENV"
    assert (await resolve_credentials("work")).access_key == "KEYWORK"


async def test_nothing_at_all_lists_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(CredentialsRejected) as caught:
        await resolve_credentials(None)
    for place in ("AWS_ACCESS_KEY_ID", "profile 'default'", str(tmp_path / "credentials")):
        assert place in caught.value.hint
    assert "instance metadata" not in caught.value.hint


async def test_a_profile_that_does_not_exist_is_named(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(PROFILES)
    with pytest.raises(CredentialsRejected, match="no profile 'nobody'") as caught:
        await resolve_credentials("nobody")
    assert str(tmp_path / "config") in caught.value.hint


@pytest.mark.parametrize("content", [PROFILES, "not an ini file"])
async def test_a_broken_profile_is_an_error_not_a_crash(tmp_path: Path, content: str) -> None:
    (tmp_path / "credentials").write_text(content)
    with pytest.raises(CredentialsRejected) as caught:
        await resolve_credentials("half")
    assert caught.value.hint


async def test_a_process_may_give_keys_that_expire(tmp_path: Path) -> None:
    script = tmp_path / "give.py"
    script.write_text(
        'print(\'{"Version": 1, "AccessKeyId": "KEYPROC", "SecretAccessKey": "s", '
        '"SessionToken": "t", "Expiration": "2099-01-02T03:04:05Z"}\')\n'
    )
    (tmp_path / "config").write_text(
        f"[profile proc]\ncredential_process = {sys.executable} {script}\n"
    )
    grant = await resolve_credentials("proc")
    assert grant.access_key == "KEYPROC"
    assert grant.expires_at == datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC)


async def test_a_process_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[profile proc]\ncredential_process = false\n")
    with pytest.raises(CredentialsRejected):
        await resolve_credentials("proc")


async def test_a_container_gives_keys_that_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        b'{"AccessKeyId": "KEYTASK", "SecretAccessKey": "s", "Token": "t", '
        b'"Expiration": "2099-01-02T03:04:05Z"}'
    )
    async with serve([Answer(body=body, headers={"Content-Type": "application/json"})]) as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.url}/keys")
        grant = await resolve_credentials(None)
    assert (grant.access_key, grant.session_token) == ("KEYTASK", "t")
    assert grant.expires_at == datetime(2099, 1, 2, 3, 4, 5, tzinfo=UTC)


async def test_a_container_service_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiobotocore.utils.AnyioContainerMetadataFetcher.RETRY_ATTEMPTS", 1)
    async with serve([Answer("500 Oops", b"no")]) as server:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{server.url}/keys")
        with pytest.raises((CredentialsRejected, Unavailable)) as caught:
            await resolve_credentials(None)
    assert "container" in caught.value.hint
