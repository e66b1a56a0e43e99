"""``s3mgr mount``: have a bucket mounted and wait until it is."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from s3mgr.cli.context import attempting, common_options, make_client, say, warn
from s3mgr.cli.parameters import DIRECTORY, DURATION, FILE
from s3mgr.errors import InvalidRequest, ProblemError

if TYPE_CHECKING:
    from s3mgr.api import Accepted, Client
    from s3mgr.cli.mount_options import Value
    from s3mgr.environment import Flags
    from s3mgr.schema import Mount, MountRequest

# What one request is asked to wait at most; longer waits go on by asking for the operation.
LONGEST_WAIT_S: Final = 30.0
# Names we made up may be taken between looking and asking; more losses than this are no accident.
NAME_TRIES: Final = 5


def _show_options(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from s3mgr.cli.mount_options import options_text

        click.echo(options_text(), nl=False)
        ctx.exit()


@click.command(short_help="Mount a bucket on a directory.")
@click.argument("bucket", metavar="BUCKET[/PREFIX]")
@click.argument("directory", metavar="DIR", type=DIRECTORY)
@click.option("--name", help="Name of the mount. Default: made from the bucket and the prefix.")
@click.option(
    "--endpoint",
    metavar="URL",
    help="URL of the S3 endpoint; the word aws means AWS itself. Default: AWS_ENDPOINT_URL_S3 or "
    "AWS_ENDPOINT_URL, then the daemon's configuration.",
)
@click.option("--region", help="Region. Default: AWS_REGION or AWS_DEFAULT_REGION, then us-east-1.")
@click.option("--access-key", metavar="KEY", help="Access key. Needs one of the next two.")
@click.option(
    "--secret-key",
    metavar="SECRET",
    help="Secret key. Other users can see it in the process list while this command runs: prefer "
    "--secret-key-file or the environment.",
)
@click.option(
    "--secret-key-file",
    metavar="FILE",
    type=FILE,
    help="File whose first line is the secret key; - reads standard input.",
)
@click.option("--session-token", metavar="TOKEN", help="Session token of temporary keys.")
@click.option("--profile", help="Profile in the AWS configuration of the daemon's user.")
@click.option("--anonymous", is_flag=True, help="Send unsigned requests.")
@click.option("--read-only", is_flag=True, help="Refuse every change; the same as -o read_only.")
@click.option(
    "--debug",
    is_flag=True,
    help="Log every file system operation and S3 request; the same as -o debug.",
)
@click.option(
    "-o",
    "options",
    metavar="NAME=VALUE[,…]",
    multiple=True,
    help="Mount options; a comma in a value is written \\,. See --help-options.",
)
@click.option(
    "--persist/--no-persist",
    default=True,
    help="Mount it again when the daemon starts. Default: yes.",
)
@click.option(
    "--wait/--no-wait",
    default=True,
    help="Wait until it is mounted, or only hand in the request. Default: wait.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=DURATION,
    default=30.0,
    help="Stop waiting after this. Default: 30s.",
)
@click.option("--json", "as_json", is_flag=True, help="Write the mount as JSON to stdout.")
@click.option(
    "--help-options",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_options,
    help="Describe the options of -o and exit.",
)
@common_options(debug=False)
def command(
    *,
    bucket: str,
    directory: str,
    name: str | None,
    debug: bool,
    read_only: bool,
    options: tuple[str, ...],
    persist: bool,
    wait: bool,
    timeout_s: float,
    as_json: bool,
    endpoint: str | None,
    region: str | None,
    access_key: str | None,
    secret_key: str | None,
    secret_key_file: str | None,
    session_token: str | None,
    profile: str | None,
    anonymous: bool,
) -> None:
    """Mount BUCKET, or what is below PREFIX in it, on the directory DIR.

    BUCKET may be written s3://bucket/prefix. The daemon mounts; this command asks it to and waits. Keys come from
    the options, else from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment or in the file .env of the
    working directory, else from what the daemon finds (profile, web identity, container, instance).

    Mounting what is mounted the same way already is a success.
    """
    from s3mgr.cli.mount_options import parse_options
    from s3mgr.cli.targets import absolute_directory
    from s3mgr.environment import Flags

    with attempting(f"cannot mount '{name or bucket}'"):
        chosen = parse_options(options)
        for flag, option in ((read_only, "read_only"), (debug, "debug")):
            if flag and chosen.setdefault(option, True) is not True:
                raise InvalidRequest(f"--{option.replace('_', '-')} contradicts -o {option}=false")
        bucket_name, prefix = split_bucket(bucket)
        if prefix and str(chosen.setdefault("prefix", prefix)).strip("/") != prefix.strip("/"):
            raise InvalidRequest("the prefix after the bucket and -o prefix are different")
        request = build_request(
            bucket_name,
            absolute_directory(directory),
            chosen,
            Flags(
                endpoint=endpoint,
                region=region,
                access_key=access_key,
                secret_key=secret_key,
                secret_key_file=secret_key_file,
                session_token=session_token,
                profile=profile,
                anonymous=anonymous,
            ),
            environ=os.environ,
            persist=persist,
        )
        client = make_client()
    _mount(client, name, request, wait=wait, timeout_s=timeout_s, as_json=as_json)


def split_bucket(text: str) -> tuple[str, str]:
    """Split ``bucket/prefix`` or ``s3://bucket/prefix``; the prefix gets its final ``/``.

    Raises:
        InvalidRequest: no bucket, or another scheme.
    """
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() != "s3":
        raise InvalidRequest(
            f"'{text}' is not a bucket",
            hint="write BUCKET[/PREFIX] or s3://BUCKET[/PREFIX]; the endpoint goes to --endpoint",
        )
    bucket, _, prefix = (rest if separator else text).partition("/")
    if not bucket:
        raise InvalidRequest(f"'{text}' names no bucket", hint="write BUCKET[/PREFIX]")
    prefix = prefix.rstrip("/")
    return bucket, f"{prefix}/" if prefix else ""


def build_request(
    bucket: str,
    mountpoint: str,
    options: "dict[str, Value]",
    flags: "Flags",
    *,
    environ: Mapping[str, str],
    persist: bool,
) -> "MountRequest":
    """Put the request together from the command line and the environment."""
    import msgspec

    from s3mgr.environment import resolve
    from s3mgr.schema import MountOptions, MountRequest, MountSpec
    from s3mgr.schema.mounts import DEFAULT_REGION

    if prefix := options.get("prefix"):
        options = {**options, "prefix": str(prefix).rstrip("/") + "/"}
    access = resolve(flags, environ=environ, directory=Path())
    for note in access.notes:
        warn(note) if "chmod" in note else say(note)
    try:
        spec = MountSpec(
            bucket=bucket,
            mountpoint=mountpoint,
            endpoint=access.endpoint,
            region=access.region or DEFAULT_REGION,
            profile=flags.profile,
            anonymous=flags.anonymous,
            persist=persist,
            origin="cli",
            options=msgspec.convert(options, MountOptions),
        )
        msgspec.convert(msgspec.to_builtins(spec), MountSpec)
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"the request is invalid: {exc}") from exc
    return MountRequest(spec=spec, credentials=access.credentials)


def _mount(
    client: "Client",
    name: str | None,
    request: "MountRequest",
    *,
    wait: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    from s3mgr.cli.output import write_json
    from s3mgr.cli.waiting import detaching, wait_operation

    spec = request.spec
    with attempting(f"cannot mount '{name or spec.bucket}'"):
        before = client.list_mounts().items
    wait_s = min(timeout_s, LONGEST_WAIT_S) if wait else None
    refused: set[str] = set()
    for attempt in range(NAME_TRIES):
        chosen, is_new = (name, False) if name else choose_name(request, before, refused)
        label, resume = f"mounting '{chosen}'", f"s3mgr show {chosen}"
        with attempting(f"cannot mount '{chosen}'"):
            try:
                with detaching(label, resume):
                    accepted = client.put_mount(chosen, request, wait_s=wait_s, only_create=is_new)
                break
            except ProblemError as exc:
                # Somebody took the name since we looked, or it belongs to a mount that we may not see.
                if not is_new or exc.problem.slug not in ("precondition-failed", "name-conflict"):
                    raise
                if attempt == NAME_TRIES - 1:
                    raise
            refused.add(chosen)
            before = client.list_mounts().items
    if accepted.operation_id is not None and wait:
        with attempting(f"cannot mount '{chosen}'"):
            wait_operation(
                client,
                accepted.operation_id,
                label=label,
                timeout_s=max(0.0, timeout_s - (wait_s or 0)),
                resume=resume,
            )
    say(_success(chosen, request, before, accepted, waiting=wait))
    if accepted.mount is not None and accepted.mount.status.conditional_writes == "unsupported":
        warn(
            f"{accepted.mount.spec.endpoint or 'the endpoint'} does not evaluate the conditions of writes: of two writers of one file, "
            "the last may overwrite the other unseen"
        )
    if as_json:
        with attempting(f"cannot show '{chosen}'"):
            write_json(client.get_mount_json(chosen))


def choose_name(
    request: "MountRequest", mounts: "list[Mount]", refused: set[str]
) -> tuple[str, bool]:
    """Choose the name of a mount that was given none, and tell whether it must be a new one.

    The same bucket on the same directory is the same mount. Another mount of the bucket gets a number.
    """
    from s3mgr.cli.targets import free_name, suggest_name

    spec = request.spec
    for mount in mounts:
        same = (mount.spec.bucket, mount.spec.options.prefix) == (spec.bucket, spec.options.prefix)
        if same and mount.spec.mountpoint == spec.mountpoint:
            return mount.name, False
    taken = {mount.name for mount in mounts} | refused
    return free_name(suggest_name(spec.bucket, spec.options.prefix), taken), True


def _success(
    name: str,
    request: "MountRequest",
    before: "list[Mount]",
    accepted: "Accepted",
    *,
    waiting: bool,
) -> str:
    """Say what became true, or that it was true already."""
    spec = request.spec
    what = f"'{name}' ({spec.bucket}/{spec.options.prefix}".rstrip("/") + f") on {spec.mountpoint}"
    known = next((mount for mount in before if mount.name == name), None)
    if accepted.operation_id is not None and not waiting:
        return f"mounting {what} in the background; see s3mgr show {name}"
    if known is None or known.status.state not in ("mounted", "degraded"):
        return f"mounted {what}"
    if accepted.mount is not None and accepted.mount.generation != known.generation:
        return f"changed the options of {what}"
    return f"{what} is mounted already"
