"""The daemon's configuration: one frozen object from defaults, a TOML file, the environment and flags.

Later sources win, in that order. Every key of the file exists as environment variable ``S3MGRD_<KEY>`` too
(lists separated by ``:``). A key that does not exist, and a value of the wrong type, is an error that names it:
a typo must not silently mean "the default". `Config` is the only definition; the table in the docs is made
from it by `config_docs`.
"""

import argparse
import difflib
import os
import pwd
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, NoReturn, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from s3mgr import __version__
from s3mgrd.errors import InvalidConfig

ENV_PREFIX: Final = "S3MGRD_"
SYSTEM_CONFIG: Final = "/etc/s3mgr/s3mgr.toml"
DEFAULT_ENDPOINT: Final = "http://localhost:9000"
WORKER_ACCOUNT: Final = "s3mgr"
FALLBACK_ACCOUNT: Final = "nobody"
MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path, with its NUL
MAX_CONFIG_BYTES: Final = 1 << 20

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
ListVisibility = Literal["all", "own", "none"]
Seconds = Annotated[float, Meta(gt=0, le=86400)]


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that the daemon was told, complete: no field is decided later."""

    state_dir: Annotated[
        str, Meta(description="Specs, credentials and journals; mode 0700. Never delete it.")
    ]
    cache_dir: Annotated[
        str, Meta(description="Data that can be fetched again; may be deleted while stopped.")
    ]
    socket: Annotated[str, Meta(description="Unix socket of the API.")]
    worker_user: Annotated[
        str,
        Meta(
            description="Account that workers run as when the daemon is root. Default: `s3mgr` if it exists, "
            "else `nobody` with a warning; an ordinary user's daemon runs them as that user."
        ),
    ]
    endpoint: Annotated[
        str,
        Meta(
            min_length=1,
            description="S3 endpoint of mounts that name none; `aws` means AWS itself.",
        ),
    ] = DEFAULT_ENDPOINT
    region: Annotated[
        str,
        Meta(
            min_length=1,
            description="Region that goes with `endpoint`: used by mounts that name no endpoint and leave their "
            "region at `us-east-1`.",
        ),
    ] = "us-east-1"
    admin_group: Annotated[
        str, Meta(description="Members administer the daemon as root does; empty: nobody does.")
    ] = "s3mgr"
    allowed_mountpoints: Annotated[
        tuple[str, ...],
        Meta(
            description="Directories below which users who are no administrators may mount, with their own keys. "
            "Empty: they may not mount. Administrators may mount anywhere."
        ),
    ] = ()
    list_visibility: Annotated[
        ListVisibility,
        Meta(
            description="Which mounts other users may see, never with secrets: `all`, their `own`, or `none` "
            "(the API then refuses them)."
        ),
    ] = "all"
    restart_limit: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="Deaths of a worker within `restart_window_s` after which its mount fails.",
        ),
    ] = 10
    restart_window_s: Annotated[
        Seconds, Meta(description="Window of `restart_limit`, seconds.")
    ] = 60.0
    restart_backoff_s: Annotated[
        Seconds,
        Meta(
            description="Wait before the second restart in the window, seconds; it doubles, the first is immediate."
        ),
    ] = 0.5
    restart_backoff_max_s: Annotated[
        Seconds, Meta(description="Longest wait before a restart, seconds.")
    ] = 5.0
    retry_min_s: Annotated[
        Seconds, Meta(description="First wait before a failed mount is tried again, seconds.")
    ] = 1.0
    retry_max_s: Annotated[
        Seconds, Meta(description="Longest wait before a failed mount is tried again, seconds.")
    ] = 300.0
    mount_timeout_s: Annotated[
        Seconds, Meta(description="Limit of one attempt to mount, seconds.")
    ] = 60.0
    drain_timeout_s: Annotated[
        Seconds,
        Meta(description="How long an unmount uploads what is left if it names no limit, seconds."),
    ] = 300.0
    shutdown_timeout_s: Annotated[
        Seconds,
        Meta(
            description="How long a stop of the daemon uploads what is left, seconds; the rest stays in the journals."
        ),
    ] = 90.0
    log_level: Annotated[LogLevel, Meta(description="Least level that is logged.")] = "info"
    log_format: Annotated[
        LogFormat, Meta(description="Lines for people, or one JSON object a line.")
    ] = "text"


class ConfigDoc(Struct, frozen=True):
    """One row of the docs' table of keys."""

    name: str
    type: str
    default: str
    environment: str
    description: str


class Startup(Struct, frozen=True, kw_only=True):
    """What the command line asked for. `warnings` are shown in the log and by the API.

    Attributes:
        unusable: what is wrong with the configuration, when only dead mounts are to be removed, which needs none.
    """

    config: Config
    user_mode: bool
    cleanup: bool
    warnings: tuple[str, ...]
    config_file: str | None
    unusable: str | None = None


