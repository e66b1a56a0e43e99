"""The daemon's own credentials: botocore's chain of places, asked when a mount request brings no keys.

This runs in a short-lived process with the daemon's rights and environment, never in a worker: it may read files of the
daemon's user, start a ``credential_process`` and talk to instance metadata. What it found leaves as a `CredentialGrant`;
before it expires, the worker asks again and this runs again.
"""

import os
from datetime import datetime
from typing import Any, Final

import trio
from aiobotocore.config import AioConfig
from aiobotocore.httpxsession import HttpxSession
from aiobotocore.session import AioSession
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigNotFound,
    HTTPClientError,
    ProfileNotFound,
)

from s3mgr.schema import MountSpec
from s3mgrd.errors import CredentialsRejected, TimedOut, Unavailable
from s3mgrd.s3.botocore_client import quiet_libraries
from s3mgrd.s3.models import whole_loader
from s3mgrd.worker.protocol import CredentialGrant

RESOLVE_LIMIT_S: Final = 45.0
"""Instance metadata answers in ms, STS in seconds; a ``credential_process`` may ask something remote."""


def resolve(spec: MountSpec) -> CredentialGrant:
    """Resolve the credentials of *spec* in a process of its own, which runs no event loop yet.

    Raises:
        CredentialsRejected, Unavailable: see `resolve_credentials`.
    """
    return trio.run(resolve_credentials, spec.profile)


async def resolve_credentials(profile: str | None) -> CredentialGrant:
    """Find keys where AWS tools look for them.

    Args:
        profile: of the AWS configuration files; given, the environment's keys are not used.

    Raises:
        CredentialsRejected: there are none, or what is configured does not work; `hint` lists what was tried.
        Unavailable: a service that gives credentials did not answer.
    """
    quiet_libraries()
    session = AioSession(profile=profile)
    # Single sign-on has services of its own.
    session.register_component("data_loader", whole_loader())
    session.set_default_client_config(AioConfig(http_session_cls=HttpxSession))
    try:
        with trio.fail_after(RESOLVE_LIMIT_S):
            found = await session.get_credentials()
            if found is None:
                raise CredentialsRejected(
                    "no credentials were given and the daemon has none", hint=_tried(profile)
                )
            keys = await found.get_frozen_credentials()
    except trio.TooSlowError as exc:
        raise TimedOut(
            f"the daemon's credentials could not be had within {RESOLVE_LIMIT_S:.0f} s",
            hint=_tried(profile),
        ) from exc
    except ProfileNotFound as exc:
        raise CredentialsRejected(
            f"the daemon's AWS configuration has no profile {profile or os.environ.get('AWS_PROFILE')!r}",
            hint=_tried(profile),
        ) from exc
    except HTTPClientError as exc:
        raise Unavailable(
            f"a service that gives credentials did not answer: {exc}", hint=_tried(profile)
        ) from exc
    except (BotoCoreError, ClientError, ConfigNotFound, OSError, ValueError) as exc:
        raise CredentialsRejected(
            f"the daemon's credentials cannot be used: {_first_line(exc)}", hint=_tried(profile)
        ) from exc
    return CredentialGrant(
        access_key=keys.access_key,
        secret_key=keys.secret_key,
        session_token=keys.token,
        expires_at=_expiry(found),
    )


def _expiry(found: Any) -> datetime | None:  # noqa: ANN401 aiobotocore is untyped
    # Private, but the only place where botocore keeps it; credentials that do not expire lack it.
    expiry = getattr(found, "_expiry_time", None)
    return expiry if isinstance(expiry, datetime) else None


def _first_line(exc: Exception) -> str:
    # A credential_process' whole output may follow.
    return (str(exc).splitlines() or [type(exc).__name__])[0][:300]


def _tried(profile: str | None) -> str:
    """Say where the chain has looked, as seen from the daemon."""
    env = os.environ
    name = profile or env.get("AWS_PROFILE") or "default"
    shared = env.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
    config = env.get("AWS_CONFIG_FILE", "~/.aws/config")
    tried = []
    if profile is None:
        tried.append("AWS_ACCESS_KEY_ID in the daemon's environment")
    tried.append(
        f"profile {name!r} in {os.path.expanduser(shared)} and {os.path.expanduser(config)}"
    )
    if "AWS_WEB_IDENTITY_TOKEN_FILE" in env:
        tried.append(f"web identity in {env['AWS_WEB_IDENTITY_TOKEN_FILE']}")
    if any(
        v in env
        for v in ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    ):
        tried.append("the container's credential service")
    if env.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        tried.append("instance metadata")
    return f"tried {', '.join(tried)}; give keys with the mount, or --anonymous for a public bucket"
