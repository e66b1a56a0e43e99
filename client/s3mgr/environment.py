"""Where a mount request's endpoint, region and credentials come from on the client's side.

In this order: what the command line says; the environment; the file ``.env`` in the working directory.
What none of them says is left out of the request, and the daemon decides (its configuration, profile, web
identity, container or instance metadata).

An access key and its secret come from one place: a key of one source is never signed with a secret of another.
"""

import os
import stat
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from s3mgr.errors import InvalidRequest
from s3mgr.schema import Credentials

DOTENV: Final = ".env"
ENDPOINT_VARIABLES: Final = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGION_VARIABLES: Final = ("AWS_REGION", "AWS_DEFAULT_REGION")
KEY_VARIABLE: Final = "AWS_ACCESS_KEY_ID"
SECRET_VARIABLE: Final = "AWS_SECRET_ACCESS_KEY"  # noqa: S105  a variable's name
TOKEN_VARIABLE: Final = "AWS_SESSION_TOKEN"  # noqa: S105  a variable's name
VARIABLES: Final = (
    *ENDPOINT_VARIABLES,
    *REGION_VARIABLES,
    KEY_VARIABLE,
    SECRET_VARIABLE,
    TOKEN_VARIABLE,
)

# A name for people, and values by variable.
Source = tuple[str, Mapping[str, str]]

# Longer than any key; a wrong path (a disk, a log) is not read to its end.
SECRET_FILE_MAX_BYTES: Final = 65536


@dataclass(frozen=True, slots=True)
class Flags:
    """What the command line said; None: nothing. The secrets do not appear in the repr."""

    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    secret_key_file: str | None = None
    session_token: str | None = field(default=None, repr=False)
    profile: str | None = None
    anonymous: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """What goes into the request; None: left to the daemon. `notes` are for the user to see."""

    endpoint: str | None
    region: str | None
    credentials: Credentials | None
    notes: tuple[str, ...] = ()


def resolve(
    flags: Flags,
    *,
    environ: Mapping[str, str],
    directory: Path,
    read_stdin: Callable[[], str] = lambda: sys.stdin.readline(),
) -> Access:
    """Find endpoint, region and credentials.

    Args:
        flags: what the command line said.
        environ: the client's environment.
        directory: where ``.env`` is looked for; its parents are not.
        read_stdin: reads one line, for ``--secret-key-file -``.

    Raises:
        InvalidRequest: half a pair of keys, flags that exclude each other, or an unreadable secret file.
    """
    _refuse_contradictions(flags)
    notes: list[str] = []
    sources: list[Source] = [("the environment", _chosen(environ))]
    dotenv = directory / DOTENV
    if values := _read_dotenv(dotenv):
        sources.append((str(dotenv), values))

    endpoint, endpoint_source = _first(flags.endpoint, sources, ENDPOINT_VARIABLES)
    region, region_source = _first(flags.region, sources, REGION_VARIABLES)
    credentials, credentials_source = _credentials(flags, sources, notes, read_stdin)

    found = (
        ("endpoint", endpoint_source),
        ("region", region_source),
        ("credentials", credentials_source),
    )
    if used := [what for what, source in found if source == str(dotenv)]:
        # The file belongs to whoever made the working directory; never use it silently.
        notes.append(f"using {' and '.join(used)} from {dotenv}")
    return Access(endpoint, region, credentials, tuple(notes))


def _refuse_contradictions(flags: Flags) -> None:
    keys = {
        "--access-key": flags.access_key,
        "--secret-key": flags.secret_key,
        "--secret-key-file": flags.secret_key_file,
        "--session-token": flags.session_token,
    }
    given = [name for name, value in keys.items() if value is not None]
    plain = {"--endpoint": flags.endpoint, "--region": flags.region, "--profile": flags.profile}
    for name, value in (plain | keys).items():
        if value == "":
            raise InvalidRequest(f"{name} is empty", hint="leave it out to use the default")
    if flags.secret_key is not None and flags.secret_key_file is not None:
        raise InvalidRequest("--secret-key and --secret-key-file exclude each other")
    if flags.anonymous and flags.profile is not None:
        raise InvalidRequest("--anonymous and --profile exclude each other")
    if given and flags.anonymous:
        raise InvalidRequest(f"{given[0]} and --anonymous exclude each other")
    if given and flags.profile is not None:
        raise InvalidRequest(f"{given[0]} and --profile exclude each other")


