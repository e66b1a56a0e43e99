"""What a store does with multipart uploads, found out by one of no use."""

import pytest

from s3mgrd.errors import Denied, PreconditionFailed
from s3mgrd.s3.algorithms import SENT
from s3mgrd.s3.client import open_store
from s3mgrd.s3.multipart import multipart_etag
from s3mgrd.s3.port import Condition, Part
from tests.servers.scripted import Answer, Request, error, serve
from tests.unit.s3.support import settings
from tests.unit.s3.test_client import LOST, MD5_OF_X, methods, object_answer


def completed(parts: list[Part]) -> Answer:
    text = f"<CompleteMultipartUploadResult><ETag>{multipart_etag(parts)}</ETag></CompleteMultipartUploadResult>"
    return Answer(body=text.encode())


class Uploads:
    """A server of multipart uploads; `refusal` is what it says to one that is completed at the key ``trial``."""

    def __init__(self, refusal: Answer | None) -> None:
        self.refusal = refusal

    def __call__(self, request: Request) -> Answer:
        if "uploads" in request.target:
            said = "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            return Answer(body=said.encode())
        if request.method == "HEAD":
            return object_answer("abc")
        if request.method == "POST":
            is_trial = "trial" in request.target and self.refusal is not None
            return self.refusal if is_trial and self.refusal else completed([Part(1, MD5_OF_X, 1)])
        return Answer(headers={"ETag": f'"{MD5_OF_X}"'})


@pytest.mark.parametrize("refusal", [LOST, error("404 Not Found", "NoSuchKey")])
async def test_an_upload_of_no_use_tells_that_conditions_count(refusal: Answer) -> None:
    """No HEAD is needed from then on, and nothing is left."""
    parts = [Part(1, MD5_OF_X, 1)]
    async with serve(Uploads(refusal)) as server, open_store(settings(server.url)) as store:
        assert store.wants_trial
        await store.try_upload("trial")
        assert store.conditions.complete == "supported"
        asked = server.requests[-2]
        assert asked.headers.get("if-match") == '"00000000000000000000000000000000"'
        assert b"<PartNumber>2" not in asked.body
        assert (server.requests[-1].method, "uploadId" in server.requests[-1].target) == (
            "DELETE",
            True,
        )
        match = Condition(if_match="abc")
        await store.complete_multipart("k", "2", parts, condition=match)
        assert methods(server).endswith("DELETE POST")


async def test_a_store_that_completes_what_it_should_refuse_is_asked_before_each_upload() -> None:
    """What it made is deleted."""
    parts = [Part(1, MD5_OF_X, 1)]
    async with serve(Uploads(None)) as server, open_store(settings(server.url)) as store:
        await store.try_upload("trial")
        assert store.conditions.complete == "unsupported"
        last = server.requests[-1]
        assert (last.method, "uploadId" in last.target) == ("DELETE", False)
        with pytest.raises(PreconditionFailed):
            await store.complete_multipart("k", "2", parts, condition=Condition(if_match="another"))
        assert methods(server).endswith("DELETE HEAD")


async def test_an_upload_of_no_use_that_fails_tells_nothing_and_is_made_once() -> None:
    """For each kind of checksum: this server takes no notice of any."""
    refusal = error("403 Forbidden", "AccessDenied")
    parts = [Part(1, MD5_OF_X, 1)]
    async with serve(Uploads(refusal)) as server, open_store(settings(server.url)) as store:
        for _ in SENT:
            assert store.wants_trial
            with pytest.raises(Denied):
                await store.try_upload("trial")
        assert store.conditions.complete == "unknown"
        assert server.requests[-1].method == "DELETE"
        assert not store.wants_trial
        await store.complete_multipart("k", "2", parts, condition=Condition(if_match="abc"))
        assert methods(server).endswith("HEAD POST")
