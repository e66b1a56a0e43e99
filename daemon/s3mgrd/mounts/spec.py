"""From a request to a complete spec: defaults, normal forms, and every reason to refuse it.

Nothing here touches a disk or a network; whether the mountpoint can be mounted on is the kernel port's to say,
and whether the bucket exists the worker's.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import msgspec

from s3mgr.schema import Credentials, LiveOptions, MountOptions, MountSpec
from s3mgr.schema.mounts import DEFAULT_REGION, NAME_PATTERN
from s3mgrd.errors import Denied, InvalidSpec
from s3mgrd.mounts.service import Principal

AWS: Final = "aws"
MAX_KEY_BYTES: Final = 1024
MAX_PATH_BYTES: Final = 4095
MAX_LABELS: Final = 64
# The whole spec travels to a worker in one packet, beside its credentials.
MAX_SPEC_BYTES: Final = 64 << 10

_NAME: Final = re.compile(NAME_PATTERN)
_REGION: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.IGNORECASE)
_AWS_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# What other stores allow, and AWS did in its first years.
_ANY_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_IPV4: Final = re.compile(r"\d+\.\d+\.\d+\.\d+")
# PATCH may change these besides the live options; `origin` only says who asked last.
_LIVE_FIELDS: Final = frozenset({"labels", "persist", "origin"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the daemon adds to a request that leaves it open."""

    endpoint: str
    region: str
    allow_other: bool
    allowed_mountpoints: tuple[str, ...]


def check_name(name: str) -> None:
    """Raise `InvalidSpec` unless *name* can name a mount."""
    if not _NAME.fullmatch(name):
        raise InvalidSpec(
            f"{name[:80]!r} cannot name a mount",
            hint="A name has up to 63 lower-case letters, digits, '.', '_' and '-', and starts with a letter or digit.",
        )


def resolve(
    spec: MountSpec, credentials: Credentials | None, *, defaults: Defaults, who: Principal
) -> MountSpec:
    """Complete and check a requested spec.

    Raises:
        InvalidSpec: it cannot work; `pointer` names the field in the request's body.
        Denied: *who* may not have such a mount.
    """
    endpoint = normal_endpoint(defaults.endpoint if spec.endpoint is None else spec.endpoint)
    region = spec.region
    if spec.endpoint is None and region == DEFAULT_REGION:
        region = defaults.region
    if not _REGION.fullmatch(region):
        raise InvalidSpec(
            f"{region!r} cannot be a region",
            pointer="/spec/region",
            hint="Regions look like us-east-1.",
        )
    _check_bucket(spec.bucket, endpoint)
    _check_identity(spec, credentials)
    check_labels(spec.labels)
    options = spec.options
    options = msgspec.structs.replace(
        options,
        prefix=normal_prefix(options.prefix),
        uid=who.uid if options.uid is None else options.uid,
        gid=who.gid if options.gid is None else options.gid,
        allow_other=defaults.allow_other if options.allow_other is None else options.allow_other,
    )
    complete = msgspec.structs.replace(
        spec,
        endpoint=endpoint,
        region=region,
        mountpoint=normal_mountpoint(spec.mountpoint),
        options=options,
    )
    if len(msgspec.json.encode(complete)) > MAX_SPEC_BYTES:
        raise InvalidSpec(
            f"the spec is larger than {MAX_SPEC_BYTES} bytes", hint="Use fewer or shorter labels."
        )
    _check_policy(complete, credentials, defaults=defaults, who=who)
    return complete


def normal_endpoint(endpoint: str) -> str:
    """Return ``aws`` or a URL of scheme, host and port without a slash at its end."""

    def refuse(
        why: str, hint: str = "Endpoints look like https://s3.example.org:9000, or aws."
    ) -> None:
        raise InvalidSpec(f"the endpoint {why}", pointer="/spec/endpoint", hint=hint)

    if endpoint == AWS:
        return AWS
    if any(c.isspace() or not c.isprintable() for c in endpoint):
        refuse("holds spaces or control characters")
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError as error:
        raise InvalidSpec(f"the endpoint is no URL: {error}", pointer="/spec/endpoint") from error
    if url.scheme not in ("http", "https"):
        refuse("is no http or https URL")
    if "@" in url.netloc:
        # Not quoted back: what stands there is most likely a secret.
        refuse(
            "holds a user name or a password",
            "Give keys as credentials (--access-key, --secret-key-file), never in the URL.",
        )
    if not url.hostname:
        refuse("names no host")
    if port == 0:
        refuse("has port 0")
    if url.path not in ("", "/") or url.query or url.fragment:
        refuse("has a path or a query", "Name the bucket and the prefix in fields of their own.")
    return f"{url.scheme}://{url.netloc}"


def normal_prefix(prefix: str) -> str:
    """Return *prefix* with the slash at its end that makes it a directory; empty stays empty."""
    if not prefix:
        return ""
    pointer = "/spec/options/prefix"
    complete = prefix if prefix.endswith("/") else prefix + "/"
    try:
        size = len(complete.encode())
    except UnicodeEncodeError as error:
        raise InvalidSpec("the prefix is not valid Unicode", pointer=pointer) from error
    if size >= MAX_KEY_BYTES:
        raise InvalidSpec(
            f"the prefix leaves no room for a name: keys have at most {MAX_KEY_BYTES} bytes",
            pointer=pointer,
        )
    for component in complete[:-1].split("/"):
        if component in ("", ".", "..") or "\0" in component:
            what = "an empty component" if not component else f"the component {component!r}"
            raise InvalidSpec(
                f"the prefix has {what}, which no file system can show",
                pointer=pointer,
                hint="Prefixes look like logs/2026/ and do not start with a slash.",
            )
        if len(component.encode()) > 255:
            raise InvalidSpec("the prefix has a component of over 255 bytes", pointer=pointer)
    return complete