def _credentials(
    flags: Flags,
    sources: list[Source],
    notes: list[str],
    read_stdin: Callable[[], str],
) -> tuple[Credentials | None, str | None]:
    if flags.anonymous or flags.profile is not None:
        return None, None
    secret = flags.secret_key
    if flags.secret_key_file is not None:
        secret = _read_secret(flags.secret_key_file, notes, read_stdin)
    if flags.access_key or secret or flags.session_token:
        if not flags.access_key:
            _half("--access-key is missing", "give both halves of the key pair on the command line")
        if not secret:
            _half(
                "the secret of --access-key is missing",
                "give --secret-key-file FILE (- reads standard input), or put both halves into "
                f"{KEY_VARIABLE} and {SECRET_VARIABLE}",
            )
        return _pair(flags.access_key, secret, flags.session_token), None
    for name, values in sources:
        key, secret = values.get(KEY_VARIABLE), values.get(SECRET_VARIABLE)
        if key and secret:
            return _pair(key, secret, values.get(TOKEN_VARIABLE)), name
        if key or secret:
            present, missing = (
                (KEY_VARIABLE, SECRET_VARIABLE) if key else (SECRET_VARIABLE, KEY_VARIABLE)
            )
            _half(
                f"{name} has {present} but not {missing}",
                "set both, or unset both to use the daemon's own credentials",
            )
    return None, None


def _half(detail: str, hint: str) -> NoReturn:
    raise InvalidRequest(detail, hint=hint)


def _pair(key: str, secret: str, token: str | None) -> Credentials:
    return Credentials(access_key=key, secret_key=secret, session_token=token or None)


def _first(
    flag: str | None, sources: list[Source], names: tuple[str, ...]
) -> tuple[str | None, str | None]:
    """Return the value of the first source that has one of *names*, and that source's name."""
    if flag:
        return flag, None
    for source, values in sources:
        for name in names:
            if value := values.get(name):
                return value, source
    return None, None


def _chosen(values: Mapping[str, str | None]) -> dict[str, str]:
    """Keep what we use; an empty value counts as unset, as in the AWS tools."""
    return {name: value for name in VARIABLES if (value := (values.get(name) or "").strip())}


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values  # costs a fifth of a command's start

    try:
        # Without interpolation: a secret may contain "$".
        return _chosen(dotenv_values(path, interpolate=False))
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRequest(
            f"cannot read {path}: {getattr(exc, 'strerror', None) or 'not UTF-8'}",
            hint="run the command in another directory, or mend the file",
        ) from exc


def _read_secret(path: str, notes: list[str], read_stdin: Callable[[], str]) -> str:
    """Read a secret key: the first line of *path*, or of standard input for ``-``."""
    if path == "-":
        text = read_stdin()
    else:
        try:
            with open(path, encoding="utf-8") as file:
                if os.fstat(file.fileno()).st_mode & (stat.S_IRWXO | stat.S_IWGRP):
                    notes.append(f"other users can get at {path}: chmod 600 {path}")
                text = file.read(SECRET_FILE_MAX_BYTES)
        except (OSError, UnicodeDecodeError) as exc:
            raise InvalidRequest(
                f"cannot read the secret key file {path}: "
                f"{getattr(exc, 'strerror', None) or 'not UTF-8'}"
            ) from exc
    secret = text.split("\n", 1)[0].strip()
    if not secret:
        raise InvalidRequest(
            f"there is no secret key in {'standard input' if path == '-' else path}"
        )
    return secret
