"""What fuzzing has to know of luks: seed images, and where their structures lie."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from construct import Bytes

import imgtool
from imgtool.crypto import luks_header
from imgtool.schema import luks
from imgtool.schema.fields import parse
from tests.kit import referee
from tests.kit.effort import PROFILE
from tests.kit.fuzz.layout import Structure
from tests.kit.fuzz.subject import Subject
from tests.kit.tools import find_tool

PASSWORD = "a passphrase"


@contextlib.contextmanager
def cheap_keys() -> Iterator[None]:
    """Lower the bound on how long a key may be derived: minutes are for tests of the bound."""
    with mock.patch.object(luks_header, "MAX_ITERATIONS", 20_000):
        yield


def structures(image: bytes) -> Iterator[Structure]:
    """The header, the key material of the slots, and the payload."""
    yield Structure("header", 0, luks.HEADER)
    header = parse(luks.HEADER, image, "The header")
    for number, slot in enumerate(header.key_slots):
        if slot.active == luks.ACTIVE:
            offset = slot.key_material_offset * luks.SECTOR
            yield Structure(f"material-{number}", offset, Bytes(header.key_bytes * 64))
    yield Structure("payload", header.payload_offset * luks.SECTOR, Bytes(512))


def _made(**options: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="imgtool-fuzz-") as folder:
        path = Path(folder, "disk.luks")
        imgtool.create(path, 65536, format="luks", password=PASSWORD, iter_time=1, **options)
        return path.read_bytes()


def _from_qemu() -> bytes:
    with tempfile.TemporaryDirectory(prefix="imgtool-fuzz-") as folder:
        path = Path(folder, "disk.luks")
        referee.must(
            "qemu-img", "create", "-q", "-f", "luks", "--object", f"secret,id=s,data={PASSWORD}",
            "-o", "key-secret=s,iter-time=10", path, "64k",
        )  # fmt: skip
        return path.read_bytes()


_SEEDS: dict[str, Callable[[], bytes]] = {
    "xts": _made,
    "cbc-essiv": partial(_made, cipher_mode="cbc", ivgen_alg="essiv", cipher_alg="aes-128"),
    "ctr-sha1": partial(_made, cipher_mode="ctr", hash_alg="sha1"),
}
# QEMU measures for seconds how long keys are to be derived.
if PROFILE == "long" and find_tool("qemu-img") is not None:
    _SEEDS["qemu"] = _from_qemu

LUKS = Subject(
    format="luks",
    seeds=_SEEDS,
    structures=structures,
    schemas={"header": luks.HEADER},
    parsers={"describe": luks.describe, "volume": luks_header.Volume.parse},
    password=PASSWORD,
    during=cheap_keys,
)
