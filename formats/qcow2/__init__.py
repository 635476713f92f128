"""qcow2: QEMU's copy-on-write format, versions 2 and 3."""

from imgtool.crypto.luks_options import volume_options
from imgtool.format import Format
from imgtool.options import EXTENT_SIZE_HINT, NOCOW, Option, OptionTable


def _probe(head: bytes, tail: bytes) -> int:
    if head[:4] == b"QFI\xfb" and int.from_bytes(head[4:8], "big") >= 2:
        return 100
    return 0


#: Options of new images that can be changed afterwards.
_COMPAT = Option("compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])")
_BACKING = (
    Option("backing_file", "str", "File name of a base image"),
    Option("backing_fmt", "str", "Image format of the base image"),
)
_DATA_FILE = (
    Option("data_file", "str", "File name of an external data file"),
    Option(
        "data_file_raw", "bool (on/off)", "The external data file must stay valid as a raw image"
    ),
)

FORMAT = Format(
    name="qcow2",
    description="QEMU copy-on-write, version 2 and 3",
    probe=_probe,
    opener="imgtool.formats.qcow2.opening:open_device",
    creator="imgtool.formats.qcow2.create:create",
    judge="imgtool.formats.qcow2.create:judge",
    checker="imgtool.formats.qcow2.check:check",
    repairer="imgtool.formats.qcow2.repair:repair",
    measurer="imgtool.formats.qcow2.measure:measure",
    amender="imgtool.formats.qcow2.amend:amend",
    bitmapper="imgtool.formats.qcow2.bitmap_store:bitmaps_of",
    describer="imgtool.formats.qcow2.describe:describe",
    inspector="imgtool.formats.qcow2.inspect:inspect",
    suffixes=(".qcow2", ".qcow2c"),
    create_options=OptionTable(
        (
            Option(
                "encryption",
                "bool (on/off)",
                "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=luks)",
            ),
            Option("encrypt.format", "str", "Encrypt the image, format choices: 'luks'"),
            *volume_options("encrypt.", "ID of the secret that provides the LUKS passphrase"),
            Option("cluster_size", "size", "qcow2 cluster size", default=65536),
            Option("extended_l2", "bool (on/off)", "Extended L2 tables", default="off"),
            Option(
                "preallocation",
                "str",
                "Preallocation mode",
                choices=("off", "metadata", "falloc", "full"),
            ),
            Option(
                "compression_type",
                "str",
                "Compression method used for image cluster compression",
                default="zlib",
            ),
            Option("size", "size", "Virtual disk size"),
            _COMPAT,
            *_BACKING,
            *_DATA_FILE,
            Option("lazy_refcounts", "bool (on/off)", "Postpone refcount updates", default="off"),
            Option("refcount_bits", "num", "Width of a reference count entry in bits", default=16),
            NOCOW,
            EXTENT_SIZE_HINT,
        )
    ),
    amend_options=OptionTable(
        (
            *_BACKING,
            _COMPAT,
            *_DATA_FILE,
            Option("lazy_refcounts", "bool (on/off)", "Postpone refcount updates"),
            Option("refcount_bits", "num", "Width of a reference count entry in bits"),
            Option("size", "size", "Virtual disk size"),
        )
    ),
    open_options=OptionTable(
        (
            Option("snapshot", "str", "Id or name of the internal snapshot to open"),
            Option("snapshot.id", "str", "Id of the internal snapshot to open"),
            Option("snapshot.name", "str", "Name of the internal snapshot to open"),
            Option("encrypt.format", "str", "How the image must be encrypted: 'luks' or 'aes'"),
            Option("encrypt.key-secret", "str", "ID of the secret that unlocks it", secret=True),
        )
    ),
    features=frozenset(
        (
            "create",
            "write",
            "resize",
            "encrypt",
            "backing",
            "compress",
            "snapshots",
            "bitmaps",
            "zero-clusters",
            "data-file",
        )
    ),
)
