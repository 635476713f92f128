"""The command ``imgtool``, which is ``python -m imgtool`` as well."""

from __future__ import annotations

import gc
import sys

TYPE_CHECKING = False  # typing's own costs milliseconds
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Load the command line and run it; Ctrl-C ends it cleanly from the first moment on."""
    # Loading makes many objects and no garbage. To look for some as often as Python does of itself
    # takes a twentieth of the time of `info`, and no command makes much.
    gc.set_threshold(50_000)
    try:
        from imgtool.cli.main import main

        # It looks out for Ctrl-C itself, but not before its first statement.
        main()
    except KeyboardInterrupt:
        sys.stderr.write("imgtool: Interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
