"""raw: the disk's bytes and nothing else."""

from imgtool.format import Format
from imgtool.options import EXTENT_SIZE_HINT, FILE_PREALLOCATION, NOCOW, Option, OptionTable

FORMAT = Format(
    name="raw",
    description="the disk's bytes as they are",
    # Anything can be raw, so any format with a signature outweighs it.
    probe=lambda head, tail: 1,
    opener="imgtool.formats.raw.driver:open_device",
    creator="imgtool.formats.raw.create:create",
    measurer="imgtool.formats.raw.measure:measure",
    inspector="imgtool.formats.raw.inspect:inspect",
    suffixes=(".raw", ".img"),
    create_options=OptionTable(
        (
            Option("size", "size", "Virtual disk size"),
            NOCOW,
            FILE_PREALLOCATION,
            EXTENT_SIZE_HINT,
        )
    ),
    open_options=OptionTable(
        (
            Option("offset", "size", "Where in the file the disk begins"),
            Option("size", "size", "How long the disk is"),
        )
    ),
    features=frozenset(("create", "write", "resize")),
)
