"""The configuration: where each value comes from, and every complaint."""

from pathlib import Path
from typing import get_type_hints

import msgspec
import pytest

from s3mgrd.config import Config, Startup, config_docs, load
from s3mgrd.errors import InvalidConfig

USER = {"HOME": "/home/x", "XDG_RUNTIME_DIR": "/run/user/1000"}


def root(tmp_path: Path, *arguments: str, toml: str | None = None, **environ: str) -> Startup:
    """Load as root, with *toml* as the system's file."""
    file = tmp_path / "s3mgr.toml"
    if toml is not None:
        file.write_text(toml)
    return load(arguments, environ, uid=0, system_config=str(file))


def test_root_serves_the_system(tmp_path: Path) -> None:
    config = root(tmp_path).config
    assert (config.socket, config.state_dir, config.cache_dir) == (
        "/run/s3mgr/s3mgr.sock",
        "/var/lib/s3mgr",
        "/var/cache/s3mgr",
    )
    assert config.endpoint == "http://localhost:9000"


def test_the_worker_account_falls_back_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3mgrd.config._account_exists", lambda name: False)
    startup = root(tmp_path)
    assert startup.config.worker_user == "nobody"
    assert "useradd" in startup.warnings[0]
    assert root(tmp_path, toml='worker_user = "me"').warnings == ()
    monkeypatch.setattr("s3mgrd.config._account_exists", lambda name: name == "s3mgr")
    startup = root(tmp_path, toml="")
    assert (startup.config.worker_user, startup.warnings) == ("s3mgr", ())


@pytest.mark.parametrize(
    ("environ", "socket", "state", "cache"),
    [
        (
            USER,
            "/run/user/1000/s3mgr/s3mgr.sock",
            "/home/x/.local/state/s3mgr",
            "/home/x/.cache/s3mgr",
        ),
        (
            {"HOME": "/home/x"},
            "/home/x/.local/state/s3mgr/s3mgr.sock",
            "/home/x/.local/state/s3mgr",
            "/home/x/.cache/s3mgr",
        ),
        (
            {**USER, "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c"},
            "/run/user/1000/s3mgr/s3mgr.sock",
            "/s/s3mgr",
            "/c/s3mgr",
        ),
        (
            {"HOME": "/h", "XDG_STATE_HOME": "relative", "XDG_RUNTIME_DIR": "relative"},
            "/h/.local/state/s3mgr/s3mgr.sock",
            "/h/.local/state/s3mgr",
            "/h/.cache/s3mgr",
        ),
    ],
)
def test_an_ordinary_user_serves_that_user(
    environ: dict[str, str], socket: str, state: str, cache: str
) -> None:
    startup = load([], environ, uid=1000)
    assert startup.user_mode
    config = startup.config
    assert (config.socket, config.state_dir, config.cache_dir) == (socket, state, cache)


def test_a_users_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "s3mgr").mkdir()
    (tmp_path / "s3mgr" / "s3mgr.toml").write_text('endpoint = "aws"')
    startup = load([], {**USER, "XDG_CONFIG_HOME": str(tmp_path)}, uid=1000)
    assert startup.config.endpoint == "aws"


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    toml = 'log_level = "error"\nlog_format = "json"\nstate_dir = "/file"\nendpoint = "aws"'
    environ = {"S3MGRD_LOG_LEVEL": "warning", "S3MGRD_STATE_DIR": "/env"}
    startup = root(tmp_path, "--state-dir", "/flag", toml=toml, **environ)
    config = startup.config
    assert (config.state_dir, config.log_level) == ("/flag", "warning")
    assert (config.log_format, config.endpoint) == ("json", "aws")
    assert root(tmp_path, "--debug", toml=toml).config.log_level == "debug"
    assert startup.config_file == str(tmp_path / "s3mgr.toml")


