"""What tests rely on in the S3 servers themselves."""

import socket
from urllib.parse import urlsplit

from tests.servers.endpoint import Endpoint


def test_a_body_whose_sender_goes_away_becomes_no_object(
    s3_endpoint: Endpoint, bucket: str
) -> None:
    """A worker that is killed while it sends must not leave half an object, here as little as at S3."""
    address = urlsplit(s3_endpoint.url)
    for number, body in enumerate((b"", b"half")):
        request = f"PUT /{bucket}/key{number} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 8\r\n\r\n"
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(request.encode() + body)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):  # until the server has noticed
                pass
    client = s3_endpoint.boto3()
    assert "Contents" not in client.list_objects_v2(Bucket=bucket)
    client.close()
