"""Object storage on loopback with one bucket, for tests: S3 (moto), and Google's (gcp-storage-emulator)."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def object_storage() -> Iterator[str]:
    """Yields the bucket's address; the server's endpoint and keys are in the environment meanwhile.

    Needs the packages of the extra dev.
    """
    import boto3
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        with _environment(settings):
            # One that an earlier server's endpoint was read into would be used again.
            S3FileSystem.clear_instance_cache()
            # moto keeps its buckets for as long as the process lives: every server has another one.
            bucket = f"teacher-stores-{uuid.uuid4().hex[:8]}"
            boto3.client("s3").create_bucket(Bucket=bucket)
            yield f"s3://{bucket}"
    finally:
        server.stop()


@contextmanager
def google_storage() -> Iterator[str]:
    """Yields the bucket's address, as `object_storage` does. It knows no conditions on what is written."""
    from gcp_storage_emulator.server import create_server
    from gcsfs import GCSFileSystem

    from raystill.testing.ports import find_port

    port, bucket = find_port(), f"copies-{uuid.uuid4().hex[:8]}"
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=bucket)
    server.start()
    try:
        with _environment({"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "NO_GCE_CHECK": "true"}):
            GCSFileSystem.clear_instance_cache()
            yield f"gs://{bucket}"
    finally:
        server.stop()


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
