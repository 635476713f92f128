"""What is timed inside one process: run as a program, it prints the seconds that one call takes.

    python benchmarks/inprocess.py info IMAGE COUNT
    python benchmarks/inprocess.py random imgtool|libqcow|dissect IMAGE RAW COUNT
    python benchmarks/inprocess.py sequential imgtool|preadv FILE RAW

What is read is compared with the raw file first, which also fills the caches.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable

BLOCK = 4096
MIB = 1 << 20
#: How many of the random reads are compared with the raw file.
CHECKED = 2000
#: How often a sequential reader goes through the file.
ROUNDS = 4

#: Reads a length at an offset.
Reader = Callable[[int, int], bytes]
#: Fills a buffer from an offset on.
Filler = Callable[[int], object]


def imgtool_reader(path: str) -> Reader:
    """Read with imgtool."""
    import imgtool

    return imgtool.open(path).read_at


def libqcow_reader(path: str) -> Reader:
    """Read with libqcow-python."""
    import pyqcow

    image = pyqcow.file()
    image.open(path)

    def read(offset: int, length: int) -> bytes:
        data: bytes = image.read_buffer_at_offset(length, offset)
        return data

    return read


def dissect_reader(path: str) -> Reader:
    """Read with dissect.hypervisor."""
    from pathlib import Path

    from dissect.hypervisor.disk.qcow2 import QCow2

    stream = QCow2(Path(path)).open()

    def read(offset: int, length: int) -> bytes:
        stream.seek(offset)
        data: bytes = stream.read(length)
        return data

    return read


READERS = {"imgtool": imgtool_reader, "libqcow": libqcow_reader, "dissect": dissect_reader}


def time_info(path: str, count: int) -> float:
    """Return the seconds of one ``imgtool.info(path)``."""
    import imgtool

    imgtool.info(path)
    start = time.perf_counter()
    for _ in range(count):
        imgtool.info(path)
    return (time.perf_counter() - start) / count


def time_random(name: str, path: str, raw: str, count: int) -> float:
    """Return the seconds of one random read of 4 KiB."""
    read = READERS[name](path)
    blocks = os.path.getsize(raw) // BLOCK
    generator = random.Random(count)
    offsets = [generator.randrange(blocks) * BLOCK for _ in range(count)]
    with open(raw, "rb") as reference:
        for offset in offsets[:CHECKED]:
            if read(offset, BLOCK) != os.pread(reference.fileno(), BLOCK, offset):
                raise ValueError(f"{name} reads something else at {offset}")
    start = time.perf_counter()
    for offset in offsets:
        read(offset, BLOCK)
    return (time.perf_counter() - start) / count


def imgtool_filler(path: str, buffer: bytearray) -> Filler:
    """Fill ``buffer`` with imgtool."""
    import imgtool

    read_into = imgtool.open(path).read_into
    return lambda offset: read_into(offset, buffer)


def preadv_filler(path: str, buffer: bytearray) -> Filler:
    """Fill ``buffer`` from a plain file."""
    descriptor = os.open(path, os.O_RDONLY)
    return lambda offset: os.preadv(descriptor, [buffer], offset)


FILLERS = {"imgtool": imgtool_filler, "preadv": preadv_filler}


def time_sequential(name: str, path: str, raw: str) -> float:
    """Return the seconds of one read of 1 MiB, when all are read in order into one buffer."""
    size = os.path.getsize(raw)
    buffer = bytearray(MIB)
    fill = FILLERS[name](path, buffer)
    with open(raw, "rb") as reference:
        for offset in range(0, size, MIB):
            fill(offset)
            if buffer != os.pread(reference.fileno(), MIB, offset):
                raise ValueError(f"{name} reads something else at {offset}")
    start = time.perf_counter()
    for _ in range(ROUNDS):
        for offset in range(0, size, MIB):
            fill(offset)
    return (time.perf_counter() - start) / (ROUNDS * (size // MIB))


def main(arguments: list[str]) -> None:
    """Time what the arguments say and print it."""
    what, *rest = arguments
    if what == "info":
        seconds = time_info(rest[0], int(rest[1]))
    elif what == "random":
        seconds = time_random(rest[0], rest[1], rest[2], int(rest[3]))
    else:
        seconds = time_sequential(*rest)
    print(seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
