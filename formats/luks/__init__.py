"""luks: a LUKS 1 volume in a file: an encrypted header, and a disk behind it."""

from imgtool.crypto.luks_options import volume_options
from imgtool.format import Format
from imgtool.options import Option, OptionTable


def _probe(head: bytes, tail: bytes) -> int:
    return 100 if head[:8] == b"LUKS\xba\xbe\x00\x01" else 0


FORMAT = Format(
    name="luks",
    description="LUKS 1 encrypted volume",
    probe=_probe,
    opener="imgtool.formats.luks.driver:open_device",
    creator="imgtool.formats.luks.create:create",
    judge="imgtool.formats.luks.create:judge",
    measurer="imgtool.formats.luks.measure:measure",
    describer="imgtool.formats.luks.describe:describe",
    inspector="imgtool.formats.luks.inspect:inspect",
    suffixes=(".luks",),
    create_options=OptionTable(
        (
            Option("size", "size", "Virtual disk size"),
            *volume_options(secret_help="ID of the secret that provides the keyslot passphrase"),
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
        (Option("key-secret", "str", "ID of the secret that unlocks it", secret=True),)
    ),
    features=frozenset(("create", "write", "resize", "encrypt")),
)
