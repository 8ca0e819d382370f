"""What embedctl chooses for a store where its user has chosen nothing."""

from __future__ import annotations

import pytest

from embedctl.storage.store_options import is_encrypted


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ({}, {}, True),
        ({"endpoint": "https://s3.example.com"}, {}, True),
        ({"endpoint": "HTTP://127.0.0.1:9000"}, {}, False),
        ({"aws_endpoint_url": "http://127.0.0.1:9000"}, {}, False),
        ({}, {"AWS_ENDPOINT_URL": "http://minio:9000"}, False),
        ({}, {"AWS_ENDPOINT_URL_S3": "http://minio:9000"}, False),
        ({"endpoint": "https://s3.example.com"}, {"AWS_ENDPOINT_URL": "http://minio:9000"}, True),
        ({"unsigned_payload": "false"}, {}, False),
        ({"AWS_UNSIGNED_PAYLOAD": "true"}, {}, False),
        ({}, {"AWS_UNSIGNED_PAYLOAD": "false"}, False),
    ],
)
def test_contents_are_hashed_for_a_signature_only_where_nothing_else_keeps_them_whole(
    options: dict[str, str], environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS contents are not signed, over plain HTTP they are; whoever has said it otherwise is obeyed."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert is_encrypted(options) == expected
