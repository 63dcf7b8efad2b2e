"""From errors to exit codes: 0 done, 1 the job failed, 2 the input was wrong, 130 interrupted."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

from bfp.errors import BfpError, Interrupted

DEBUG = "--debug"


def main() -> None:
    """The console script `bfp`."""
    # In the order of their descriptors, of which each takes its own: else the next file to be opened would get it.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed, as by `>&-`
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (as long as the process lives)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; print what went wrong, if anything, and return the exit code."""
    # Looking for plugins, of which none is wanted, takes pydantic a twentieth of a light command's time.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from bfp.cli.app import app

    debug = DEBUG in arguments
    try:
        app([argument for argument in arguments if argument != DEBUG], prog_name="bfp")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except BfpError as error:
        return _tell(error, debug=debug)
    except Exception as error:  # the last resort: a mistake of ours, which must not end in a screen of traceback
        _say(f"bfp: an error of bfp's own: {type(error).__name__}: {error}", error, debug=debug)
        return 1
    return 0


def _tell(error: BfpError, *, debug: bool) -> int:
    if isinstance(error, Interrupted):
        sys.stderr.write(f"bfp: {error}\n")
    else:
        _say(f"bfp: {error}", error, debug=debug, hint=error.exit_code == 1)
    return error.exit_code


def _say(text: str, error: BaseException, *, debug: bool, hint: bool = True) -> None:
    sys.stderr.write("\n  ".join([text, *getattr(error, "__notes__", [])]) + "\n")
    if debug:
        traceback.print_exception(error)
    elif hint:
        sys.stderr.write(f"  {DEBUG} shows the whole traceback\n")
