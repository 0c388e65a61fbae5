"""Errors that are the user's to mend: printed as one line, never as a traceback.

``UserError`` is a ``ValueError``, so library callers catch it as usual. On the command line
:func:`run_main` (our scripts) and :mod:`fairseq_efficient.compat` (fairseq's own commands) turn it into
``error: <message>`` on stderr and exit status 2.
"""

import sys
from collections.abc import Callable


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
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        status = 2
    except CannotWrite as err:
        print(f"error: {err}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # `script | head` is not an error
        sys.stderr.close()
        status = 0
    sys.exit(status)
