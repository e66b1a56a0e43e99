"""Endpoint, region and credentials: which source wins, and what is refused."""

from pathlib import Path

import pytest

from s3mgr.environment import VARIABLES, Access, Flags, resolve
from s3mgr.errors import InvalidRequest
from s3mgr.schema import Credentials

from .conftest import Run
from .fake_daemon import FakeDaemon

PAIR = {"AWS_ACCESS_KEY_ID": "env-key", "AWS_SECRET_ACCESS_KEY": "env-secret"}
DOTENV_PAIR = "AWS_ACCESS_KEY_ID=dot-key\nAWS_SECRET_ACCESS_KEY='dot$ecret ${HOME}#1'\n"


def find(
    directory: Path,
    flags: Flags | None = None,
    environ: dict[str, str] | None = None,
    stdin: str = "",
) -> Access:
    return resolve(
        flags or Flags(), environ=environ or {}, directory=directory, read_stdin=lambda: stdin
    )


def test_nothing_is_sent_where_nothing_is_said(tmp_path: Path) -> None:
    assert find(tmp_path) == Access(None, None, None)


@pytest.mark.parametrize(
    ("flag", "environ", "dotenv", "expected"),
    [
        ("http://f", {"AWS_ENDPOINT_URL_S3": "http://e"}, "AWS_ENDPOINT_URL=http://d", "http://f"),
        (
            None,
            {"AWS_ENDPOINT_URL_S3": "http://s3", "AWS_ENDPOINT_URL": "http://e"},
            "",
            "http://s3",
        ),
        (None, {"AWS_ENDPOINT_URL": "http://e"}, "AWS_ENDPOINT_URL_S3=http://d", "http://e"),
        (None, {"AWS_ENDPOINT_URL": ""}, "AWS_ENDPOINT_URL=http://d", "http://d"),
        (None, {}, "AWS_ENDPOINT_URL=http://d\nAWS_ENDPOINT_URL_S3=http://s3", "http://s3"),
        ("aws", {}, "", "aws"),
        (None, {}, "", None),
    ],
)
def test_the_first_source_of_the_endpoint_wins(
    tmp_path: Path, flag: str | None, environ: dict[str, str], dotenv: str, expected: str | None
) -> None:
    (tmp_path / ".env").write_text(dotenv)
    assert find(tmp_path, Flags(endpoint=flag), environ).endpoint == expected


@pytest.mark.parametrize(
    ("flag", "environ", "dotenv", "expected"),
    [
        ("r-flag", {"AWS_REGION": "r-env"}, "AWS_REGION=r-dot", "r-flag"),
        (None, {"AWS_REGION": "r-env", "AWS_DEFAULT_REGION": "r-def"}, "", "r-env"),
        (None, {"AWS_DEFAULT_REGION": "r-def"}, "AWS_REGION=r-dot", "r-def"),
        (None, {}, "AWS_DEFAULT_REGION=r-dot", "r-dot"),
        (None, {}, "", None),
    ],
)
def test_the_first_source_of_the_region_wins(
    tmp_path: Path, flag: str | None, environ: dict[str, str], dotenv: str, expected: str | None
) -> None:
    (tmp_path / ".env").write_text(dotenv)
    assert find(tmp_path, Flags(region=flag), environ).region == expected


def test_flags_before_environment_before_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(DOTENV_PAIR)
    flags = Flags(access_key="flag-key", secret_key="flag-secret")
    expected = [
        (flags, PAIR, Credentials(access_key="flag-key", secret_key="flag-secret")),
        (Flags(), PAIR, Credentials(access_key="env-key", secret_key="env-secret")),
        (Flags(), {}, Credentials(access_key="dot-key", secret_key="dot$ecret ${HOME}#1")),
    ]
    for given, environ, credentials in expected:
        assert find(tmp_path, given, environ).credentials == credentials


