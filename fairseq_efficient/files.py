"""Files that are whole or not there: written beside their place, then put into it."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fairseq_efficient.errors import DISK, CannotWrite, UserError


@contextlib.contextmanager
def replacing(path: str) -> Iterator[BinaryIO]:
    """A file to write that takes ``path``'s place when it is whole and on the disk, and is removed on any error.

    Raises:
        CannotWrite: an OSError with the number of the write's, naming ``path``, which is as it was before.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target):
        with open(target, "wb") as file:  # a device or a pipe is not replaced
            yield file
        return
    temporary = target + ".tmp"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(target):
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException as err:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        cause = _os_error(err)
        if cause is None:
            raise
        why = f"{cause.strerror or cause}; an earlier file of that name is as it was"
        raise CannotWrite(cause.errno, why, str(path)) from err
    _sync_folder(os.path.dirname(target))


def _os_error(err: BaseException | None) -> OSError | None:
    """The OSError behind ``err``: torch.save hides a full disk behind a RuntimeError of its zip writer."""
    while err is not None and not isinstance(err, OSError):
        err = err.__cause__ or err.__context__
    return err


def _sync_folder(folder: str) -> None:
    with contextlib.suppress(OSError):  # not every file system syncs folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_bytes(path: Path, data: bytes, flag: str = "") -> None:
    """Write a file, or leave the one that is there as it is.

    Args:
        flag: that named it, for messages.

    Raises:
        UserError: there is no such folder, or no permission. CannotWrite: the disk is full, or fails.
    """
    try:
        with replacing(str(path)) as file:
            file.write(data)
    except OSError as err:
        if err.errno in DISK:
            raise CannotWrite(err.errno, err.strerror, f"{flag} {path}".lstrip()) from None
        why = (err.strerror or str(err)).partition(";")[0]
        raise UserError(f"{flag} {path}: {why}".lstrip()) from None


def write_text(path: Path, text: str, flag: str = "") -> None:
    """:func:`write_bytes` of a text, in UTF-8."""
    write_bytes(path, text.encode("utf-8"), flag)


def write_json(path: Path, value: Any, flag: str = "") -> None:
    """:func:`write_text` of a value as indented JSON."""
    write_text(path, json.dumps(value, indent=1) + "\n", flag)


def check_output(path: Path | None, flag: str = "", *inputs: Path | None) -> None:
    """Before any work: UserError for a file that is to be written where there is no folder, or over an input."""
    if path is None:
        return
    named = f"{flag} {path}".lstrip()
    try:
        if not path.parent.is_dir() or path.is_dir():
            raise UserError(f"{named}: {'is a folder' if path.is_dir() else 'no such folder'}")
        if any(one is not None and one.exists() and path.exists() and path.samefile(one) for one in inputs):
            raise UserError(f"{named}: is read, too; write elsewhere")
    except OSError as err:
        raise UserError(f"{named}: {err.strerror}") from None
