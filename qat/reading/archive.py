"""Zip archives, as torch writes them: every checksum is compared before anything is used."""

from __future__ import annotations

import os
import zipfile
from typing import BinaryIO

from qat.reading.bounds import check_bytes

ZIP_START = b"PK\x03\x04"


def check_archive(file: BinaryIO) -> bytes:
    """Check the whole archive.

    Returns:
        Its pickle, the member that ends in /data.pkl, which is not executed.

    Raises:
        ValueError: it unpacks to too much, a checksum does not fit, there is no pickle, or it is a program; zipfile raises
            others for an archive that is cut off.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if len(set(names)) < len(names):
            raise ValueError("two members have one name")
        if any(name.endswith("/constants.pkl") for name in names):
            raise ValueError("it is a program in TorchScript")
        check_bytes(sum(member.file_size for member in members), size)
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} does not fit")
        pickles = [name for name in names if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl")
        return archive.read(pickles[0])
