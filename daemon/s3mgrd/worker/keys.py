"""The keys a worker gives its store: those it was started with, later whatever the supervisor has."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from s3mgrd.errors import Defect, Unavailable
from s3mgrd.worker.protocol import CredentialGrant


class Keys:
    """The keys of one worker.

    Args:
        ask: asks the supervisor; raises `Unavailable` where it is away or has none now.
    """

    def __init__(self, ask: Callable[[], Awaitable[CredentialGrant]]) -> None:
        self._ask = ask
        self._last: CredentialGrant | None = None
        self._is_new = False

    def put(self, grant: CredentialGrant | None) -> None:
        """Use *grant* from now on; None: there is none, the mount is anonymous."""
        self._last, self._is_new = grant, True

    async def provide(self) -> CredentialGrant:
        """Return what was put and not used yet, what the supervisor says, or the last while it is valid.

        Raises:
            S3mgrError: what asking raised.
        """
        grant = self._last
        if grant is not None and not grant.has_expired(datetime.now(UTC)) and self._is_new:
            self._is_new = False
            return grant
        try:
            self._last = await self._ask()
        except (Unavailable, Defect):
            if grant is None or grant.has_expired(datetime.now(UTC)):
                raise
            return grant
        return self._last
