"""``python -m imgtool``, and the console script."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line. Ctrl-C ends in one line even while modules are still being loaded."""
    try:
        from imgtool.cli.main import main
    except KeyboardInterrupt:
        sys.stderr.write("imgtool: Interrupted\n")
        sys.exit(130)
    main()


if __name__ == "__main__":
    main()
