"""Zip archives, as torch writes them: every checksum is compared before anything is used."""

from __future__ import annotations

import os
import zipfile
from typing import BinaryIO

from qat.reading.bounds import GROWTH, check_bytes

ZIP_START = b"PK\x03\x04"
ZIP_END = b"PK\x05\x06"
END_BYTES = 22
"""Length of the last record of an archive without a comment. No archive that is read here has one."""


def check_members(file: BinaryIO, growth: int = GROWTH) -> list[str]:
    """Check the whole archive, which stays open.

    Args:
        file: the archive.
        growth: how many times its size it may unpack to.

    Returns:
        The names of its members.

    Raises:
        ValueError: it unpacks to too much, a checksum does not fit, or there is something before or behind it.
        zipfile.BadZipFile: it is cut off.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(-min(size, END_BYTES), os.SEEK_END)
    ends = file.read(len(ZIP_END)) == ZIP_END
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if not ends or min((member.header_offset for member in members), default=0):
            raise ValueError("it has other bytes before or behind the archive")
        if len(set(names)) < len(names):
            raise ValueError("two members have one name")
        check_bytes(sum(member.file_size for member in members), size, growth)
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {damaged} does not fit")
    file.seek(0)
    return names


def check_archive(file: BinaryIO) -> bytes:
    """Check an archive of torch.

    Returns:
        Its pickle, the member that ends in /data.pkl, which is not executed.

    Raises:
        ValueError: see `check_members`, or there is no pickle, or it is a program.
    """
    names = check_members(file)
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError("it is a program in TorchScript")
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it has no data.pkl")
    with zipfile.ZipFile(file) as archive:
        return archive.read(pickles[0])
