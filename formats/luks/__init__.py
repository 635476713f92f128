"""luks: a LUKS 1 volume in a file: an encrypted header, and a disk behind it."""

from imgtool.crypto.luks_options import volume_options
from imgtool.format import Format
from imgtool.options import EXTENT_SIZE_HINT, FILE_PREALLOCATION, NOCOW, Option, OptionTable


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
            NOCOW,
            FILE_PREALLOCATION,
            EXTENT_SIZE_HINT,
        )
    ),
    open_options=OptionTable(
        (Option("key-secret", "str", "ID of the secret that unlocks it", secret=True),)
    ),
    features=frozenset(("create", "write", "resize", "encrypt")),
)
