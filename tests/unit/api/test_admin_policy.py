"""Who administers the daemon, decided by uid and groups."""

import grp
import pwd

import pytest

from s3mgrd.api.auth import AdminPolicy, admin_policy

ADMINS = 50


@pytest.mark.parametrize(
    ("uid", "groups", "is_admin"),
    [
        (0, set(), True),
        (10, set(), True),
        (20, {ADMINS}, True),
        (20, {7}, False),
        (30, {ADMINS}, False),
        (30, set(), False),
    ],
)
def test_root_the_daemon_and_the_group_administer_but_never_a_worker(
    uid: int, groups: set[int], is_admin: bool
) -> None:
    policy = AdminPolicy(admin_uid=10, admin_gid=ADMINS, worker_uid=30)
    assert policy.is_admin(uid, frozenset(groups)) is is_admin


def test_names_are_resolved_once() -> None:
    nobody = pwd.getpwnam("nobody")
    group = grp.getgrgid(nobody.pw_gid)
    policy = admin_policy(0, group.gr_name, "nobody")
    assert not policy.is_admin(nobody.pw_uid, frozenset({group.gr_gid}))
    assert policy.is_admin(nobody.pw_uid + 1, frozenset({group.gr_gid}))
