"""Throw-away TLS certificates, made by openssl."""

import ssl
import subprocess
from pathlib import Path


def make_certificate(directory: Path, name: str = "IP:127.0.0.1") -> tuple[ssl.SSLContext, Path]:
    """Make a self-signed certificate for *name* (as in subjectAltName).

    Returns:
        A server's context, and the file that a client must trust.
    """
    certificate, key = directory / "server.pem", directory / "server.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *(
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=s3mgr test",
                "-addext",
                f"subjectAltName={name}",
            ),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context, certificate
