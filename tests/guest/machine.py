"""A virtual machine: QEMU, the machine's own kernel, an initramfs and one disk."""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guest.kernel import Kernel, require_kernel
from tests.kit.tools import require_tool

#: What a boot may take at most, in seconds, on a slow machine without KVM.
PATIENCE = 180

#: KVM is of use if it brings a kernel up within this many seconds, which emulation does in two.
KVM_PATIENCE = 5

#: The line by which a guest says that it came to the end.
DONE = "DONE"


@dataclass(frozen=True)
class Machine:
    """What every boot of a test run has in common."""

    kernel: Kernel
    initramfs: Path

    def boot(self, disk: Path, fmt: str, stage: str) -> str:
        """Boot from a disk until the guest switches itself off; return what it printed."""
        command = [
            *qemu(self.kernel, accelerator()),
            *("-initrd", str(self.initramfs)),
            *("-append", f"console=ttyS0 quiet panic=-1 stage={stage}"),
            *("-drive", f"file={disk},format={fmt},if=virtio,discard=unmap"),
        ]
        guest = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            output, _ = guest.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            guest.kill()
            output, _ = guest.communicate()
            pytest.fail(f"The guest did not end within {PATIENCE} s:\n{printable(output)}")
        text = printable(output)
        assert guest.returncode == 0, f"QEMU ended with {guest.returncode}:\n{text}"
        assert DONE in text.splitlines(), f"The guest did not come to its end:\n{text}"
        return text


def printable(output: bytes) -> str:
    """Turn what came out of a serial console into lines of text."""
    return output.decode("utf-8", "replace").replace("\r", "")


def qemu(kernel: Kernel, accel: str) -> list[str]:
    """Return the command that boots a kernel with its console on standard output."""
    return [
        require_tool("qemu-system-x86_64"),
        *("-accel", accel, "-m", "512", "-nic", "none"),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-kernel", str(kernel.image)),
    ]


@functools.cache
def accelerator() -> str:
    """Return ``kvm`` where it works, else ``tcg``.

    That the device is there does not mean that it works: under some hypervisors a guest hangs. So
    the kernel is booted once without anything to run, which makes it panic and reset at once.
    """
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        command = [*qemu(require_kernel(), "kvm"), "-append", "panic=-1"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=KVM_PATIENCE
            )
        except subprocess.TimeoutExpired:
            return "tcg"
        if done.returncode == 0:
            return "kvm"
    return "tcg"
