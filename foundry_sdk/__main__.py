"""``python -m foundry_sdk``: the same as the command ``foundry``, and what ranks are started as."""

import atexit
import os
import sys
from contextlib import suppress

from foundry_sdk.cli.main import main


def run() -> None:
    """Run the command line; one rank of several leaves out the teardown of the interpreter.

    By then the run is closed, and its exit code is known. Threads of a communication library may
    outlive its process groups, and the interpreter's end then aborts (SIGABRT) what went well.

    Raises:
        SystemExit: always, outside of ranks.
    """
    try:
        main()
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if os.environ.get("WORLD_SIZE", "1") == "1" or not isinstance(code, int):
            raise
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(BrokenPipeError, ValueError):  # its reader has left, or it is closed
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    run()
