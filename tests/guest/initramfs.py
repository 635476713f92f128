"""The initramfs that installs a small system on a guest's disk, or boots what is there."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.guest.kernel import Kernel, load_order, read_module
from tests.kit.tools import require_tool

HERE = Path(__file__).parent

#: What the kernel needs to see the disk and the file system on it.
MODULES = ("virtio_pci", "virtio_blk", "ext4")

#: The programs, besides busybox, that the installation runs.
PROGRAMS = ("sfdisk", "mke2fs")


def build_initramfs(target: Path, kernel: Kernel, seeds: Mapping[str, bytes]) -> None:
    """Write the initramfs ``target``. The installation puts the files ``seeds`` on the disk."""
    root = target.with_suffix(".d")
    install(Path(require_tool("busybox")), root / "bin/busybox")
    install(HERE / "init.sh", root / "init")
    install(HERE / "disk_init.sh", root / "disk_init")
    for name in PROGRAMS:
        program = Path(require_tool(name))
        install(program, root / "sbin" / name)
        for library in libraries(program):
            install(library, root / library.relative_to("/"))
    for number, module in enumerate(load_order(kernel, MODULES)):
        write(root / f"modules/{number:02}-{module.stem}", read_module(module))
    for name, content in seeds.items():
        write(root / "seeds" / name, content)
    pack(root, target)


def install(source: Path, target: Path) -> None:
    """Copy a program, following links, so that it can be run."""
    write(target, source.read_bytes())
    target.chmod(0o755)


def write(target: Path, content: bytes) -> None:
    """Write a file and the folders above it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


def libraries(program: Path) -> list[Path]:
    """Return the shared libraries that a program is linked with, and its loader."""
    listing = subprocess.run(
        [require_tool("ldd"), str(program)], capture_output=True, text=True, check=True
    )
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listing.stdout)]


def pack(root: Path, target: Path) -> None:
    """Turn a folder into the archive that the kernel unpacks, and remove the folder."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    with open(target, "wb") as archive:
        subprocess.run(
            [require_tool("cpio"), "--quiet", "-o", "-H", "newc", "-R", "0:0"],
            cwd=root,
            input="\n".join(names).encode(),
            stdout=archive,
            check=True,
        )
    shutil.rmtree(root)
