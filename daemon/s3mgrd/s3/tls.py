"""The TLS context that every store of a process shares.

It is made once, in the warm zygote, because it reads files: the certificate authorities of the system (where an
administrator adds a private one), and those that come with Python packages, for systems without any. A worker
inherits it by fork and need not be able to read either. ``AWS_CA_BUNDLE`` in the daemon's environment replaces both.
"""

import functools
import os
import ssl

import certifi

from s3mgrd.errors import InvalidConfig


@functools.cache
def shared_context() -> ssl.SSLContext:
    """Return the process's context; the first call reads the certificate authorities.

    Raises:
        InvalidConfig: AWS_CA_BUNDLE cannot be read.
    """
    bundle = os.environ.get("AWS_CA_BUNDLE")
    context = ssl.create_default_context()
    try:
        if bundle:
            context = ssl.create_default_context(cafile=bundle)
        else:
            context.load_verify_locations(certifi.where())
    except OSError as exc:
        raise InvalidConfig(
            f"the certificate authorities in {bundle or certifi.where()} cannot be read: {exc}",
            hint="AWS_CA_BUNDLE must name a PEM file" if bundle else "install certifi again",
        ) from exc
    context.set_alpn_protocols(["http/1.1"])
    return context
