"""The demo's S3 endpoint: MiniStack, with its CRC-64/NVME, which takes half a second for 8 MiB in Python, in native code."""

import ministack.services.s3  # type: ignore[import-untyped]
from awscrt.checksums import crc64nvme  # type: ignore[import-untyped]
from ministack.app import app  # type: ignore[import-untyped]

ministack.services.s3._crc64nvme = crc64nvme

__all__ = ["app"]
