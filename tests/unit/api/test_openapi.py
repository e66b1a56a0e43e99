"""The document says everything that the API does, and the API does everything that it says."""

import json
from typing import Any

import msgspec
import pytest
import trio
from openapi_spec_validator import OpenAPIV31SpecValidator

from s3mgr import schema
from s3mgr.schema import OptionDoc, ProblemType
from s3mgrd.api.app import create_app
from s3mgrd.api.openapi import build_document
from s3mgrd.api.resources import ROUTES
from s3mgrd.api.routes import AnyRoute
from s3mgrd.api.settings import ApiSettings
from tests.fakes.service import FakeService
from tests.unit.api.client import Client

Json = dict[str, Any]  # Any: JSON

WIRE_STRUCTS = [
    item
    for item in (getattr(schema, name) for name in schema.__all__)
    if isinstance(item, type) and issubclass(item, msgspec.Struct) and item is not OptionDoc
]

EXPECTED_ROUTES = {
    "GET /v1/mounts",
    "GET /v1/mounts/{name}",
    "PUT /v1/mounts/{name}",
    "PATCH /v1/mounts/{name}",
    "DELETE /v1/mounts/{name}",
    "POST /v1/mounts/{name}/flush",
    "POST /v1/mounts/{name}/invalidate",
    "POST /v1/mounts/{name}/restart",
    "GET /v1/mounts/{name}/stats",
    "GET /v1/mounts/{name}/cache",
    "POST /v1/mounts/{name}/cache/warm",
    "POST /v1/mounts/{name}/cache/pin",
    "POST /v1/mounts/{name}/cache/unpin",
    "POST /v1/mounts/{name}/cache/evict",
    "GET /v1/mounts/{name}/cache/pins",
    "GET /v1/mounts/{name}/cache/files",
    "GET /v1/mounts/{name}/logs",
    "GET /v1/mounts/{name}/conflicts",
    "POST /v1/mounts/{name}/conflicts/{id}/restore",
    "DELETE /v1/mounts/{name}/conflicts/{id}",
    "GET /v1/mounts/{name}/queue",
    "POST /v1/mounts/{name}/queue/pause",
    "POST /v1/mounts/{name}/queue/resume",
    "POST /v1/mounts/{name}/queue/hurry",
    "GET /v1/mounts/{name}/archived",
    "POST /v1/mounts/{name}/archived/restore",
    "GET /v1/operations",
    "GET /v1/operations/{id}",
    "DELETE /v1/operations/{id}",
    "GET /v1/events",
    "GET /v1/info",
    "GET /livez",
    "GET /readyz",
    "GET /openapi.json",
}


@pytest.fixture(scope="module")
def document() -> Json:
    return build_document(ROUTES)


def operations(document: Json) -> dict[str, Json]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


async def test_the_served_document_is_valid_openapi(client: Client) -> None:
    answer = await client.get("/openapi.json")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(answer.json).validate()


async def test_every_route_of_the_application_is_in_the_document(document: Json) -> None:
    app = create_app(FakeService(), trio.Event(), ApiSettings())
    served = {
        f"{method} {rule.rule.replace('<', '{').replace('>', '}')}"
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
        if method not in ("HEAD", "OPTIONS")
    }
    assert served == set(operations(document)) == EXPECTED_ROUTES


@pytest.mark.parametrize("struct", WIRE_STRUCTS, ids=lambda struct: struct.__name__)
def test_every_field_of_every_wire_type_is_in_the_document(
    document: Json, struct: type[msgspec.Struct]
) -> None:
    described = document["components"]["schemas"][struct.__name__]
    assert set(described["properties"]) == set(struct.__struct_encode_fields__)
    assert described["description"]


def test_every_problem_type_is_in_the_document(document: Json) -> None:
    assert set(document["components"]["schemas"]["ProblemType"]["enum"]) == set(ProblemType)
    answered = {
        slug
        for operation in operations(document).values()
        for response in operation["responses"].values()
        for slug in response.get("x-problem-types", ())
    }
    assert answered == set(ProblemType)


def test_problems_are_declared_as_problems_and_nothing_else_is(document: Json) -> None:
    for name, operation in operations(document).items():
        for status, response in operation["responses"].items():
            is_problem = int(status) >= 400
            assert is_problem == ("x-problem-types" in response), (name, status)
            assert is_problem == ("application/problem+json" in response.get("content", ())), name
        assert {"400", "401", "403", "405", "500"} <= set(operation["responses"]), name


def test_every_operation_is_told_in_one_line_and_by_a_unique_id(document: Json) -> None:
    described = operations(document)
    assert all(operation["summary"].endswith(".") for operation in described.values())
    assert len({operation["operationId"] for operation in described.values()}) == len(described)


def test_every_reference_leads_somewhere(document: Json) -> None:
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for part in text.split('"$ref": "#/components/schemas/')[1:]:
        assert part.partition('"')[0] in schemas


def test_every_parameter_has_type_and_description(document: Json) -> None:
    for name, operation in operations(document).items():
        for parameter in operation["parameters"]:
            assert parameter["description"], (name, parameter)
            assert parameter["schema"], (name, parameter)
            assert parameter["required"] == (parameter["in"] == "path"), (name, parameter)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_bodies_and_query_parameters_are_those_of_the_handler(
    document: Json, route: AnyRoute
) -> None:
    operation = operations(document)[f"{route.method} {route.path}"]
    query = {p["name"] for p in operation["parameters"] if p["in"] == "query"}
    assert query == set(route.query.__struct_fields__)
    assert ("requestBody" in operation) == (route.body is not None)
    if route.body is not None:
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        assert reference.endswith("/" + route.body.__name__)
        assert {"408", "413", "422"} <= set(operation["responses"])
