"""``imgtool io``: the everyday verbs of qemu-io."""

from imgtool.cli.io.command import command

__all__ = ["command"]
