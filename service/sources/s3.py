"""Bundles in S3, or in a store that speaks its protocol (``AWS_ENDPOINT_URL_S3``)."""

from typing import Any

from peterrec.model.errors import PeterRecError
from peterrec.service.errors import SourceDenied, SourceNotFound
from peterrec.service.sources.address import Address
from peterrec.service.sources.receiving import (
    CHUNK_BYTES,
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    Receiver,
    broken,
    library,
    reason_of,
)

NOT_FOUND = frozenset({"NoSuchKey", "NoSuchBucket", "404"})
ATTEMPTS = 3


def fetch(source: Address, to: Receiver) -> None:
    """Write an object to the receiver's file; errors named ``Source…``.

    Credentials, region and endpoint are those of boto3: variables, profile, or the machine's role.
    """
    boto3 = library("boto3", "s3", "s3")
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
    )
    try:
        client = boto3.session.Session().client("s3", config=config)
        answer = client.get_object(Bucket=source.place, Key=source.path)
        with to.open(source, answer["ContentLength"]) as file:
            for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
                file.write(chunk)
    except ClientError as error:
        raise _refused(source, error.response) from error
    except BotoCoreError as error:
        if "Credential" in type(error).__name__:
            raise SourceDenied(source, "there are no credentials for S3") from error
        raise broken(source, reason_of(error)) from error


def _refused(source: Address, answer: dict[str, Any]) -> PeterRecError:  # Any: boto3's
    """The error that an answer of S3 means; its words may repeat an id of a key."""
    code = str(answer.get("Error", {}).get("Code", ""))
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in NOT_FOUND:
        return SourceNotFound(f"there is nothing at {source}.", hint="Check bucket and key.")
    if 400 <= status < 500:
        return SourceDenied(source, code[:40] or f"HTTP status {status}")
    return broken(source, f"HTTP status {status}")
