"""Mount options: one definition for ``-o``, the JSON API, validation and the docs' table.

Each field carries its description and range as ``msgspec.Meta``. `LiveOptions` names the fields that may
change while the mount is up (PATCH); a test checks that it agrees with `MountOptions`.
"""

from typing import Annotated, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

MIB = 1 << 20
GIB = 1 << 30

ID_MAX = 0xFFFF_FFFE  # (uid_t)-1 means "no change" to the kernel

UserOrGroupId = Annotated[int, Meta(ge=0, le=ID_MAX)]
Attributes = Literal["lazy", "full", "off"]
WriteMode = Literal["close", "writeback"]
WritebackCache = Literal["auto", "on", "off"]
Fsync = Literal["local", "remote"]
Addressing = Literal["auto", "path", "virtual"]


class MountOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one mount behaves; every field has a default and may be given as ``-o name=value``."""

    prefix: Annotated[
        str,
        Meta(
            max_length=1023,
            description="Mount only keys below this prefix, as if it were the bucket. Ends in `/`; one is added.",
        ),
    ] = ""
    read_only: Annotated[bool, Meta(description="Refuse every change with EROFS.")] = False
    uid: Annotated[
        UserOrGroupId | None,
        Meta(description="Owner of files without stored attributes. Default: the caller's."),
    ] = None
    gid: Annotated[
        UserOrGroupId | None,
        Meta(description="Group of files without stored attributes. Default: the caller's."),
    ] = None
    file_mode: Annotated[
        str,
        Meta(
            pattern=r"^0?[0-7]{3}$", description="Mode of files without stored attributes, octal."
        ),
    ] = "0644"
    dir_mode: Annotated[
        str,
        Meta(
            pattern=r"^0?[0-7]{3}$",
            description="Mode of directories without stored attributes, octal.",
        ),
    ] = "0755"
    umask: Annotated[
        str,
        Meta(
            pattern=r"^0?[0-7]{3}$",
            description="Bits taken away from `file_mode` and `dir_mode`, octal.",
        ),
    ] = "000"
    allow_other: Annotated[
        bool | None,
        Meta(
            description="Let other users in; the kernel checks modes. Default: on when the daemon is root, "
            "otherwise off (and needs `user_allow_other` in /etc/fuse.conf)."
        ),
    ] = None
    metadata_ttl_s: Annotated[
        float,
        Meta(
            ge=0,
            le=86400,
            description="How long a listing is trusted before S3 is asked again, seconds.",
        ),
    ] = 30.0
    negative_ttl_s: Annotated[
        float,
        Meta(ge=0, le=86400, description="How long the absence of a name is trusted, seconds."),
    ] = 30.0
    retry_deadline_s: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="How long a failing S3 request is tried again before the program sees an error, seconds.",
        ),
    ] = 60.0
    connect_timeout_s: Annotated[
        float,
        Meta(gt=0, le=300, description="Limit of one attempt to connect to the endpoint, seconds."),
    ] = 5.0
    read_timeout_s: Annotated[
        float,
        Meta(gt=0, le=3600, description="Limit of one wait for bytes from the endpoint, seconds."),
    ] = 30.0
    addressing: Annotated[
        Addressing,
        Meta(
            description="How the bucket is named in requests: `path`, `virtual` (host name) or `auto`: virtual on AWS, path elsewhere."
        ),
    ] = "auto"
    sign_payload: Annotated[
        bool,
        Meta(
            description="Sign the SHA-256 of all data that is uploaded, for half a second of processor time a GB. Off: only where the "
            "store is not known to verify the checksums of uploads, which find accidents, but over `http` no attacker."
        ),
    ] = False
    part_size_bytes: Annotated[
        int,
        Meta(
            ge=5 * MIB,
            le=5 * GIB,
            description="Part size of multipart uploads; grows by itself where 10,000 parts would not suffice.",
        ),
    ] = 8 * MIB
    concurrency: Annotated[
        int,
        Meta(
            ge=1,
            le=256,
            description="Most S3 transfers of this mount at the same time; four times as many requests that carry little or none.",
        ),
    ] = 24
    memory_limit_bytes: Annotated[
        int,
        Meta(
            ge=32 * MIB,
            le=64 * GIB,
            description="Most memory for data that is being read ahead or uploaded.",
        ),
    ] = 96 * MIB
    metadata_size_bytes: Annotated[
        int,
        Meta(
            ge=MIB,
            le=1 << 40,
            description="Most disk space for the metadata of this mount; what was not used for longest is forgotten and asked "
            "of S3 again. Some 150 bytes an entry. What is in use, or not in S3 yet, stays in any case.",
        ),
    ] = 2 * GIB
    cache_size_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 50,
            description="Most disk space for the cache of data that was read, in the daemon's cache directory. 0: no such cache.",
        ),
    ] = 10 * GIB
    cache_free_share: Annotated[
        float,
        Meta(
            ge=0,
            le=0.99,
            description="Share of the cache directory's file system that the cache leaves free, whatever `cache_size_bytes` says: "
            "when others fill the disk, the cache gives way. What is pinned stays.",
        ),
    ] = 0.05
    offline_ok: Annotated[
        bool,
        Meta(
            description="While S3 cannot be reached (no connection, no answer, 5xx; not what it refuses or does not have), go on "
            "with what is known and cached, also past `metadata_ttl_s` and `negative_ttl_s`: after 5 s without any answer names, "
            "listings and attributes are shown as last known, cached data is read, and what is not here fails with EIO at once. "
            "The mount is `degraded` (`offline`) meanwhile; when S3 is back, everything is asked for again."
        ),
    ] = False
    attributes: Annotated[
        Attributes,
        Meta(
            description="POSIX attributes in object metadata: `lazy` reads them where they are known to be in use, "
            "`full` for every object before it is shown, `off` never reads or writes them."
        ),
    ] = "lazy"
    write_mode: Annotated[
        WriteMode,
        Meta(
            description="`close`: close() and fsync() return when S3 has acknowledged the object. `writeback`: close() returns "
            "when data and journal are on the local disk; the upload follows in the background."
        ),
    ] = "close"
    writeback_cache: Annotated[
        WritebackCache,
        Meta(
            description="Let the kernel gather small writes: several times faster, but what a program has written and neither closed nor "
            "synced is lost when all processes of s3mgr are killed together and it does not run under systemd. `auto`: where the kernel "
            "can hand requests to the next worker (Linux 6.9)."
        ),
    ] = "auto"
    fsync: Annotated[
        Fsync,
        Meta(
            description="With `write_mode=writeback`: fsync() brings data and journal to the local disk (`local`), or waits until "
            "S3 has the object (`remote`)."
        ),
    ] = "local"
    dirty_limit_bytes: Annotated[
        int,
        Meta(
            ge=16 * MIB,
            le=1 << 50,
            description="With `write_mode=writeback`: close() waits while more than this is queued for upload.",
        ),
    ] = 4 * GIB
    staging_size_bytes: Annotated[
        int,
        Meta(
            ge=64 * MIB,
            le=1 << 50,
            description="Most disk space for large files while they are being written; what has no room waits in S3, as objects "
            "`.s3mgr-*` in the root of the mount, until the file is closed. Four parts of each have room in any case.",
        ),
    ] = GIB
    debug: Annotated[
        bool, Meta(description="Log every file system operation and every S3 request.")
    ] = False


class LiveOptions(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The options that may change while the mount is up; absent fields stay as they are."""

    metadata_ttl_s: Annotated[float, Meta(ge=0, le=86400)] | UnsetType = UNSET
    negative_ttl_s: Annotated[float, Meta(ge=0, le=86400)] | UnsetType = UNSET
    retry_deadline_s: Annotated[float, Meta(ge=0, le=3600)] | UnsetType = UNSET
    concurrency: Annotated[int, Meta(ge=1, le=256)] | UnsetType = UNSET
    memory_limit_bytes: Annotated[int, Meta(ge=32 * MIB, le=64 * GIB)] | UnsetType = UNSET
    metadata_size_bytes: Annotated[int, Meta(ge=MIB, le=1 << 40)] | UnsetType = UNSET
    cache_size_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] | UnsetType = UNSET
    cache_free_share: Annotated[float, Meta(ge=0, le=0.99)] | UnsetType = UNSET
    offline_ok: bool | UnsetType = UNSET
    fsync: Fsync | UnsetType = UNSET
    dirty_limit_bytes: Annotated[int, Meta(ge=16 * MIB, le=1 << 50)] | UnsetType = UNSET
    staging_size_bytes: Annotated[int, Meta(ge=64 * MIB, le=1 << 50)] | UnsetType = UNSET
    debug: bool | UnsetType = UNSET


class OptionDoc(Struct, frozen=True):
    """One row of the option table."""

    name: str
    type: str
    default: str
    live: bool
    description: str


def _type_name(annotation: object) -> str:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    if annotation in names:
        return names[annotation]
    # Optional: the member that is not None, which may carry constraints of its own.
    return _type_name(next(a for a in get_args(annotation) if a is not type(None)))


def option_docs() -> list[OptionDoc]:
    """Describe every mount option in declaration order."""
    live = set(LiveOptions.__struct_fields__)
    hints = get_type_hints(MountOptions, include_extras=True)
    docs = []
    for field in msgspec.structs.fields(MountOptions):
        annotation = hints[field.name]
        meta = next(m for m in get_args(annotation)[1:] if isinstance(m, Meta))
        default = "" if field.default is None else str(field.default)
        if isinstance(field.default, bool):
            default = str(field.default).lower()
        docs.append(
            OptionDoc(
                field.name,
                _type_name(annotation),
                default,
                field.name in live,
                meta.description or "",
            )
        )
    return docs
