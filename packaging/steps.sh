# Steps that packaging/setup and packaging/install share. Sourced with the checkout as the working directory.

program=$(basename "$0")
say() { echo "$program: $*" >&2; }
fail() {
    say "$*"
    exit 1
}

# What running takes. fuse3: fusermount3 and the udev rule of /dev/fuse. Most of the rest builds pyfuse3, which is
# published as source only.
packages="ca-certificates fuse3 gcc libc6-dev libfuse3-dev pkg-config python3 python3-dev python3-venv"

missing_packages() {
    for package in $packages; do
        case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
        installed) ;;
        *) printf '%s ' "$package" ;;
        esac
    done
}

install_packages() { # install_packages PACKAGE...
    log=$(mktemp)
    policy=
    trap 'rm -f "$log" $policy' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        # The tests start their own servers: no package shall start one on this machine.
        policy=/usr/sbin/policy-rc.d
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
    fi
    # One of several sources that fails to update is no reason to stop: the installation tells.
    apt_get update >"$log" 2>&1 || true
    if ! apt_get -y install --no-install-recommends "$@" >>"$log" 2>&1; then
        tail -n 40 "$log" >&2
        fail "apt-get could not install: $*"
    fi
    case " $* " in
    *" ceph-mon "*) systemctl --quiet disable ceph-crash.service 2>/dev/null || true ;;
    esac
    rm -f "$log" $policy
    trap - EXIT INT TERM
}

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@"; }

ensure_packages() {
    if ! command -v dpkg-query >/dev/null; then
        say "not a Debian system; make sure that what these packages hold is there: $packages"
        return
    fi
    missing=$(missing_packages)
    if [ -z "$missing" ]; then
        return
    fi
    if [ "$(id -u)" != 0 ]; then
        say "Debian packages are missing. Run this as root first, then repeat this command:"
        say "  apt-get update && apt-get install -y --no-install-recommends ${missing% }"
        exit 1
    fi
    say "installing Debian packages: $missing"
    # shellcheck disable=SC2086 # a list of names
    install_packages $missing
}

ensure_fuse() {
    if [ ! -c /dev/fuse ] && [ "$(id -u)" = 0 ]; then
        modprobe fuse 2>/dev/null || true
    fi
    if [ ! -c /dev/fuse ]; then
        fail "/dev/fuse is missing: load the kernel module (modprobe fuse), or give it to this container (--device /dev/fuse)"
    fi
    if [ ! -r /dev/fuse ] || [ ! -w /dev/fuse ]; then
        fail "this user may not open /dev/fuse; as root: chmod 666 /dev/fuse"
    fi
    # fusermount3 -u insists on it. systemd makes it as it starts, so it is missing where none ever ran.
    if [ ! -e /etc/mtab ]; then
        [ "$(id -u)" = 0 ] || fail "/etc/mtab is missing; as root: ln -s ../proc/self/mounts /etc/mtab"
        ln -s ../proc/self/mounts /etc/mtab
    fi
}

# The user of the workers that serve the mounts of a daemon that runs as root. It is in no group that may
# do anything: members of the group s3mgr administer the daemon, and a worker must not be able to.
ensure_worker_user() {
    if [ "$(id -u)" != 0 ] || getent passwd s3mgr >/dev/null; then
        return
    fi
    say "adding the system user s3mgr"
    useradd --system --no-user-group --gid nogroup --home-dir /nonexistent --no-create-home \
        --shell /usr/sbin/nologin --comment "s3mgr workers" s3mgr
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for python in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if is_new_enough "$python"; then
            echo "$python"
            return
        fi
    done
    fail "no Python 3.11 or newer found"
}

# install_locked ENVIRONMENT LOCK PIP_OPTION...: the locked packages, then s3mgr itself with the given options.
install_locked() {
    environment=$1 lock=$2
    shift 2
    # The build tools first and without isolation: pip would otherwise build with unpinned ones.
    quiet_pip install --require-hashes -r packaging/requirements/build.lock
    quiet_pip install --require-hashes --no-build-isolation -r "packaging/requirements/$lock.lock"
    quiet_pip install --no-index --no-deps --no-build-isolation "$@" .
    remove_unlocked
}

# What an earlier lock had would hide that something is missing from this one.
remove_unlocked() {
    unlocked=$("$environment/bin/python" - "$lock" <<'PYTHON'
import re, sys
from importlib.metadata import distributions

def canonical(name):
    return re.sub("[-_.]+", "-", name).lower()

locked = {"s3mgr", "pip"}
for lock in ("build", sys.argv[1]):
    with open(f"packaging/requirements/{lock}.lock") as lines:
        locked |= {line.partition("==")[0] for line in lines if "==" in line}
print(*{canonical(d.name) for d in distributions()} - locked)
PYTHON
    )
    # shellcheck disable=SC2086 # a list of names
    [ -z "$unlocked" ] || quiet_pip uninstall --yes $unlocked
}

quiet_pip() {
    "$environment/bin/python" -m pip --quiet --no-input --disable-pip-version-check "$@"
}
