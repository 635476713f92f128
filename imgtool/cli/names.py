"""Images as they are named on the command line.

A plain path, ``file:PATH``, ``json:{...}``, or with ``--image-opts`` a list of options such as
``driver=qcow2,file.filename=disk.qcow2,backing.driver=raw,backing.file.filename=base.raw``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from imgtool import registry
from imgtool.chain import Override, Reference, Settings
from imgtool.errors import BadOption, ImageError
from imgtool.names import file_path
from imgtool.options import parse_bool, split_pairs

#: Options of any node that change nothing about what is read from it or written to it.
_GENERIC = frozenset(
    ("node-name", "read-only", "auto-read-only", "force-share", "cache", "discard", "detect-zeroes")
)
_OF_FILES = frozenset(("locking", "aio", "drop-cache", "x-check-cache-dropped", "pr-manager"))
#: The same, of a format.
_OF_FORMATS = {
    "qcow2": frozenset(
        (
            "lazy-refcounts",
            "pass-discard-request",
            "pass-discard-snapshot",
            "pass-discard-other",
            "discard-no-unref",
            "overlap-check",
            "cache-size",
            "l2-cache-size",
            "l2-cache-entry-size",
            "refcount-cache-size",
            "cache-clean-interval",
        )
    )
}
_FILE_DRIVERS = ("file", "host_device")

Node = dict[str, Any]


def reference(
    name: str, *, format: str | None = None, image_opts: bool = False, writable: bool = False
) -> Reference:
    """Return the image that the user calls ``name``.

    Raises :class:`BadOption`, naming the image by all of ``name``, for what can't be understood,
    and for nodes that are declared read-only where one ``writable`` is needed.
    """
    if image_opts and format is not None:
        raise click.UsageError("--image-opts and --format are mutually exclusive")
    try:
        if image_opts:
            return _image(_nest(dict(split_pairs(name))), None, writable)
        if name.startswith("json:"):
            return _image(_nest(_parse_json(name[len("json:") :])), format, writable)
        return Reference(file_path(name), format)
    except RecursionError:
        raise BadOption("The options are nested too deeply").while_opening(name) from None
    except ImageError as error:
        raise error.while_opening(name) from error.__cause__


def snapshot_options(text: str) -> dict[str, object]:
    """The options that open the snapshot which ``-l``'s parameter stands for."""
    if not text.startswith("snapshot."):
        return {"snapshot": text}
    pairs = dict(split_pairs(text))
    for name in pairs:
        if name not in ("snapshot.id", "snapshot.name"):
            raise BadOption(f"Invalid parameter '{name}'")
    return dict(pairs)


def _parse_json(text: str) -> Mapping[str, Any]:
    import json

    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadOption(f"Could not parse the JSON options: {error}") from None
    if not isinstance(value, dict):
        raise BadOption("Invalid JSON object given")
    return value


def _nest(options: Mapping[str, Any]) -> Node:
    """Turn dotted names into nested nodes, however deep they are given already."""
    nested: Node = {}
    for name, value in options.items():
        first, dot, rest = name.partition(".")
        if dot:
            value = {rest: value}
        if isinstance(value, Mapping):
            inner = nested.setdefault(first, {})
            if not isinstance(inner, dict):
                raise BadOption(f"Cannot mix '{first}' and '{first}.' options")
            for key in value:
                if key in inner:
                    raise BadOption(f"The option '{first}.{key}' is given twice")
            inner.update(value)
        elif isinstance(nested.get(first), dict):
            raise BadOption(f"Cannot mix '{first}' and '{first}.' options")
        else:
            nested[first] = value
    return {
        name: _nest(value) if isinstance(value, dict) else value for name, value in nested.items()
    }


def _image(node: Node, format: str | None, writable: bool) -> Reference:
    driver = _driver(node) or format
    if driver in _FILE_DRIVERS:
        return Reference(_file({**node, "driver": driver}, writable), "raw")
    chosen = None if driver is None else registry.find(driver)
    _refuse_read_only(node, writable)
    children: dict[str, Override] = {}
    if "backing" in node:
        children["backing"] = _backing(node)
    if "data-file" in node:
        children["data-file"] = Reference(_file(_child(node, "data-file"), writable))
    if "file" not in node:
        raise BadOption(
            "Must specify either driver or file"
            if driver is None
            else 'A block device must be specified for "file"'
        )
    indifferent = _GENERIC.union(
        *(_OF_FORMATS.values() if chosen is None else (_OF_FORMATS.get(chosen.name, ()),))
    )
    options = _options(node, indifferent)
    if chosen is not None:
        for name in options:
            if name not in chosen.open_options:
                raise BadOption(
                    f"Block format '{chosen.name}' does not support the option '{name}'"
                )
        for role in children:
            if role not in chosen.features:
                raise BadOption(
                    f"Block format '{chosen.name}' does not support the option '{role}'"
                )
    return Reference(_file(_child(node, "file"), writable), driver, options, children)


def _options(node: Node, indifferent: frozenset[str]) -> dict[str, object]:
    """The format's own options, those of nested nodes by dotted names."""
    options: dict[str, object] = {}
    for name, value in node.items():
        if name in indifferent or name in ("driver", "file", "backing", "data-file"):
            continue
        if isinstance(value, dict):
            inner = _options(value, frozenset())
            options.update((f"{name}.{key}", inner[key]) for key in inner)
        else:
            options[name] = value
    return options


def _backing(node: Node) -> Override:
    """What a node lies on: nothing, another image, or what it names, with options for that."""
    if node["backing"] is None or node["backing"] == "":
        return None
    backing = _child(node, "backing")
    if "driver" in backing or "file" in backing:
        return _image(backing, None, False)
    children = {"backing": _backing(backing)} if "backing" in backing else {}
    return Settings(_options(backing, _GENERIC), children)


def _child(node: Node, role: str) -> Node:
    value = node[role]
    if not isinstance(value, dict):
        raise BadOption(f"'{role}' must be described by options: no node has the name '{value}'")
    return value


def _driver(node: Node) -> str | None:
    driver = node.get("driver")
    if driver is not None and not isinstance(driver, str):
        raise BadOption("Parameter 'driver' expects a string")
    return driver


def _file(node: Node, writable: bool) -> str:
    """The path in a node of the driver ``file``, or of ``raw`` right over one."""
    driver = _driver(node) or "file"
    if driver == "raw" and set(node) <= {"driver", "file"} | _GENERIC and "file" in node:
        _refuse_read_only(node, writable)
        return _file(_child(node, "file"), writable)
    if driver not in _FILE_DRIVERS:
        raise BadOption(f"Images are read from files, and '{driver}' is another driver")
    _refuse_read_only(node, writable)
    for name in node:
        if name not in ("driver", "filename") and name not in _OF_FILES | _GENERIC:
            raise BadOption(f"Block protocol '{driver}' doesn't support the option '{name}'")
    filename = node.get("filename")
    if not isinstance(filename, str) or not filename:
        raise BadOption(f"The '{driver}' block driver requires a file name")
    return filename


def _refuse_read_only(node: Node, writable: bool) -> None:
    if writable and parse_bool("read-only", node.get("read-only", False)):
        raise BadOption("It is to be written, and its options make it read-only")
