"""Reading listings as servers write them."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from s3mgrd.s3.documents import strip_invalid
from s3mgrd.s3.failures import NotS3, ShortBody
from s3mgrd.s3.listing import parse_list_page, parse_uploads_page, time_ns
from s3mgrd.s3.port import ObjectInfo

SPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def page(inner: str, space: str = SPACE) -> bytes:
    return f"<?xml version='1.0'?>\n<ListBucketResult {space}>{inner}</ListBucketResult>".encode()


def contents(key: str) -> str:
    return (
        f"<Contents><Key>{key}</Key><LastModified>2023-11-14T22:13:20.123Z</LastModified>"
        "<ETag>&quot;abc-2&quot;</ETag><Size>5</Size><StorageClass>STANDARD_IA</StorageClass></Contents>"
    )


@pytest.mark.parametrize("space", [SPACE, "", 'xmlns="urn:other"'])
def test_a_page_is_read_whatever_its_namespace(space: str) -> None:
    inner = contents("k") + "<CommonPrefixes><Prefix>a/</Prefix></CommonPrefixes>"
    read = parse_list_page(page(inner, space))
    (entry,) = read.objects
    assert (entry.key, entry.size, entry.etag, entry.storage_class) == (
        "k",
        5,
        "abc-2",
        "STANDARD_IA",
    )
    assert entry.mtime_ns == 1_700_000_000_123_000_000
    assert (read.prefixes, read.next_token) == (["a/"], None)


@pytest.mark.parametrize(
    ("encoding", "text", "key"),
    [
        ("url", "a+b%2Bc%20d", "a b+c d"),
        ("url", "%C3%A4%FF", "ä\udcff"),
        ("url", "%01", "\x01"),
        (None, "a+b%20", "a+b%20"),
    ],
)
def test_names_are_decoded_if_the_server_says_they_are_encoded(
    encoding: str | None, text: str, key: str
) -> None:
    says = f"<EncodingType>{encoding}</EncodingType>" if encoding else ""
    assert parse_list_page(page(says + contents(text))).objects[0].key == key


OWNER = "<Owner><ID>1</ID><DisplayName>a &amp; b</DisplayName></Owner>"


@pytest.mark.parametrize(
    "entry",
    [
        contents("k"),
        contents("k").replace("<Contents>", "<Contents>\n  ").replace("</Key>", "</Key>\n"),
        contents("k").replace("</Contents>", f"{OWNER}</Contents>"),
        contents("k").replace("<Size>", f"{OWNER}<ChecksumType>FULL_OBJECT</ChecksumType><Size>"),
        contents("k").replace("</Contents>", "<RestoreStatus/><Keys>x</Keys></Contents>"),
        contents("k").replace("&quot;", '"'),
        contents("k").replace("&quot;", ""),
        # not as S3 writes it, but the same document
        contents("k").replace("<Key>k", "<Key>&#107;"),
        contents("k").replace("<Key>k", "<Key><![CDATA[k]]>"),
        contents("k").replace("<Key>", "<Key >"),
        contents("k").replace("<Contents>", "<Contents a='b'>"),
        contents("k").replace("<Size>5</Size>", "<Size>\n5\n</Size>"),
        contents("k").replace("<Contents>", "<Contents><!-- <Key>x</Key> -->"),
        contents("k").replace("<Contents>", "<Contents><Other><Key>x</Key></Other>"),
    ],
)
def test_an_entry_is_the_same_however_it_is_written(entry: str) -> None:
    expected = parse_list_page(page(contents("k"))).objects
    read = parse_list_page(page(contents("a") + entry + contents("z"))).objects
    assert [o.key for o in read] == ["a", "k", "z"]
    assert [read[1]] == expected


def test_an_entry_without_a_key_or_with_unusual_text_does_not_shift_others() -> None:
    amp = contents("a&amp;b")
    read = parse_list_page(page(contents("a") + amp + contents("c"))).objects
    assert [o.key for o in read] == ["a", "a&b", "c"]
    least = "<Contents><Key>k</Key></Contents>"
    assert parse_list_page(page(least)).objects == [ObjectInfo("k", 0, "", 0)]


def test_a_page_that_is_made_to_be_slow_is_not() -> None:
    """Backtracking would take years."""
    with pytest.raises(NotS3):
        parse_list_page(page("<Contents>" + "<Key>k</Key><Size>1</Size>" * 20_000))


def test_a_page_goes_on_while_it_is_truncated() -> None:
    token = "<NextContinuationToken>t+%20</NextContinuationToken>"
    read = parse_list_page(page(f"<IsTruncated>true</IsTruncated>{token}"))
    assert read.next_token == "t+%20"
    assert parse_list_page(page(f"<IsTruncated>false</IsTruncated>{token}")).next_token is None


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"<html/>", b"{}", page("<IsTruncated>true</IsTruncated>"), page("")[:-5]],
)
def test_what_is_no_listing_is_refused(body: bytes) -> None:
    with pytest.raises(NotS3):
        parse_list_page(body)


def test_an_error_in_the_guise_of_success_may_pass() -> None:
    with pytest.raises(ShortBody, match="InternalError"):
        parse_list_page(b"<Error><Code>InternalError</Code></Error>")


def test_a_page_with_what_xml_forbids_is_read() -> None:
    read = parse_list_page(page("<Prefix>\x01&#x1;</Prefix>" + contents("k")))
    assert [entry.key for entry in read.objects] == ["k"]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        (b"a\x00\x01\x1fb", b"a???b"),
        (b"a\t\n\rb", b"a\t\n\rb"),
        (b"&#0;&#x0;&#x1F;&#31;&#x000b;&#11;", b"??????"),
        (
            b"&#9;&#10;&#13;&#xA;&#xd;&#x9;&#x20;&#32;&#x10;&#100;",
            b"&#9;&#10;&#13;&#xA;&#xd;&#x9;&#x20;&#32;?&#100;",
        ),
        ("\ufffe\uffff\ufffd".encode(), b"??\xef\xbf\xbd"),
    ],
)
def test_only_what_xml_forbids_is_replaced(raw: bytes, clean: bytes) -> None:
    assert strip_invalid(raw) == clean


def test_times_are_exact() -> None:
    moment = datetime(2023, 11, 14, 22, 13, 20, 123457, tzinfo=UTC)
    assert time_ns(moment) == 1_700_000_000_123_457_000
    assert time_ns(moment.astimezone(timezone(timedelta(hours=5)))) == time_ns(moment)
    assert time_ns(moment.replace(tzinfo=None)) == time_ns(moment)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("2023-11-14T22:13:20.123Z", 1_700_000_000_123_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),
        ("2023-11-14T22:13:20.123456Z", 1_700_000_000_123_456_000),
        ("2023-11-15T03:13:20.5+05:00", 1_700_000_000_500_000_000),
    ],
)
def test_times_are_read_in_every_form(text: str, ns: int) -> None:
    """Those that S3 writes are read by a short cut, others are no different."""
    body = f"<ListBucketResult><Contents><Key>k</Key><LastModified>{text}</LastModified></Contents></ListBucketResult>"
    assert parse_list_page(body.encode()).objects[0].mtime_ns == ns


def test_uploads_tell_where_to_go_on() -> None:
    body = (
        f"<ListMultipartUploadsResult {SPACE}><EncodingType>url</EncodingType>"
        "<IsTruncated>true</IsTruncated><NextKeyMarker>a%20b</NextKeyMarker>"
        "<NextUploadIdMarker>id1</NextUploadIdMarker><Upload><Key>a%20b</Key><UploadId>id1</UploadId>"
        "<Initiated>2023-11-14T22:13:20.000Z</Initiated></Upload></ListMultipartUploadsResult>"
    )
    read = parse_uploads_page(body.encode())
    assert (read.following, read.is_encoded) == (("a b", "id1"), True)
    assert [(u.key, u.upload_id, u.started_ns) for u in read.uploads] == [
        ("a b", "id1", 1_700_000_000_000_000_000)
    ]