def test_a_token_never_joins_the_keys_of_another_source(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AWS_SESSION_TOKEN=dot-token\n")
    found = find(tmp_path, Flags(), PAIR)
    assert found.credentials == Credentials(access_key="env-key", secret_key="env-secret")
    flags = Flags(access_key="k", secret_key="s")
    found = find(tmp_path, flags, {"AWS_SESSION_TOKEN": "env-token"})
    assert found.credentials == Credentials(access_key="k", secret_key="s")
    found = find(tmp_path, Flags(), {**PAIR, "AWS_SESSION_TOKEN": "env-token"})
    assert found.credentials is not None
    assert found.credentials.session_token == "env-token"


def test_only_the_named_variables_of_dotenv_are_read(tmp_path: Path) -> None:
    assert set(VARIABLES) == {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
    }
    (tmp_path / ".env").write_text("AWS_PROFILE=p\nS3MGR_HOST=unix:///x\nexport AWS_REGION=r\n")
    assert find(tmp_path) == Access(None, "r", None, (f"using region from {tmp_path}/.env",))


def test_what_dotenv_gave_is_said_without_its_value(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(DOTENV_PAIR + "AWS_ENDPOINT_URL=http://d\n")
    found = find(tmp_path)
    assert found.notes == (f"using endpoint and credentials from {tmp_path}/.env",)
    assert find(tmp_path, Flags(endpoint="aws", anonymous=True)).notes == ()


def test_parents_are_not_searched(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(DOTENV_PAIR)
    below = tmp_path / "below"
    below.mkdir()
    assert find(below).credentials is None


@pytest.mark.parametrize("flags", [Flags(anonymous=True), Flags(profile="work")])
def test_a_choice_of_other_credentials_ignores_the_environment(
    tmp_path: Path, flags: Flags
) -> None:
    (tmp_path / ".env").write_text(DOTENV_PAIR)
    assert find(tmp_path, flags, PAIR).credentials is None


@pytest.mark.parametrize(
    ("flags", "environ", "text"),
    [
        (Flags(access_key="k"), {}, "the secret of --access-key is missing"),
        (Flags(access_key="k"), PAIR, "the secret of --access-key is missing"),
        (Flags(secret_key="s"), PAIR, "--access-key is missing"),
        (Flags(session_token="t"), PAIR, "--access-key is missing"),
        (
            Flags(),
            {"AWS_ACCESS_KEY_ID": "k"},
            "the environment has AWS_ACCESS_KEY_ID but not AWS_S",
        ),
        (Flags(), {"AWS_SECRET_ACCESS_KEY": "s"}, "has AWS_SECRET_ACCESS_KEY but not AWS_ACCESS_K"),
        (Flags(anonymous=True, profile="p"), {}, "--anonymous and --profile exclude each other"),
        (Flags(anonymous=True, access_key="k"), {}, "--access-key and --anonymous exclude each"),
        (Flags(profile="p", secret_key="s"), {}, "--secret-key and --profile exclude each other"),
        (Flags(secret_key="s", secret_key_file="f"), {}, "--secret-key and --secret-key-file excl"),
        (Flags(endpoint=""), {}, "--endpoint is empty"),
        (Flags(access_key="", secret_key="s"), {}, "--access-key is empty"),
        (
            Flags(access_key="k", secret_key_file="/none"),
            {},
            "cannot read the secret key file /none",
        ),
    ],
)
def test_halves_and_contradictions_are_refused(
    tmp_path: Path, flags: Flags, environ: dict[str, str], text: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        find(tmp_path, flags, environ)
    assert text in caught.value.detail


def test_half_a_pair_in_dotenv_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AWS_ACCESS_KEY_ID=k\n")
    with pytest.raises(InvalidRequest, match=r"\.env has AWS_ACCESS_KEY_ID but not AWS_SECRET"):
        find(tmp_path)


def test_a_dotenv_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"AWS_REGION=\xff\n")
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        find(tmp_path)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_the_secret_may_come_from_a_file(tmp_path: Path, mode: int, *, warned: bool) -> None:
    file = tmp_path / "secret"
    file.write_text("  s3cr3t\nsecond line\n")
    file.chmod(mode)
    found = find(tmp_path, Flags(access_key="k", secret_key_file=str(file)))
    assert found.credentials == Credentials(access_key="k", secret_key="s3cr3t")
    assert bool(found.notes) is warned


def test_the_secret_may_come_from_standard_input(tmp_path: Path) -> None:
    flags = Flags(access_key="k", secret_key_file="-")
    found = find(tmp_path, flags, stdin="s3cr3t\n")
    assert found.credentials == Credentials(access_key="k", secret_key="s3cr3t")
    with pytest.raises(InvalidRequest, match="no secret key in standard input"):
        find(tmp_path, flags, stdin="")


def test_secrets_stay_out_of_reprs() -> None:
    flags = Flags(access_key="k", secret_key="s3cr3t", session_token="t0ken")
    assert "s3cr3t" not in repr(flags)
    assert "t0ken" not in repr(flags)


def test_the_command_sends_them_once_and_says_where_they_came_from(
    daemon: FakeDaemon, run: Run, clean_environment: Path
) -> None:
    (clean_environment / ".env").write_text(DOTENV_PAIR + "AWS_ENDPOINT_URL=http://d:9000\n")
    result = run("mount", "b", "m")
    assert result.code == 0
    assert result.err.startswith("using endpoint and credentials from .env\n")
    (put,) = daemon.sent("PUT")
    assert put.json["spec"]["endpoint"] == "http://d:9000"
    assert put.json["credentials"] == {
        "access_key": "dot-key",
        "secret_key": "dot$ecret ${HOME}#1",
    }
    assert "ecret" not in result.err + result.out


def test_half_a_pair_is_a_usage_error_of_the_command(
    daemon: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    result = run("mount", "b", "m")
    assert result.code == 2
    assert "cannot mount 'b': the environment has AWS_SECRET_ACCESS_KEY but not" in result.err
    assert "s3cr3t" not in result.err
    assert daemon.requests == []
