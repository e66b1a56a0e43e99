"""A bucket with as many objects as a test wants, made of nothing: it answers listings and HEADs, and holds no data."""

import re
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload
from urllib.parse import parse_qs, unquote, urlsplit

import trio

from tests.servers.scripted import Answer, Request, error

PAGE = 1000
DATE = "2024-05-06T07:08:09.000Z"
HTTP_DATE = "Mon, 06 May 2024 07:08:09 GMT"
_KEY = re.compile(r"flat/f(\d{7})")


@dataclass
class EndlessBucket:
    """A `Handler`: any bucket has `count` empty-looking objects ``flat/f0000000`` and so on, and nothing else.

    `gate`: while it is closed, pages after the first wait for it. `pages`: how many whole pages of keys were asked for.
    """

    count: int
    gate: threading.Event = field(default_factory=threading.Event)
    pages: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def __call__(self, request: Request) -> Answer:
        """Answer one request."""
        url = urlsplit(request.target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        key = unquote(url.path).partition("/")[2].partition("/")[2]
        if request.method == "GET" and not key and "list-type" in query:
            return await self._list(query)
        found = _KEY.fullmatch(key)
        if request.method == "HEAD" and found and int(found[1]) < self.count:
            return Answer(headers={"ETag": _etag(int(found[1])), "Last-Modified": HTTP_DATE})
        return error("404 Not Found", "NoSuchKey")

    async def _list(self, query: dict[str, str]) -> Answer:
        prefix = query.get("prefix", "")
        limit = min(PAGE, int(query.get("max-keys", PAGE)))
        if not prefix and "delimiter" in query:
            return _page("<CommonPrefixes><Prefix>flat/</Prefix></CommonPrefixes>", None)
        if prefix not in ("", "flat/"):
            return _page("", None)
        after = query.get("start-after", "")
        first = int(query.get("continuation-token", bisect_right(_Keys(self.count), after)))
        if limit == PAGE:
            self.pages += 1
        if first:
            await trio.to_thread.run_sync(self.gate.wait, abandon_on_cancel=True)
        last = min(first + limit, self.count)
        return _page(self._keys(first, last), str(last) if last < self.count else None)

    def _keys(self, first: int, last: int) -> str:
        return "".join(
            f"<Contents><Key>flat/f{i:07}</Key><LastModified>{DATE}</LastModified>"
            f"<ETag>{_etag(i)}</ETag><Size>0</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for i in range(first, min(last, self.count))
        )


class _Keys(Sequence[str]):
    """The keys in order, made when looked at."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        return f"flat/f{index:07}"


def _etag(number: int) -> str:
    return f'"{number:032x}"'


def _page(entries: str, token: str | None) -> Answer:
    following = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    body = (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>{str(token is not None).lower()}</IsTruncated>{following}{entries}</ListBucketResult>"
    )
    return Answer(body=body.encode(), headers={"Content-Type": "application/xml"})