def test_a_named_file_is_read_instead(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('endpoint = "http://other"')
    for startup in (
        root(tmp_path, "--config", str(other), toml='endpoint = "aws"'),
        root(tmp_path, toml='endpoint = "aws"', S3MGRD_CONFIG=str(other)),
    ):
        assert startup.config.endpoint == "http://other"


def test_a_relative_path_on_the_command_line_is_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert root(tmp_path, "--state-dir", "x").config.state_dir == f"{tmp_path}/x"


def test_values_from_the_environment_are_converted(tmp_path: Path) -> None:
    config = root(
        tmp_path,
        S3MGRD_RESTART_LIMIT="3",
        S3MGRD_DRAIN_TIMEOUT_S="1.5",
        S3MGRD_ALLOWED_MOUNTPOINTS="/home:/srv/mnt",
        OTHER="ignored",
    ).config
    assert (config.restart_limit, config.drain_timeout_s) == (3, 1.5)
    assert config.allowed_mountpoints == ("/home", "/srv/mnt")


@pytest.mark.parametrize(
    ("toml", "words", "hint"),
    [
        ('endpont = "x"', "'endpont'", "'endpoint'"),
        ("[zzz]\nx = 1", "'zzz'", "s3mgr.toml(5)"),
        ("restart_limit = '5'", "'restart_limit'", "integer"),
        ("restart_limit = true", "'restart_limit'", "integer"),
        ("restart_limit = -1", "'restart_limit'", "integer"),
        ("endpoint = 7", "'endpoint'", "string"),
        ('log_level = "loud"', "'log_level'", "debug|info"),
        ("drain_timeout_s = 0", "'drain_timeout_s'", "number"),
        ("drain_timeout_s = nan", "'drain_timeout_s'", ""),
        ('allowed_mountpoints = "/home"', "'allowed_mountpoints'", "list of strings"),
        ('allowed_mountpoints = ["home"]', "'allowed_mountpoints'", ""),
        ('state_dir = "relative"', "'state_dir'", ""),
        ('state_dir = "/x"\ncache_dir = "/x/"', "same directory", "may not"),
        ("restart_backoff_s = 9\nrestart_backoff_max_s = 1", "'restart_backoff_s'", ""),
        ("not toml", "not valid TOML", ""),
        (f'socket = "/{"x" * 107}"', "107 bytes", "--socket"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(
    toml: str, words: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        root(tmp_path, toml=toml)
    assert words in caught.value.detail
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("environ", "words", "hint"),
    [
        ({"S3MGRD_ENDPONT": "x"}, "'S3MGRD_ENDPONT'", "'S3MGRD_ENDPOINT'"),
        ({"S3MGRD_RESTART_LIMIT": "many"}, "'restart_limit'", "integer"),
        ({"S3MGRD_CONFIG": "/absent.toml"}, "/absent.toml", "--config"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(
    environ: dict[str, str], words: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        root(tmp_path, **environ)
    assert words in caught.value.detail
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bogus"], "--bogus"),
        (["--state"], "--state"),  # no abbreviations: they break when a flag is added
        (["--log-level", "loud"], "loud"),
        (["extra"], "extra"),
        (["--config"], "--config"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_named(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfig, match=words):
        root(tmp_path, *arguments)


def test_an_unreadable_and_an_endless_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="directory"):
        root(tmp_path, "--config", str(tmp_path))
    with pytest.raises(InvalidConfig, match="larger"):
        root(tmp_path, "--config", "/dev/zero")


def test_every_key_is_documented_with_its_type_and_default() -> None:
    docs = {doc.name: doc for doc in config_docs()}
    assert set(docs) == set(Config.__struct_fields__) == set(get_type_hints(Config))
    for field in msgspec.structs.fields(Config):
        doc = docs[field.name]
        assert doc.description
        assert doc.description.endswith(".")
        assert doc.environment == f"S3MGRD_{field.name.upper()}"
        if field.default is not msgspec.NODEFAULT:
            assert doc.default == msgspec.json.encode(field.default).decode()