_SYSTEM_DEFAULTS: Final = {
    "socket": "/run/s3mgr/s3mgr.sock",
    "state_dir": "/var/lib/s3mgr",
    "cache_dir": "/var/cache/s3mgr",
}
_USER_DEFAULTS_DOC: Final = {
    "socket": "`$XDG_RUNTIME_DIR/s3mgr/s3mgr.sock`, without that variable `<state_dir>/s3mgr.sock`",
    "state_dir": "`$XDG_STATE_HOME/s3mgr` (`~/.local/state/s3mgr`)",
    "cache_dir": "`$XDG_CACHE_HOME/s3mgr` (`~/.cache/s3mgr`)",
}
_PATH_KEYS: Final = ("state_dir", "cache_dir", "socket")
# Not keys: the variable names the file itself.
_OTHER_VARIABLES: Final = frozenset({ENV_PREFIX + "CONFIG"})


def _description(annotation: object) -> str:
    metas = [m for m in get_args(annotation)[1:] if isinstance(m, Meta)]
    return next((m.description for m in reversed(metas) if m.description), "")


def _bare(annotation: object) -> object:
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    return annotation


def _type_name(annotation: object) -> str:
    bare = _bare(annotation)
    if get_origin(bare) is Literal:
        return "|".join(get_args(bare))
    if get_origin(bare) is tuple:
        return "list of strings"
    return "integer" if bare is int else "number" if bare is float else "string"


def config_docs() -> list[ConfigDoc]:
    """Describe every key in declaration order, for the docs and for ``s3mgr.toml(5)``."""
    hints = get_type_hints(Config, include_extras=True)
    docs = []
    for field in msgspec.structs.fields(Config):
        if field.name in _SYSTEM_DEFAULTS:
            default = f"`{_SYSTEM_DEFAULTS[field.name]}`; user: {_USER_DEFAULTS_DOC[field.name]}"
        elif field.default is msgspec.NODEFAULT:
            default = "see the description"
        else:
            default = msgspec.json.encode(field.default).decode()
        docs.append(
            ConfigDoc(
                field.name,
                _type_name(hints[field.name]),
                default,
                ENV_PREFIX + field.name.upper(),
                _description(hints[field.name]),
            )
        )
    return docs


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are `InvalidConfig` instead of an exit."""

    def error(self, message: str) -> NoReturn:
        raise InvalidConfig(message, hint="s3mgrd --help lists the flags.")


def argument_parser() -> argparse.ArgumentParser:
    """Build the parser of s3mgrd's flags; the man page is checked against it."""
    parser = _Parser(
        prog="s3mgrd",
        description="Keep S3 buckets mounted as local file systems. Runs in the foreground; "
        "as root it serves the system, as an ordinary user that user.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file (s3mgr.toml)")
    parser.add_argument("--state-dir", metavar="DIR", help="specs, credentials and journals")
    parser.add_argument("--cache-dir", metavar="DIR", help="data that can be fetched again")
    parser.add_argument("--socket", metavar="PATH", help="unix socket of the API")
    parser.add_argument(
        "--log-level", choices=get_args(LogLevel), help="least level that is logged"
    )
    parser.add_argument("--log-format", choices=get_args(LogFormat), help="form of log lines")
    parser.add_argument("--debug", action="store_true", help="the same as --log-level debug")
    parser.add_argument(
        "--cleanup",
        action="store_true",
        help="unmount what a daemon that died left mounted with nobody serving it, and exit",
    )
    parser.add_argument("--version", action="version", version=f"s3mgrd {__version__}")
    return parser


def load(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    *,
    uid: int | None = None,
    system_config: str = SYSTEM_CONFIG,
) -> Startup:
    """Read flags, environment and file, and return the one configuration.

    Args:
        arguments: the command line without the program's name.
        environ: the process environment.
        uid: whose daemon this is; the process's own by default.
        system_config: file that root's daemon reads if it is there and none is named.

    Raises:
        InvalidConfig: an unknown key or flag, a wrong type or value, an unreadable file.
    """
    flags = argument_parser().parse_args(list(arguments))
    uid = os.geteuid() if uid is None else uid
    user_mode = uid != 0
    named = flags.config or environ.get(ENV_PREFIX + "CONFIG")
    default_file = _user_config(environ, uid) if user_mode else system_config
    file = named or (default_file if Path(default_file).exists() else None)

    values: dict[str, object] = {}
    unusable: str | None = None
    try:
        if file is not None:
            values |= _from_file(file)
        values |= _from_environment(environ)
    except InvalidConfig as error:
        if not flags.cleanup:
            raise
        unusable = error.detail
    values |= _from_flags(flags)

    warnings: list[str] = []
    values = _defaults(values, environ, uid=uid, warnings=warnings) | values
    config = Config(**{key: values[key] for key in values})  # type: ignore[arg-type]  # converted one by one above
    _check(config)
    return Startup(
        config=config,
        user_mode=user_mode,
        cleanup=flags.cleanup,
        warnings=tuple(warnings),
        config_file=file,
        unusable=unusable,
    )