def normal_mountpoint(path: str) -> str:
    """Return *path* without repeated slashes, ``.`` components and a slash at its end."""

    def refuse(why: str, hint: str = "") -> None:
        raise InvalidSpec(f"the mountpoint {why}", pointer="/spec/mountpoint", hint=hint)

    if not path.startswith("/"):
        refuse("is not an absolute path", "The daemon does not know your working directory.")
    if "\0" in path or "\n" in path:
        refuse("holds a NUL or a line feed")
    try:
        encoded = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        encoded = b""
        refuse("is not valid Unicode")
    if len(encoded) > MAX_PATH_BYTES:
        refuse(f"is longer than {MAX_PATH_BYTES} bytes")
    components = [c for c in path.split("/") if c not in ("", ".")]
    if ".." in components:
        refuse("holds '..'", "What it means depends on symlinks; give the path it leads to.")
    if not components:
        refuse("is the root directory")
    if any(len(c.encode("utf-8", "surrogateescape")) > 255 for c in components):
        refuse("has a component of over 255 bytes")
    return "/" + "/".join(components)


def is_below(path: str, directory: str) -> bool:
    """Tell whether normal *path* is *directory* or lies inside it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _check_bucket(bucket: str, endpoint: str) -> None:
    pointer = "/spec/bucket"
    if "/" in bucket:
        raise InvalidSpec(
            f"{bucket!r} is not a bucket but a bucket and a prefix",
            pointer=pointer,
            hint="Give the part after the slash as options.prefix.",
        )
    syntax = _AWS_BUCKET if endpoint == AWS else _ANY_BUCKET
    if not syntax.fullmatch(bucket) or ".." in bucket or _IPV4.fullmatch(bucket):
        raise InvalidSpec(
            f"{bucket!r} cannot be the name of a bucket",
            pointer=pointer,
            hint="Bucket names have 3 to 63 lower-case letters, digits, '-' and '.', and start and end with a letter or digit.",
        )


def _check_identity(spec: MountSpec, credentials: Credentials | None) -> None:
    given = [
        what
        for what, there in (
            ("profile", spec.profile is not None),
            ("credentials", credentials is not None),
            ("anonymous", spec.anonymous),
        )
        if there
    ]
    if len(given) > 1:
        raise InvalidSpec(
            f"{' and '.join(given)} exclude each other",
            pointer=f"/spec/{given[0]}" if given[0] != "credentials" else "/credentials",
            hint="Say once where the keys come from.",
        )
    if spec.profile is not None and not spec.profile.isprintable():
        raise InvalidSpec("the profile holds control characters", pointer="/spec/profile")


def check_labels(labels: dict[str, str]) -> None:
    """Raise `InvalidSpec` if there are too many."""
    if len(labels) > MAX_LABELS:
        raise InvalidSpec(f"more than {MAX_LABELS} labels", pointer="/spec/labels")


def _check_policy(
    spec: MountSpec, credentials: Credentials | None, *, defaults: Defaults, who: Principal
) -> None:
    """Keep users who are no administrators below the allowed directories, with keys and ids of their own."""
    if who.is_admin:
        return
    if not defaults.allowed_mountpoints:
        raise Denied(
            "only administrators may mount here",
            hint="Use sudo, or have root add you to the administrators' group: usermod -aG s3mgr $USER (log in again).",
        )
    if not any(is_below(spec.mountpoint, prefix) for prefix in defaults.allowed_mountpoints):
        raise Denied(
            f"you may not mount on {spec.mountpoint}",
            hint=f"Allowed are directories below {', '.join(defaults.allowed_mountpoints)}.",
        )
    if credentials is None and not spec.anonymous:
        # The daemon's own keys are root's: lending them would give away whatever they open.
        raise Denied(
            "you may not use the daemon's own credentials",
            hint="Send keys of your own, or mount anonymously.",
        )
    if spec.options.uid != who.uid or spec.options.gid not in {who.gid, *who.groups}:
        raise Denied(
            "you may not choose another user's uid or gid",
            hint="Leave the options uid and gid out.",
        )


def changed_fields(old: MountSpec, new: MountSpec) -> list[str]:
    """Return JSON pointers of what differs and cannot change while the mount is up."""
    live = set(LiveOptions.__struct_fields__)
    pointers = [
        f"/spec/{name}"
        for name in MountSpec.__struct_fields__
        if name != "options"
        and name not in _LIVE_FIELDS
        and getattr(old, name) != getattr(new, name)
    ]
    pointers += [
        f"/spec/options/{name}"
        for name in MountOptions.__struct_fields__
        if name not in live and getattr(old.options, name) != getattr(new.options, name)
    ]
    return pointers


def holds_same_data(old: MountSpec, new: MountSpec) -> bool:
    """Tell whether a journal made under *old* may be replayed under *new*: same store, bucket and prefix."""
    return (old.endpoint, old.bucket, old.options.prefix) == (
        new.endpoint,
        new.bucket,
        new.options.prefix,
    )


def live_options(options: MountOptions) -> LiveOptions:
    """Return all options that may change while the mount is up, as they are in *options*."""
    return LiveOptions(**{name: getattr(options, name) for name in LiveOptions.__struct_fields__})


def merge_options(options: MountOptions, patch: LiveOptions) -> MountOptions:
    """Return *options* with what *patch* sets."""
    changes = {
        name: value
        for name in LiveOptions.__struct_fields__
        if (value := getattr(patch, name)) is not msgspec.UNSET
    }
    return msgspec.structs.replace(options, **changes)
