"""s3mgrd: composition root. Reads the configuration, runs the daemon, says why it could not; no logic."""

import os
import sys
from functools import partial
from typing import Final

from s3mgrd import logs
from s3mgrd.config import Startup, load
from s3mgrd.errors import InvalidConfig, S3mgrError

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


def main() -> None:
    """Entry point of the command."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Do what *arguments* say and return the exit status."""
    try:
        startup = load(arguments, os.environ)
        logs.setup(startup.config.log_level, startup.config.log_format)
        if startup.cleanup:
            _clean_up(startup)
        else:
            _serve(startup, arguments)
    except S3mgrError as error:
        return _complain(error)
    except BaseExceptionGroup as group:
        only = _only_error(group)
        if only is None:
            raise
        return _complain(only)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


def _serve(startup: Startup, arguments: list[str]) -> None:
    # Imported here so that --version, --help and a wrong flag answer at once.
    import trio

    from s3mgrd.daemon import run_daemon
    from s3mgrd.notify import Notifier

    notifier = Notifier.from_environment(os.environ)
    trio.run(run_daemon, startup, notifier, partial(load, arguments, os.environ))


def _clean_up(startup: Startup) -> None:
    from s3mgrd.fuse.cleanup import cleanup
    from s3mgrd.worker.keepers import end_all

    # systemd runs this after each end of the daemon, also when it starts another next (Restart=on-failure), which may want
    # what is kept.
    if startup.unusable is not None:
        # Where the state directory is nobody knows then; a dead mount is one wherever.
        print(f"s3mgrd: {startup.unusable}; what keepers hold is left alone", file=sys.stderr)
    elif os.environ.get("SERVICE_RESULT", "success") == "success":
        end_all(startup.config.state_dir)
    for path in cleanup(user_mode=startup.user_mode):
        print(f"unmounted {path}")


def _only_error(group: BaseExceptionGroup[BaseException]) -> S3mgrError | None:
    """Return what went wrong if it is nothing but errors of ours; None: a bug is among them."""
    _, others = group.split(S3mgrError)
    if others is not None:
        return None
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, S3mgrError) else None


def _complain(error: S3mgrError) -> int:
    print(f"s3mgrd: {error.detail}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return EXIT_USAGE if isinstance(error, InvalidConfig) else EXIT_FAILURE


if __name__ == "__main__":
    main()
