"""Making the aiobotocore client of one store: everything botocore would decide by itself is decided here.

Environment variables and AWS configuration files must not change how a mount behaves: the daemon serves many
mounts of different endpoints, and workers run as other users. So profile, files, configured endpoints, retries,
checksums and addressing are set, and credentials come from `LiveCredentials` only. Proxies alone are taken from
the environment.
"""

import logging
import os
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.auth import AUTH_TYPE_MAPS, UNSIGNED_PAYLOAD, S3SigV4Auth
from botocore.awsrequest import AWSRequest

from s3mgr import __version__
from s3mgrd.s3.body import UploadBody
from s3mgrd.s3.documents import strip_invalid
from s3mgrd.s3.grants import LiveCredentials
from s3mgrd.s3.http import Pool
from s3mgrd.s3.library import session_class
from s3mgrd.s3.models import data_loader
from s3mgrd.s3.settings import StoreSettings, resolve_addressing

SIGNATURE_VERSION: Final = "s3mgr-s3v4"


class _StoreAuth(S3SigV4Auth):  # type: ignore[misc]  # botocore is untyped
    """SigV4 that takes the payload's hash from our body, which computed it off the event loop, or leaves it unsigned."""

    def payload(self, request: AWSRequest) -> str:
        body = request.body
        if isinstance(body, UploadBody):
            return body.sha256 or str(UNSIGNED_PAYLOAD)
        return str(super().payload(request))


# A name of our own beside botocore's, so that nothing of botocore's is replaced.
AUTH_TYPE_MAPS.setdefault(SIGNATURE_VERSION, _StoreAuth)


def quiet_libraries() -> None:
    """Keep the libraries' own debug logs off: botocore's would show session tokens and signatures."""
    for name in ("botocore", "aiobotocore", "httpcore2", "httpx2", "hpack"):
        logging.getLogger(name).setLevel(logging.WARNING)


class _CredentialSource:
    """What aiobotocore calls a credential provider: hands out the one object that the client keeps."""

    def __init__(self, credentials: LiveCredentials | None) -> None:
        self._credentials = credentials

    async def load_credentials(self) -> LiveCredentials | None:
        return self._credentials


def make_client(
    settings: StoreSettings, pool: Pool, credentials: LiveCredentials | None
) -> AbstractAsyncContextManager[Any]:  # Any: untyped; only `s3mgrd.s3.calls` touches the client
    """Return the async context manager of a new client."""
    quiet_libraries()
    nowhere = (None, None, os.devnull, None)
    session = AioSession(
        session_vars={
            "profile": (None, None, None, None),
            "config_file": nowhere,
            "credentials_file": nowhere,
        }
    )
    session.register_component("data_loader", data_loader())
    session.register_component("credential_provider", _CredentialSource(credentials))
    events = session.get_component("event_emitter")
    if not settings.anonymous:
        events.register("choose-signer.s3", _choose_signer)
    events.register("before-call.s3", _forbid_redirect)
    events.register_first("before-parse.s3", _clean_answer)
    config = AioConfig(
        http_session_cls=session_class(pool),
        signature_version=UNSIGNED if settings.anonymous else None,
        s3={
            "addressing_style": resolve_addressing(settings),
            "us_east_1_regional_endpoint": "regional",
            "use_accelerate_endpoint": False,
            "use_arn_region": True,
        },
        # one attempt: s3mgrd.s3.retry is the only policy
        retries={"mode": "standard", "total_max_attempts": 1},
        # Trailing checksums are unknown to older radosgw, and TLS or the signed payload protect the bytes.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        ignore_configured_endpoint_urls=True,
        use_dualstack_endpoint=False,
        use_fips_endpoint=False,
        defaults_mode="legacy",
        disable_request_compression=True,
        # botocore's own tells about the machine and takes 0.1 ms a request to build.
        user_agent=f"s3mgr/{__version__}",
    )
    client: AbstractAsyncContextManager[Any] = session.create_client(
        "s3",
        region_name=settings.region,
        endpoint_url=settings.endpoint_url,
        # Only says that certificates are verified: the pool has its own context.
        verify=True,
        config=config,
    )
    return client


# The handlers below are called by botocore with keywords, more than they need; its dictionaries are untyped (Any).


def _choose_signer(**_: object) -> str:
    return SIGNATURE_VERSION


def _forbid_redirect(context: dict[str, Any], **_: object) -> None:
    """Make botocore believe that it has followed a redirect: a wrong region is told to the user, not worked around."""
    context.setdefault("s3_redirect", {})["redirected"] = True


def _clean_answer(response_dict: dict[str, Any], **_: object) -> None:
    """Take what XML cannot contain out of an answer."""
    if isinstance(body := response_dict.get("body"), bytes):
        response_dict["body"] = strip_invalid(body)
