"""Install a system on a disk that imgtool made, boot it, and read the disk back.

Every disk is empty at first. A guest partitions it, makes a file system and installs a system;
the next guest boots from what the first one left. After each the image is checked by imgtool and
by qemu-img, the file system by e2fsck, and each file is read through the library and compared
with what it should hold and with what the guest says that it holds.
"""

from __future__ import annotations

import hashlib
import random
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.guest import ext4
from tests.guest.command import check_clean, imgtool_command
from tests.guest.initramfs import build_initramfs
from tests.guest.kernel import require_kernel
from tests.guest.library import copy_partition, locate_ext4
from tests.guest.machine import Machine

pytestmark = pytest.mark.slow

SIZE = "1G"

SEEDS = {
    "deep/down/below/leaf": b"leaf\n",
    "empty": b"",
    "log": b"installed\n",
    "noise": random.Random(1).randbytes((6 << 20) + 13),
    "text": b"".join(b"line %d of a text\n" % number for number in range(100_000)),
    "victim": random.Random(2).randbytes(3 << 20),
    "zeros": bytes(2 << 20),
}

#: What is on the disk after a boot: a line more in the log, and the victim gone.
BOOTED = {name: content for name, content in SEEDS.items() if name != "victim"} | {
    "log": SEEDS["log"] + b"booted\n"
}

BOOTED_TWICE = BOOTED | {"log": BOOTED["log"] + b"booted\n"}


class Disk(NamedTuple):
    """An image that a guest boots from."""

    path: Path
    fmt: str


@pytest.fixture(scope="module")
def machine(module_scratch: Path) -> Machine:
    kernel = require_kernel()
    initramfs = module_scratch / "initramfs.cpio"
    build_initramfs(initramfs, kernel, SEEDS)
    return Machine(kernel, initramfs)


@pytest.fixture(scope="module", params=["qcow2", "raw"])
def installed(request: pytest.FixtureRequest, machine: Machine, module_scratch: Path) -> Disk:
    """A disk with a system on it, which no test may change."""
    fmt: str = request.param
    disk = Disk(module_scratch / f"installed.{fmt}", fmt)
    imgtool_command("create", "-f", fmt, disk.path, SIZE)
    machine.boot(disk.path, fmt, "install")
    return disk


def test_install(installed: Disk, scratch: Path) -> None:
    assert_holds(installed, SEEDS, scratch)


def test_boot(installed: Disk, machine: Machine, scratch: Path) -> None:
    disk = Disk(scratch / installed.path.name, installed.fmt)
    subprocess.run(["cp", "--sparse=always", str(installed.path), str(disk.path)], check=True)
    output = machine.boot(disk.path, disk.fmt, "boot")
    assert printed_sums(output) == sums(SEEDS)
    assert_holds(disk, BOOTED, scratch)


@pytest.mark.parametrize("template", ["as installed", "compressed"])
def test_overlay(template: str, installed: Disk, machine: Machine, scratch: Path) -> None:
    """Boot an overlay: everything new lands there, and its backing file stays as it is."""
    if template == "compressed":
        backing = Disk(scratch / "template.qcow2", "qcow2")
        imgtool_command(
            "convert", "-f", installed.fmt, "-O", "qcow2", "-c", installed.path, backing.path
        )
    else:
        backing = Disk(scratch / installed.path.name, installed.fmt)
        backing.path.hardlink_to(installed.path)
    before = file_sum(backing.path)
    overlay = Disk(scratch / "overlay.qcow2", "qcow2")
    imgtool_command("create", "-f", "qcow2", "-b", backing.path, "-F", backing.fmt, overlay.path)

    output = machine.boot(overlay.path, overlay.fmt, "boot")
    assert printed_sums(output) == sums(SEEDS)
    assert_holds(overlay, BOOTED, scratch)
    assert file_sum(backing.path) == before
    assert_holds(backing, SEEDS, scratch)


@pytest.mark.parametrize("installed", ["qcow2"], indirect=True)
def test_snapshot_between_two_boots(installed: Disk, machine: Machine, scratch: Path) -> None:
    """An overlay's snapshot has what the first boot left, and a guest boots from that again."""
    backing = scratch / installed.path.name
    backing.hardlink_to(installed.path)
    overlay = Disk(scratch / "overlay.qcow2", "qcow2")
    imgtool_command("create", "-f", "qcow2", "-b", backing, "-F", installed.fmt, overlay.path)
    machine.boot(overlay.path, overlay.fmt, "boot")
    before = imgtool_command("hash", overlay.path).split()[0]
    imgtool_command("snapshot", "-c", "booted once", overlay.path)

    output = machine.boot(overlay.path, overlay.fmt, "boot")
    assert printed_sums(output) == sums(BOOTED)
    assert_holds(overlay, BOOTED_TWICE, scratch)
    assert imgtool_command("hash", overlay.path).split()[0] != before

    imgtool_command("snapshot", "-a", "booted once", overlay.path)
    assert imgtool_command("hash", overlay.path).split()[0] == before
    assert_holds(overlay, BOOTED, scratch)
    output = machine.boot(overlay.path, overlay.fmt, "boot")
    assert printed_sums(output) == sums(BOOTED)
    assert_holds(overlay, BOOTED_TWICE, scratch)
    imgtool_command("snapshot", "-d", "booted once", overlay.path)
    assert_holds(overlay, BOOTED_TWICE, scratch)


def assert_holds(disk: Disk, files: dict[str, bytes], scratch: Path) -> None:
    """The image is sound, and so is the file system on it, which holds these files."""
    check_clean(disk.path, disk.fmt)
    partition = scratch / "partition.raw"
    copy_partition(disk.path, locate_ext4(disk.path), partition)
    status, report = ext4.fsck(partition)
    assert status == 0, report
    found = {name: ext4.cat(partition, f"/srv/{name}") for name in files}
    assert sums(found) == sums(files)
    partition.unlink()


def sums(files: dict[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def printed_sums(output: str) -> dict[str, str]:
    """Return the SHA-256 of each file as the guest printed them."""
    lines = re.findall(r"^SUM ([0-9a-f]{64})  /srv/(.+)$", output, re.MULTILINE)
    return {name: digest for digest, name in lines}


def file_sum(path: Path) -> str:
    """Return the SHA-256 of a host file, whatever its size."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
