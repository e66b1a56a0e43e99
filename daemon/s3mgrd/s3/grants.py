"""The keys that a store signs with: asked for when needed, renewed before they expire, replaceable at once.

aiobotocore's own refreshable credentials would nearly do. But they refuse to sign ten minutes before the expiry when they
cannot be refreshed, ask again at every request for keys that live shorter than a quarter of an hour, and cannot be
replaced. These use what they have for as long as it is valid.

Concurrency: one task at a time asks the provider; others that have valid keys do not wait for it.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import trio
from botocore.credentials import ReadOnlyCredentials

from s3mgrd.errors import S3mgrError
from s3mgrd.s3.settings import CredentialProvider
from s3mgrd.worker.protocol import CredentialGrant

log = logging.getLogger("s3mgrd.s3")

RENEW_AHEAD: Final = timedelta(minutes=5)
"""How long before the expiry new keys are asked for; less where keys live less than ten minutes."""
ASK_AGAIN_S: Final = 15.0
"""Pause between attempts to renew keys that are still valid."""


class LiveCredentials:
    """What aiobotocore asks for keys whenever it signs."""

    method: Final = "s3mgr"
    account_id: Final = None

    def __init__(
        self,
        provider: CredentialProvider,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._provider = provider
        self._now: Final = now
        self._lock: Final = trio.Lock()
        self._grant: CredentialGrant | None = None
        self._renew_at: datetime | None = None

    def replace(self, provider: CredentialProvider) -> None:
        """Ask *provider* from now on, beginning with the next request."""
        self._provider = provider
        self._grant = None

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """Answer aiobotocore when it signs."""
        grant = await self.grant()
        return ReadOnlyCredentials(grant.access_key, grant.secret_key, grant.session_token)

    async def grant(self) -> CredentialGrant:
        """Return keys that are valid now.

        Raises:
            S3mgrError: whatever the provider raises, when there are no valid keys without it.
        """
        grant = self._grant
        if grant is None or self._has_expired(grant):
            async with self._lock:
                grant = self._grant
                if grant is None or self._has_expired(grant):
                    grant = await self._ask()
        elif self._renew_at is not None and self._now() >= self._renew_at:
            grant = await self._renew_early(grant)
        return grant

    def get_deferred_property(self, name: str) -> Callable[[], None]:
        """Answer botocore's question for *name*, the account's id: nothing of S3 depends on it."""
        return lambda: None

    async def get_account_id(self) -> None:
        """Answer aiobotocore's question for endpoints by account, which S3 does not have."""

    async def renew_rejected(self, grant: CredentialGrant | None) -> bool:
        """Ask for other keys after S3 has refused *grant*; False when the provider has none."""
        async with self._lock:
            if self._grant is not grant:
                return True  # another task was first
            try:
                return await self._ask() != grant
            except S3mgrError as exc:
                log.warning("no other credentials after S3 refused these: %s", exc.detail)
                return False

    def _has_expired(self, grant: CredentialGrant) -> bool:
        return grant.has_expired(self._now())

    async def _renew_early(self, grant: CredentialGrant) -> CredentialGrant:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            return grant
        try:
            return await self._ask()
        except S3mgrError as exc:
            self._renew_at = self._now() + timedelta(seconds=ASK_AGAIN_S)
            log.warning("credentials could not be renewed yet: %s", exc.detail)
            return grant
        finally:
            self._lock.release()

    async def _ask(self) -> CredentialGrant:
        while True:
            provider = self._provider
            grant = await provider()
            if provider is self._provider:  # not replaced meanwhile
                break
        self._grant = grant
        self._renew_at = None
        if grant.expires_at is not None:
            life = grant.expires_at - self._now()
            self._renew_at = grant.expires_at - min(RENEW_AHEAD, life / 2)
        return grant
