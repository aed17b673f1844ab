"""The transfers of a Python archiver: scratch, tar, md5, multipart upload.

What ScopeMArchiver 1b562f3 was recorded doing with the bytes of one dataset, and nothing else of it: no Prefect,
no catalogue. Download with four threads to scratch, tar on scratch, md5 of every file read back, upload in parts
of 64 MiB. The measured program gives endpoint, keys, buckets, prefixes and a scratch directory.
"""

import hashlib
import os
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config


def main(endpoint: str, landing: str, archive: str, source: str, target: str, scratch: str) -> None:
    s3 = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=os.environ["S3_USER"],
        aws_secret_access_key=os.environ["S3_PASSWORD"],
        region_name="eu-west-1",
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )
    raw = Path(scratch) / "raw_files"
    keys = [
        entry["Key"]
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=landing, Prefix=source)
        for entry in page.get("Contents", [])
    ]

    def download(key: str) -> None:
        path = raw / key.removeprefix(source).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(landing, key, str(path))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(download, keys))
    tar_path = Path(scratch) / "datablock_0.tar"
    with tarfile.open(tar_path, "w") as tar:
        for path in sorted(raw.rglob("*")):
            if path.is_file():
                tar.add(path, arcname=str(path.relative_to(raw)))
    for path in raw.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                hashlib.file_digest(file, "md5")
    part = 64 * 1024 * 1024
    s3.upload_file(
        str(tar_path),
        archive,
        f"{target}/datablock_0.tar",
        Config=TransferConfig(multipart_threshold=part, multipart_chunksize=part),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
