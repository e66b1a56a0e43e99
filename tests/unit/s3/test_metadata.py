"""User metadata in header values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3mgrd.errors import UserError
from s3mgrd.s3.metadata import decode_metadata, decode_value, encode_metadata, encode_value


@given(st.text())
def test_every_text_survives(value: str) -> None:
    value = value.encode("utf-8", "ignore").decode()
    encoded = encode_value(value)
    assert encoded.isascii()
    assert encoded.isprintable()
    assert encoded
    assert decode_value(encoded) == value


@pytest.mark.parametrize("value", ["33188", "1700000000.5", "a b", "%41", "a=b?c", "=?utf-8?"])
def test_plain_values_go_as_they_are(value: str) -> None:
    """Other tools read what they know, and what they wrote is not misread."""
    assert encode_value(value) == value
    assert decode_value(value) == value


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("=?UTF-8?Q?=C3=A4=20b_c?=", "ä b c"),
        ("=?iso-8859-1?q?=E4?=", "ä"),
        ("=?UTF-8?B?not base64?=", "=?UTF-8?B?not base64?="),
        ("=?no-such-charset?B?eA==?=", "=?no-such-charset?B?eA==?="),
        ("two =?UTF-8?B?eA==?=", "two =?UTF-8?B?eA==?="),
    ],
)
def test_what_other_tools_encode_is_read(header: str, value: str) -> None:
    assert decode_value(header) == value


def test_names_become_lower_case_when_read() -> None:
    assert decode_metadata({"Mode": "1"}) == {"mode": "1"}


@pytest.mark.parametrize("name", ["", "a b", "Ä", "Mode", "a:b", "a\n"])
def test_names_that_are_no_header_names_are_refused(name: str) -> None:
    with pytest.raises(UserError):
        encode_metadata({name: "x"})
