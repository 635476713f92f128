"""Names that an image must not get anything for: what strangers write where a file name goes.

:func:`landscape` lays out a folder of images, with what lies in it and around it, for the names of
:data:`NAMES` to lead to.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

SECRET = b"for nobody's eyes"

_PROTOCOLS = [
    *("nbd", "nbd+tcp", "nbd+unix", "nbds", "http", "https", "ftp", "ftps", "ssh", "sftp"),
    *("iscsi", "iser", "rbd", "gluster", "gluster+unix", "sheepdog", "nfs", "nvme", "fat", "vvfat"),
    *("fd", "host_device", "host_cdrom", "blkdebug", "blkverify", "blkreplay", "null-co"),
    *("null-aio", "quorum", "raw", "qcow2", "luks", "copy-before-write", "data", "FILE", "File"),
]

_JSON = [
    "json:",
    "json:{}",
    "json:{",
    "JSON:{}",
    'json:{"driver":"raw"}',
    'json:{"driver":"raw","file":{"driver":"file","filename":"../secret.raw"}}',
    'json:{"driver":"file","filename":"/etc/passwd"}',
    'json:{"file.filename":"/etc/passwd"}',
    'json:{"driver":"nbd","server.type":"unix","server.path":"/run/s"}',
    'json:{"driver":"qcow2","file":{"driver":"http","url":"http://127.0.0.1/"}}',
    'json:{"driver":"host_device","filename":"/dev/sda"}',
    'json: {"driver":"null-co"}',
    "json:" + '{"file":' * 100 + "{}" + "}" * 100,
]

_ABSOLUTE = [
    "/etc/passwd",
    "//etc/passwd",
    "///etc//passwd",
    "/./etc/./passwd",
    "/etc/../etc/passwd",
    "/etc/shadow",
    "/etc/hostname",
    "/etc/mtab",
    "/root/.ssh/id_rsa",
    "/",
    "//",
    "/.",
    "/..",
    "/etc",
    "/etc/",
    "/tmp",
    "/nowhere/at/all",
    "/nowhere/../etc/passwd",
    "/proc/self/environ",
    "/proc/self/cmdline",
    "/proc/self/mem",
    "/proc/self/maps",
    "/proc/self/exe",
    "/proc/self/fd/0",
    "/proc/self/fd/1",
    "/proc/self/fd/2",
    "/proc/self/fd/3",
    "/proc/self/fd/9",
    "/proc/self/cwd",
    "/proc/self/cwd/setup.cfg",
    "/proc/self/root/etc/passwd",
    "/proc/self/root/proc/self/root/etc/passwd",
    "/proc/self/task/1/../../environ",
    "/proc/thread-self/environ",
    "/proc/1/environ",
    "/proc/1/root/etc/passwd",
    "/proc/kcore",
    "/proc/kmsg",
    "/proc/version",
    "/proc/sys/kernel/hostname",
    "/sys/kernel/uevent_helper",
    "/dev/fd/0",
    "/dev/fd/1",
    "/dev/fd/3",
    "/dev/fd/../fd/0",
    "/dev/stdin",
    "/dev/stdout",
    "/dev/stderr",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/mem",
    "/dev/kvm",
    "/dev/loop0",
    "/dev/loop-control",
    "/dev/sda",
    "/dev/vda",
    "/dev/nvme0n1",
    "/dev/shm/../zero",
]

_RELATIVE = [
    "../secret.raw",
    "..//secret.raw",
    "./../secret.raw",
    ".//..//secret.raw",
    "../images/../secret.raw",
    "../images-too/secret.raw",
    "../imag\0es/base.raw",
    "sub/../../secret.raw",
    "sub/./.././../secret.raw",
    "sub/deep/../../../secret.raw",
    "missing/../../secret.raw",
    "..",
    "../",
    "../.",
    "../..",
    ".",
    "./",
    "sub",
    "sub/",
    "sub/.",
    "sub/..",
    "sub/deep/../..",
    "base.raw/",
    "base.raw/.",
    "base.raw/..",
    "base.raw/../base.raw",
    "base.raw/x",
    *("../" * depth + "etc/passwd" for depth in (2, 3, 5, 8, 13, 21, 34, 300)),
    *("sub/" + "../" * depth + "etc/passwd" for depth in (3, 9, 27)),
    "file:../secret.raw",
    "file:/etc/passwd",
    "file:",
    "file:.",
    "file:file:../secret.raw",
    "file:json:{}",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "file://../secret.raw",
]

#: Links that :func:`landscape` lays out, and where they lead.
LINKS = {
    "out": "../secret.raw",
    "out-absolute": "{root}/secret.raw",
    "passwd": "/etc/passwd",
    "up": "..",
    "root": "/",
    "two": "out",
    "three": "two",
    "sub/up": "../..",
    "loop": "loop",
    "ping": "pong",
    "pong": "ping",
    "dangling": "missing",
    "dangling-out": "../missing",
    "environ": "/proc/self/environ",
    "stdin": "/dev/stdin",
    "fd": "/dev/fd/0",
    "proc-fd": "/proc/self/fd",
    "proc-root": "/proc/self/root",
    "zero": "/dev/zero",
    "to-fifo": "fifo",
    "to-folder": "sub",
    "slash": "base.raw/",
    "long": "sub/../" * 100 + "../secret.raw",
}

_LINKED = [
    *LINKS,
    "up/secret.raw",
    "up/images/../secret.raw",
    "up/images/up/secret.raw",
    "sub/up/secret.raw",
    "sub/../up/secret.raw",
    "root/etc/passwd",
    "root/proc/self/environ",
    "root/dev/zero",
    "proc-fd/0",
    "proc-fd/3",
    "proc-root/etc/passwd",
    "out/",
    "out/.",
    "out/../../secret.raw",
    "to-folder/../../secret.raw",
    "loop/base.raw",
]

_SPECIAL = ["fifo", "./fifo", "sub/../fifo", "socket", "./socket"]

_STRANGE = [
    "",
    "\0",
    "base.raw\0",
    "base.raw\0.qcow2",
    "\0base.raw",
    " ",
    " base.raw",
    "base.raw ",
    "base.raw\n",
    "\nbase.raw",
    "BASE.RAW",
    "-",
    "--",
    "-f",
    "~",
    "~/.ssh/id_rsa",
    "~root/.ssh/id_rsa",
    "$HOME/.ssh/id_rsa",
    "${HOME}",
    "`id`",
    "$(id)",
    "|id",
    ";id",
    "*",
    "?",
    "*.raw",
    "[b]ase.raw",
    "{base,secret}.raw",
    "%2e%2e%2fsecret.raw",
    "..%2fsecret.raw",
    "%00",
    "..\\secret.raw",
    "..\\..\\etc\\passwd",
    "\\\\server\\share\\disk",
    "\\\\.\\PhysicalDrive0",
    "C:\\Windows\\win.ini",
    "C:/Windows/win.ini",
    "C:base.raw",
    "NUL",
    "CON",
    "base.raw:stream",
    "base.raw::$DATA",
    "\x1b[2J\x1b]0;owned\x07",
    "\r\nimage: safe.qcow2",
    "base\u202ewar.raw",
    "base.raw\u200b",
    "ba\u0301se.raw",
    "\uff0e\uff0e/secret.raw",
    "\u2024\u2024/secret.raw",
    "..\u2215secret.raw",
    "\udcff\udcfe",
    "\udcc0\udcae\udcc0\udcae/secret.raw",
    "a" * 255,
    "a" * 256,
    "a/" * 500 + "x",
    "./" * 500 + "x",
    "b" * 1023,
    "1:2",
    ":x",
    "::",
    "a+b-c.d:x",
    "_x:y",
    "\u00e4:x",
    ",",
    ",,",
    "driver=file,filename=/etc/passwd",
]

NAMES = [
    *_JSON,
    *(f"{protocol}:../secret.raw" for protocol in _PROTOCOLS),
    *(f"{protocol}://127.0.0.1:1/etc/passwd" for protocol in _PROTOCOLS),
    *_ABSOLUTE,
    *_RELATIVE,
    *_LINKED,
    *_SPECIAL,
    *_STRANGE,
]


def landscape(root: Path) -> Path:
    """Lay out the folder ``images`` inside ``root``, with all around it; return the folder."""
    images = root / "images"
    (images / "sub" / "deep").mkdir(parents=True)
    (root / "images-too").mkdir()
    for path in (root / "secret.raw", root / "images-too" / "secret.raw"):
        path.write_bytes(SECRET.ljust(1 << 20, b"!"))
    (images / "base.raw").write_bytes(b"\x55" * (1 << 20))
    for name, target in LINKS.items():
        (images / name).symlink_to(target.format(root=root))
    os.mkfifo(images / "fifo")
    here = os.getcwd()
    os.chdir(images)  # the address of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
    finally:
        os.chdir(here)
    return images
