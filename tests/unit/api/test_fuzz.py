"""Whatever comes in is parsed or refused, and a refusal of JSON points into it; nothing else is ever raised."""

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s3mgr.schema import FlushRequest, InvalidateRequest, MountPatch, MountRequest
from s3mgrd.api.openapi import build_document
from s3mgrd.api.problems import InvalidParameter, MalformedRequest, UnsupportedMediaType
from s3mgrd.api.requests import locate, parse_body, parse_query
from s3mgrd.api.resources import ROUTES
from s3mgrd.errors import InvalidSpec, UserError

BODIES = (MountRequest, MountPatch, FlushRequest, InvalidateRequest)
SCHEMAS: dict[str, dict[str, Any]] = build_document(ROUTES)["components"]["schemas"]  # Any: JSON

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def outcome(parse: Callable[[], object]) -> object:
    """Return what *parse* returns, or the refusal that it raises, which says why."""
    try:
        return parse()
    except UserError as refusal:
        return refusal


def values_of(described: dict[str, Any]) -> st.SearchStrategy[object]:
    """Draw mostly what a schema allows, and sometimes anything at all."""
    if "$ref" in described:
        return values_of(SCHEMAS[described["$ref"].rpartition("/")[2]])
    if "anyOf" in described:
        return st.one_of([values_of(option) for option in described["anyOf"]])
    if "enum" in described:
        return st.sampled_from(described["enum"]) | json_values
    kind = described.get("type")
    if kind == "object" and "properties" in described:
        fields = {name: values_of(field) for name, field in described["properties"].items()}
        required = {name: fields[name] for name in described.get("required", ())}
        optional = {name: field for name, field in fields.items() if name not in required}
        known = st.fixed_dictionaries(required, optional=optional)
        return known | st.builds(
            lambda a, b: {**a, **b}, known, st.dictionaries(st.text(), json_values, max_size=1)
        )
    if kind == "object":
        return st.dictionaries(st.text(max_size=70), st.none() | st.text(max_size=300), max_size=3)
    allowed: dict[str | None, st.SearchStrategy[object]] = {
        "string": st.text() | st.sampled_from(["/mnt/x", "b", "0644"]),
        "boolean": st.booleans(),
        "integer": st.integers(
            described.get("minimum", -(1 << 40)), described.get("maximum", 1 << 40)
        ),
        "number": st.floats(0, described.get("maximum", 1e9)),
        "null": st.none(),
    }
    return allowed[kind] | json_values


@pytest.mark.parametrize("shape", BODIES, ids=lambda shape: shape.__name__)
def test_json_is_parsed_or_refused_with_a_pointer_into_it(shape: type[msgspec.Struct]) -> None:
    accepted = 0

    @settings(
        max_examples=150,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(values_of(SCHEMAS[shape.__name__]))
    def check(value: object) -> None:
        nonlocal accepted
        raw = msgspec.json.encode(value)
        parsed = outcome(lambda: parse_body(raw, "application/json", shape, required=True))
        if isinstance(parsed, InvalidSpec):
            assert parsed.pointer == "" or points_at(value, parsed.pointer), parsed
        else:
            assert isinstance(parsed, shape)
            accepted += 1

    check()
    assert accepted > 0


def points_at(value: object, pointer: str) -> bool:
    """Tell whether *pointer* leads to a member, or to one that is missing in an existing object."""
    *parents, last = [
        token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]
    ]
    for token in parents:
        assert isinstance(value, dict)
        value = value[token]
    return isinstance(value, dict) and (last in value or last.isidentifier())


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from(["", "application/json", "text/plain", "\x00"]))
def test_bytes_are_parsed_or_refused(raw: bytes, content_type: str) -> None:
    parsed = outcome(lambda: parse_body(raw, content_type, MountPatch, required=True))
    assert isinstance(parsed, MountPatch | InvalidSpec | MalformedRequest | UnsupportedMediaType)


@settings(deadline=None, derandomize=True)
@given(st.dictionaries(st.text(), st.lists(st.text(), min_size=1, max_size=2), max_size=3))
def test_query_parameters_are_parsed_or_refused(args: dict[str, list[str]]) -> None:
    for shape in {route.query for route in ROUTES}:
        parsed = outcome(functools.partial(parse_query, args, shape))
        assert isinstance(parsed, shape | InvalidParameter)


@settings(deadline=None, derandomize=True)
@given(st.text())
def test_any_message_can_be_located(message: str) -> None:
    pointer, what = locate(message)
    assert what is not None
    assert pointer == "" or pointer.startswith("/")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Expected `int`, got `str` - at `$.spec.options.uid`", "/spec/options/uid"),
        ("Expected `str` - at `$.items[3].name`", "/items/3/name"),
        ("Expected `str` - at `$.labels[...]`", "/labels"),
        ("Expected `str` of length >= 1 - at `key` in `$.spec.labels`", "/spec/labels"),
        ("Object contains unknown field `x/y` - at `$.spec`", "/spec/x~1y"),
        ("Object missing required field `spec`", "/spec"),
        ("Expected `object`, got `array`", ""),
    ],
)
def test_the_path_in_a_message_becomes_a_pointer(message: str, expected: str) -> None:
    """The form of msgspec's messages is not documented: this fails when it changes."""
    assert locate(message)[0] == expected


def test_the_messages_are_those_of_the_installed_msgspec() -> None:
    class Inner(msgspec.Struct, forbid_unknown_fields=True):
        n: int = 0

    class Outer(msgspec.Struct):
        inner: list[Inner]

    for raw, pointer in (
        (b'{"inner": [{"n": 1}, {"n": "x"}]}', "/inner/1/n"),
        (b'{"inner": [{"m": 1}]}', "/inner/0/m"),
        (b"{}", "/inner"),
    ):
        with pytest.raises(InvalidSpec) as caught:
            parse_body(raw, "", Outer, required=True)
        assert caught.value.pointer == pointer
