"""imgtool: create, convert, inspect and read virtual machine disk images."""

__version__ = "0.1.0"
