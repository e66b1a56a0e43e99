"""Signatures are those that botocore computes."""

from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from s3mgrd.s3.signing import EMPTY_SHA256, UNSIGNED_PAYLOAD, Signer
from s3mgrd.worker.protocol import CredentialGrant

NOW = datetime(2024, 2, 29, 23, 59, 58, tzinfo=UTC)


@pytest.mark.parametrize("token", [None, "a/token+with=everything"])
@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "payload"),
    [
        ("GET", "/bucket/a%20b//..%2B", "", {"range": "bytes=0-9"}, EMPTY_SHA256),
        ("GET", "/", "list-type=2&max-keys=1000&prefix=a%2Fb%20c", {}, EMPTY_SHA256),
        ("POST", "/bucket", "delete=", {"x-amz-checksum-crc32": "AAAAAA=="}, "ab" * 32),
        (
            "PUT",
            "/k",
            "",
            {
                "x-amz-meta-b": "two words",
                "x-amz-meta-a": "=?UTF-8?B?w6Q=?=",
                "content-type": "a/b",
            },
            UNSIGNED_PAYLOAD,
        ),
    ],
)
def test_a_signature_is_botocores(
    method: str,
    path: str,
    query: str,
    headers: dict[str, str],
    payload: str,
    token: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("s3mgrd.s3.signing.utc_now", lambda: NOW)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda: NOW.replace(tzinfo=None))
    grant = CredentialGrant(access_key="AK", secret_key="secret", session_token=token)
    headers = {"host": "s3.example:9000", **headers}

    url = f"http://s3.example:9000{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method, url, headers=headers)
    monkeypatch.setattr(S3SigV4Auth, "payload", lambda *_: payload)
    request.context["client_config"] = None
    S3SigV4Auth(ReadOnlyCredentials("AK", "secret", token), "s3", "eu-west-1").add_auth(request)

    unsigned = {"user-agent": "x", "accept-encoding": "identity", "content-length": "1"}
    added = Signer("eu-west-1").sign(method, path, query, headers | unsigned, payload, grant)
    assert added["authorization"] == request.headers["Authorization"]
    assert added["x-amz-date"] == request.headers["X-Amz-Date"]
    assert added.get("x-amz-security-token") == request.headers.get("X-Amz-Security-Token")


def test_the_key_of_a_day_is_not_used_on_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Signer("r")

    def signature(day: int, secret: str) -> str:
        monkeypatch.setattr("s3mgrd.s3.signing.utc_now", lambda: NOW.replace(day=day))
        grant = CredentialGrant(access_key="AK", secret_key=secret)
        return signer.sign("GET", "/", "", {"host": "h"}, EMPTY_SHA256, grant)["authorization"]

    first = signature(1, "a")
    others = {signature(2, "a"), signature(1, "b"), signature(2, "b")}
    assert len(others | {first}) == 4
    assert signature(1, "a") == first
