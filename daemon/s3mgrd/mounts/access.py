"""Who may see and do what: the only place that decides it.

Administrators may everything. Everybody else manages the mounts that they own, and sees those that the
configuration shows them. A mount that one may not see does not exist for one.
"""

from dataclasses import dataclass

from s3mgrd.config import ListVisibility
from s3mgrd.errors import Denied
from s3mgrd.mounts.service import Principal

_BECOME_ADMIN = "Use sudo, or have root add you to the administrators' group: usermod -aG s3mgr $USER (log in again)."


@dataclass(frozen=True, slots=True)
class Access:
    """The configured policy."""

    visibility: ListVisibility

    def require_any(self, who: Principal) -> None:
        """Raise `Denied` if *who* may not see anything at all."""
        if self.visibility == "none" and not who.is_admin:
            raise Denied("only administrators may use this daemon", hint=_BECOME_ADMIN)

    def may_see(self, who: Principal, owner_uid: int | None) -> bool:
        """Tell whether *who* may see what *owner_uid* owns; None: what belongs to nobody."""
        if who.is_admin:
            return True
        if self.visibility == "none":
            return False
        return owner_uid is None or self.visibility == "all" or owner_uid == who.uid

    def require_manage(self, who: Principal, owner_uid: int, what: str) -> None:
        """Raise `Denied` unless *who* may change *what*, which *owner_uid* owns."""
        self.require_any(who)
        if not who.is_admin and who.uid != owner_uid:
            raise Denied(f"{what} belongs to another user", hint=_BECOME_ADMIN)