def _xdg(environ: Mapping[str, str], variable: str, uid: int, fallback: str) -> str:
    value = environ.get(variable, "")
    if value.startswith("/"):  # the specification says to ignore relative ones
        return value
    home = environ.get("HOME") or pwd.getpwuid(uid).pw_dir
    return f"{home}/{fallback}"


def _user_config(environ: Mapping[str, str], uid: int) -> str:
    return _xdg(environ, "XDG_CONFIG_HOME", uid, ".config") + "/s3mgr/s3mgr.toml"


def _defaults(
    values: Mapping[str, object], environ: Mapping[str, str], *, uid: int, warnings: list[str]
) -> dict[str, object]:
    if uid == 0:
        account = WORKER_ACCOUNT
        if "worker_user" not in values and not _account_exists(WORKER_ACCOUNT):
            account = FALLBACK_ACCOUNT
            warnings.append(
                f"the account '{WORKER_ACCOUNT}' does not exist, so workers run as '{FALLBACK_ACCOUNT}', "
                "which other programs may use too; create it with: useradd --system "
                "--no-user-group --gid nogroup --no-create-home s3mgr"
            )
        return {**_SYSTEM_DEFAULTS, "worker_user": account}
    state = _xdg(environ, "XDG_STATE_HOME", uid, ".local/state") + "/s3mgr"
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    run = f"{runtime}/s3mgr" if runtime.startswith("/") else values.get("state_dir", state)
    return {
        "state_dir": state,
        "cache_dir": _xdg(environ, "XDG_CACHE_HOME", uid, ".cache") + "/s3mgr",
        "socket": f"{run}/s3mgr.sock",
        "worker_user": _account_name(uid),
    }


def _account_exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _account_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _from_file(file: str) -> dict[str, object]:
    try:
        with open(file, "rb") as stream:
            text = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise InvalidConfig(
            f"cannot read the configuration {file}: {error.strerror}",
            hint="Check --config and S3MGRD_CONFIG.",
        ) from error
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidConfig(f"{file} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        raw = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{file} is not valid TOML: {error}") from error
    return {key: _convert(key, value, where=file, text=False) for key, value in raw.items()}


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        key = variable.removeprefix(ENV_PREFIX).lower()
        _require_known(key, where="the environment", shown=variable, prefix=ENV_PREFIX)
        value: object = environ[variable]
        if key == "allowed_mountpoints":
            value = [part for part in environ[variable].split(":") if part]
        values[key] = _convert(key, value, where=f"the environment ({variable})", text=True)
    return values


def _from_flags(flags: argparse.Namespace) -> dict[str, object]:
    values: dict[str, object] = {}
    for key in (*_PATH_KEYS, "log_level", "log_format"):
        value = getattr(flags, key)
        if value is None:
            continue
        # Only here is a relative path the user's own: a file or a unit has no directory of its own.
        values[key] = os.path.abspath(value) if key in _PATH_KEYS else value
    if flags.debug:
        values["log_level"] = "debug"
    return values


def _require_known(key: str, *, where: str, shown: str, prefix: str = "") -> None:
    if key in Config.__struct_fields__:
        return
    nearest = difflib.get_close_matches(key, Config.__struct_fields__, n=1, cutoff=0.5)
    known = nearest[0] if nearest else ""
    hint = (
        f"Did you mean '{prefix}{known.upper() if prefix else known}'?"
        if known
        else "s3mgr.toml(5) lists the keys."
    )
    raise InvalidConfig(f"unknown key '{shown}' in {where}", hint=hint)


def _convert(key: str, value: object, *, where: str, text: bool) -> object:
    _require_known(key, where=where, shown=key)
    annotation = get_type_hints(Config, include_extras=True)[key]
    try:
        return msgspec.convert(value, annotation, strict=not text)
    except msgspec.ValidationError as error:
        raise InvalidConfig(
            f"'{key}' in {where}: {error}", hint=f"It is {_type_name(annotation)}."
        ) from error


def _check(config: Config) -> None:
    for key in _PATH_KEYS:
        _absolute(key, getattr(config, key))
    for prefix in config.allowed_mountpoints:
        _absolute("allowed_mountpoints", prefix)
    if len(os.fsencode(config.socket)) > MAX_SOCKET_PATH_BYTES:
        raise InvalidConfig(
            f"'socket' is longer than the {MAX_SOCKET_PATH_BYTES} bytes that a unix socket may have: {config.socket}",
            hint="Choose a shorter path with --socket.",
        )
    if os.path.normpath(config.state_dir) == os.path.normpath(config.cache_dir):
        raise InvalidConfig(
            "'state_dir' and 'cache_dir' are the same directory",
            hint="What is in cache_dir may be deleted; what is in state_dir may not.",
        )
    for low, high in (
        ("restart_backoff_s", "restart_backoff_max_s"),
        ("retry_min_s", "retry_max_s"),
    ):
        if getattr(config, low) > getattr(config, high):
            raise InvalidConfig(f"'{low}' is greater than '{high}'")


def _absolute(key: str, path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise InvalidConfig(f"'{key}' is not an absolute path: {path!r}")
