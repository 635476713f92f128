"""The command ``imgtool``, which is ``python -m imgtool`` as well."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # typing's own costs milliseconds
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """Load the command line and run it; Ctrl-C ends it cleanly from the first moment on."""
    try:
        from imgtool.cli.main import main
    except KeyboardInterrupt:
        sys.stderr.write("imgtool: Interrupted\n")
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
