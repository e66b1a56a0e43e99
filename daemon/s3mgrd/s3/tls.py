"""The TLS context that every store of a process shares.

It is made once, in the warm zygote, because it reads files: the certificate authorities of the system (where an
administrator adds a private one), and those that come with botocore, for systems without any. A worker
inherits it by fork and need not be able to read either. ``AWS_CA_BUNDLE`` in the daemon's environment replaces both.
"""

import functools
import os
import ssl

from botocore.httpsession import DEFAULT_CA_BUNDLE

from s3mgrd.errors import InvalidConfig


@functools.cache
def shared_context() -> ssl.SSLContext:
    """Return the process's context; the first call reads the certificate authorities.

    Raises:
        InvalidConfig: AWS_CA_BUNDLE cannot be read.
    """
    bundle = os.environ.get("AWS_CA_BUNDLE")
    try:
        context = ssl.create_default_context(cafile=bundle or None)
        if not bundle:
            context.load_verify_locations(DEFAULT_CA_BUNDLE)
    except OSError as exc:
        raise InvalidConfig(
            f"the certificate authorities in {bundle or DEFAULT_CA_BUNDLE} cannot be read: {exc}",
            hint="AWS_CA_BUNDLE must name a PEM file" if bundle else "install botocore again",
        ) from exc
    context.set_alpn_protocols(["http/1.1"])
    return context
