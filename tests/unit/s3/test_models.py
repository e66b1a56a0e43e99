"""What is left out of botocore's data files is missed by nobody: each region's address is as botocore alone finds it."""

from collections.abc import Iterator
from typing import Any

import botocore.session
import pytest
from botocore.loaders import Loader

from s3mgrd.s3.models import data_loader

REGIONS = (
    "us-east-1",
    "eu-central-1",
    "ap-southeast-2",
    "cn-north-1",
    "us-gov-west-1",
    "us-iso-east-1",
    "eusc-de-east-1",
    "aws-global",
    "xx-nowhere-9",
)


def _address(loader: Loader, service: str, region: str) -> str:
    session = botocore.session.Session()
    session.register_component("data_loader", loader)
    client = session.create_client(
        service, region, aws_access_key_id="a", aws_secret_access_key="b"
    )
    url: str = client.meta.endpoint_url
    return url


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("service", ["s3", "sts"])
def test_addresses_are_those_that_botocore_finds(service: str, region: str) -> None:
    assert _address(data_loader(), service, region) == _address(Loader(), service, region)


def test_the_model_of_s3_is_whole_but_for_its_prose() -> None:
    def strip(node: Any) -> Any:  # noqa: ANN401 JSON
        if isinstance(node, dict):
            return {
                name: "" if name == "documentation" and isinstance(value, str) else strip(value)
                for name, value in node.items()
            }
        return [strip(value) for value in node] if isinstance(node, list) else node

    # A new one: botocore's clients change what their loader gave them.
    kept = data_loader.__wrapped__().load_service_model("s3", "service-2")
    whole = Loader().load_service_model("s3", "service-2")

    assert kept == strip(whole)
    assert kept != whole


def test_only_the_services_of_a_mount_are_kept() -> None:
    def services() -> Iterator[str]:
        for partition in data_loader().load_data("endpoints")["partitions"]:
            yield from partition["services"]

    assert set(services()) == {"s3", "sts"}
