"""How images are named on the command line."""

from __future__ import annotations

import contextlib
import json

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.chain import Reference
from imgtool.cli.names import reference
from imgtool.errors import BadOption


def test_plain_paths() -> None:
    assert reference("disk.img") == Reference("disk.img")
    assert reference("file:disk.img", format="raw") == Reference("disk.img", "raw")
    assert reference("./a:b.img") == Reference("./a:b.img")


@pytest.mark.parametrize(
    "name",
    [
        'json:{"driver": "qcow2", "file": {"driver": "file", "filename": "a"}}',
        'json:{"driver": "qcow2", "file.driver": "file", "file.filename": "a"}',
        'json:{"driver": "qcow2", "file": {"filename": "a"}, "file.driver": "file"}',
        'json:{"driver": "qcow2", "file.filename": "a", "l2-cache-size": 65536, "node-name": "x"}',
        'json:{"driver": "qcow2", "file": {"driver": "raw", "file": {"filename": "a"}}}',
    ],
)
def test_json(name: str) -> None:
    assert reference(name) == Reference("a", "qcow2")


def test_image_opts() -> None:
    found = reference(
        "driver=qcow2,file.filename=a,,b.q,backing.driver=raw,backing.offset=1k,"
        "backing.file.filename=base,data-file.filename=d,cache.direct=on",
        image_opts=True,
    )
    assert found == Reference(
        "a,b.q",
        "qcow2",
        {},
        {
            "backing": Reference("base", "raw", {"offset": "1k"}),
            "data-file": Reference("d"),
        },
    )


def test_no_backing_image() -> None:
    without = {"backing": None}
    name = 'json:{"driver": "qcow2", "file.filename": "a", "backing": null}'
    assert reference(name) == Reference("a", "qcow2", {}, without)
    found = reference("driver=qcow2,file.filename=a,backing=", image_opts=True)
    assert found == Reference("a", "qcow2", {}, without)


def test_the_driver_may_be_left_to_probing() -> None:
    assert reference("file.filename=a", image_opts=True) == Reference("a")
    assert reference('json:{"file.filename": "a"}', format="qcow2") == Reference("a", "qcow2")


def test_a_file_is_raw() -> None:
    assert reference("driver=file,filename=a", image_opts=True) == Reference("a", "raw")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("a.q", "Must specify either driver or file"),
        ("driver=qcow2", 'A block device must be specified for "file"'),
        ("driver=qcow2,file=a", "'file' must be described by options"),
        ("driver=qcow2,file.filename=", "requires a file name"),
        ("driver=qcow2,file.filename=a,bogus=1", "does not support the option 'bogus'"),
        ("driver=qcow2,file.filename=a,file.bogus=1", "doesn't support the option 'bogus'"),
        ("driver=raw,file.filename=a,lazy-refcounts=on", "the option 'lazy-refcounts'"),
        ("driver=raw,file.filename=a,backing.file.filename=b", "the option 'backing'"),
        ("driver=bogus,file.filename=a", "Unknown format 'bogus'"),
        ("driver=qcow2,file.driver=nbd,file.host=x", "'nbd' is another driver"),
        ("driver=qcow2,file.filename=a,file=b", "Cannot mix"),
        ("file=b,file.filename=a", "Cannot mix"),
        ("driver=qcow2,file.filename=a,backing=b", "'backing' must be described by options"),
        ("driver=qcow2,file.filename=a,", "Invalid option list"),
    ],
)
def test_refused_image_opts(options: str, reason: str) -> None:
    with pytest.raises(BadOption, match=reason) as caught:
        reference(options, image_opts=True)
    assert caught.value.opening == (options,)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("json:", "Could not parse the JSON options"),
        ("json:{", "Could not parse the JSON options"),
        ("json:[]", "Invalid JSON object"),
        ("json:" + "[" * 100_000, "nested too deeply"),
        ("json:" + '{"file":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ('json:{"driver": 1, "file.filename": "a"}', "'driver' expects a string"),
        ('json:{"driver": "raw", "file.filename": 1}', "requires a file name"),
        ('json:{"driver": "raw", "file": {"filename": "a"}, "file.filename": "b"}', "given twice"),
        ("nbd://host/export", "not the path of a file"),
    ],
)
def test_refused_names(name: str, reason: str) -> None:
    with pytest.raises(BadOption, match=reason):
        reference(name)


def test_format_and_image_opts_exclude_each_other() -> None:
    with pytest.raises(click.UsageError, match="mutually exclusive"):
        reference("driver=raw,file.filename=a", format="raw", image_opts=True)


@pytest.mark.parametrize(
    "options", ["read-only=on,file.filename=a", "file.read-only=on,file.filename=a"]
)
def test_a_target_must_not_be_read_only(options: str) -> None:
    name = f"driver=qcow2,{options}"
    assert reference(name, image_opts=True) == Reference("a", "qcow2")
    with pytest.raises(BadOption, match="read-only"):
        reference(name, image_opts=True, writable=True)
    off = name.replace("=on", "=off")
    assert reference(off, image_opts=True, writable=True) == Reference("a", "qcow2")


_KEYS = st.sampled_from(
    ("driver", "file", "backing", "data-file", "filename", "read-only", "cache", "offset")
)
_NAMES = st.lists(_KEYS, min_size=1, max_size=3).map(".".join)
_VALUES = st.sampled_from(("qcow2", "raw", "file", "on", "x", ""))
_NODES = st.recursive(
    st.none() | st.booleans() | st.integers() | _VALUES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_NAMES, inner, max_size=4),
)


@given(st.dictionaries(_NAMES, _NODES, max_size=5))
def test_no_json_name_confuses(node: dict[str, object]) -> None:
    with contextlib.suppress(BadOption):
        assert isinstance(reference(f"json:{json.dumps(node)}", writable=True).source, str)


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=6))
def test_no_option_list_confuses(pairs: list[tuple[str, str]]) -> None:
    text = ",".join(f"{name}={value}" for name, value in pairs)
    with contextlib.suppress(BadOption):
        assert isinstance(reference(text, image_opts=True).source, str)
