"""Tags of objects, which S3 keeps apart from everything else it keeps with a version.

S3 itself copies them with CopyObject whatever else is replaced, and takes them with a PUT and with a multipart upload.
Other stores do not all of it (radosgw 16 drops them when metadata is replaced, and with multipart uploads), so there they
are set again afterwards. An object without tags costs no request: its head says that it has none.
"""

from typing import Final
from urllib.parse import parse_qsl, urlencode

from s3mgrd.s3.calls import Calls
from s3mgrd.s3.headers import TAG_COUNT
from s3mgrd.s3.port import ObjectHead


class Tags:
    """Reads and sets tags in one bucket. `travel`: the store keeps them where S3 does."""

    def __init__(self, calls: Calls, *, travel: bool) -> None:
        self._calls = calls
        self.travel: Final = travel

    async def of(self, head: ObjectHead) -> str | None:
        """Return the tags of an object in the form in which a write takes them; None: its head says that it has none.

        Raises:
            CallFailed: they could not be read.
        """
        if TAG_COUNT not in head.headers:
            return None
        answer = await self._calls.call("GetObjectTagging", key=head.key)
        return urlencode([(tag["Key"], tag["Value"]) for tag in answer.get("TagSet", [])])

    async def lost_by_copy(self, head: ObjectHead) -> str | None:
        """Return the tags that a copy with new metadata would lose. Raises as `of`."""
        return None if self.travel else await self.of(head)

    async def put(self, key: str, tagging: str) -> None:
        """Set tags. Raises CallFailed."""
        tags = [
            {"Key": name, "Value": value}
            for name, value in parse_qsl(tagging, keep_blank_values=True)
        ]
        await self._calls.call("PutObjectTagging", {"Tagging": {"TagSet": tags}}, key=key)
