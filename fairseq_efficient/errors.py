"""Errors that are the user's to mend: printed as one line, never as a traceback.

``UserError`` is a ``ValueError``, so library callers catch it as usual. On the command line
:func:`run_main` (our scripts) and :mod:`fairseq_efficient.compat` (fairseq's own commands) turn it into
``error: <message>`` on stderr and exit status 2.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # a disk is full or fails: nobody typed anything wrong


class UserError(ValueError):
    """A wrong flag, file or line. The message names it, on one line."""


class CannotWrite(OSError):
    """A file that could not be written (a full disk, a folder that went away); what was there before still is."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's ``main`` and exit with 0 (done), 1 (the work failed), 2 (the command was wrong) or 130 (Ctrl-C).

    ``main`` returns an exit status or None for success.
    """
    try:
        status = main() or 0
        sys.stdout.flush()
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        status = 2
    except (CannotWrite, ChildProcessError) as err:
        print(f"error: {err}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # `script | head` is not an error
        sys.stderr.close()
        status = 0
    except OSError as err:
        if err.errno not in DISK:
            raise
        print(f"error: {err.filename or 'standard output'}: {err.strerror}", file=sys.stderr)
        with contextlib.suppress(OSError):  # or Python says it again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = 1
    sys.exit(status)
