"""Files read without waiting for ever, and written whole or not at all.

Reading takes regular files only: opening a named pipe would wait for a writer that may never come,
and a device may never end. Writing goes to a new file beside the target, renamed once it is whole;
a target that is a device or a pipe is written through, since a rename would replace it.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
DESCRIPTORS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
"""How the paths of files begin that are open already."""


class NotRegular(OSError):
    """What was to be read is no regular file; ``strerror`` says what it is."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a pipe only if the shell has opened it (``<(command)``).

    Raises:
        NotRegular: a named pipe, a device, a socket or a folder.
        OSError: it cannot be read.
    """
    # Without blocking: a named pipe's open would wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    is_given = stat.S_ISFIFO(mode) and str(path).startswith(DESCRIPTORS)
    if not stat.S_ISREG(mode) and not is_given:
        os.close(descriptor)
        kind = next((name for test, name in _KINDS if test(mode)), "something else")
        raise NotRegular(errno.EINVAL, f"it is {kind}, not a file", str(path))
    if is_given:
        os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "rb")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of ``path`` when the block has ended well.

    A link is followed. A target that is there keeps its permissions. Where the block fails, the
    target is as it was.

    Raises:
        OSError: it cannot be written.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    if path.exists() and not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            aside = Path(folder) / "whole"
            yield aside
            with aside.open("rb") as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
        return
    target = path.resolve()
    aside = target.with_name(f".{secrets.token_hex(4)}.part")
    try:
        aside.touch(exist_ok=False)
        yield aside
        if target.exists():
            shutil.copymode(target, aside)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """See now whether :func:`replacing` will be able to write there.

    Raises:
        OSError: it will not.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    is_device = path.exists() and not path.is_file()
    where = path if is_device else path.resolve().parent
    if not os.access(where, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(where))


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file; see :func:`replacing`.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
