"""What a test needs to know of an S3 server."""

from dataclasses import dataclass, field
from typing import Any, Literal

import boto3
from botocore.config import Config

from s3mgrd.s3.settings import StoreSettings
from s3mgrd.worker.protocol import CredentialGrant


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running S3 server, with keys that may do everything.

    `verifies_signatures`: wrong keys are refused. `pid`: the server's process, where it is one of its own.
    """

    kind: Literal["ministack", "radosgw"]
    url: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    pid: int = 0

    @property
    def verifies_signatures(self) -> bool:
        return self.kind == "radosgw"

    def boto3(self) -> Any:  # noqa: ANN401 boto3 is untyped
        """Make a client of another implementation: the view from outside."""
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(
                s3={"addressing_style": "path"},
                retries={"total_max_attempts": 1, "mode": "standard"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    async def grant(self) -> CredentialGrant:
        """Be the provider of credentials of a store."""
        return CredentialGrant(access_key=self.access_key, secret_key=self.secret_key)

    def settings(self, bucket: str, **changes: Any) -> StoreSettings:  # noqa: ANN401 any setting
        """Make the settings of a store on *bucket*; a test does not wait long for what fails."""
        values: dict[str, Any] = {
            "bucket": bucket,
            "region": self.region,
            "endpoint_url": self.url,
            "credentials": self.grant,
            "retry_deadline_s": 5.0,
        }
        return StoreSettings(**(values | changes))
