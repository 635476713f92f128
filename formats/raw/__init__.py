"""raw: the disk's bytes and nothing else."""

from imgtool.format import Format
from imgtool.options import Option, OptionTable

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
            Option(
                "nocow",
                "bool (on/off)",
                "Turn off copy-on-write (valid only on btrfs)",
                of_file=True,
            ),
            Option(
                "preallocation",
                "str",
                "Preallocation mode",
                choices=("off", "falloc", "full"),
                of_file=True,
            ),
            Option(
                "extent_size_hint",
                "size",
                "Extent size hint for the image file, 0 to disable",
                of_file=True,
            ),
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
