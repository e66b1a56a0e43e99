"""A bucket that is deleted under its mount: programs hear of it, nothing is lost, and all goes on when it is back."""

import errno
import os

import pytest

from tests.e2e.lab import Daemon
from tests.servers.endpoint import Endpoint
from tests.servers.plugin import make_bucket, remove_bucket


def test_a_mount_without_its_bucket_is_failed_keeps_its_data_and_goes_on_by_itself(
    daemon: Daemon, s3_endpoint: Endpoint
) -> None:
    client = s3_endpoint.boto3()
    bucket = make_bucket(client)
    client.put_object(Bucket=bucket, Key="old", Body=b"before")
    mount = daemon.mount(
        s3_endpoint, bucket, "m", "-o", "metadata_ttl_s=0,negative_ttl_s=0,retry_deadline_s=1"
    )
    (mount / "directory").mkdir()
    daemon.flush()
    remove_bucket(client, bucket)
    with pytest.raises(OSError, match=r"\[Errno") as refused:
        os.listdir(mount)
    assert refused.value.errno == errno.EIO
    status = daemon.wait_state("failed").status
    assert status.reason == "bucket-gone"
    assert repr(bucket) in status.message
    assert "goes on by itself" in daemon.run("show", "m").stdout

    client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=bucket, Key="back", Body=b"again")
    daemon.wait_state("mounted")
    assert os.listdir(mount) == ["back"]

    # What is written while it is gone is kept, also by the next worker, and uploaded later.
    descriptor = os.open(mount / "written", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"kept")
    remove_bucket(client, bucket)
    with pytest.raises(OSError, match=r"\[Errno") as refused:
        os.close(descriptor)
    assert refused.value.errno == errno.EIO
    assert daemon.wait_state("failed").status.reason == "bucket-gone"
    daemon.run("restart", "m")
    flushed = daemon.run("flush", "m", check=False)
    assert flushed.returncode != 0
    assert daemon.wait_state("failed").status.dirty_bytes == len(b"kept")
    client.create_bucket(Bucket=bucket)
    daemon.wait_state("mounted")
    daemon.flush()
    assert client.get_object(Bucket=bucket, Key="written")["Body"].read() == b"kept"
    daemon.run("unmount", "m")
    remove_bucket(client, bucket)
    client.close()
