"""Secrets: how they are defined, and that nothing shows them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.chain import Opener
from imgtool.errors import BadOption
from imgtool.options import Option, OptionTable
from imgtool.secrets import MAX_SECRET, Secret, Secrets, parse_objects

#: 32 bytes, and 16 of them for a vector; "open sesame" encrypted with them by openssl.
_KEY = "secret,id=k,data=0123456789abcdef0123456789abcdef"
_IV = "MDEyMzQ1Njc4OWFiY2RlZg=="
_ENCRYPTED = "ROAJ2Bfwmzk+4zlunRm95w=="

_TABLE = OptionTable((Option("key-secret", "str", "", secret=True), Option("size", "size", "")))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("secret,id=s,data=abc", b"abc"),
        ("secret,data=a,,b,id=s", b"a,b"),
        ("qom-type=secret,id=s,data=", b""),
        ("secret,id=s,data=YWJj,format=base64", b"abc"),
        ("secret,id=s,data=ÿ", "ÿ".encode()),
        ("secret,id=s,data=\udcff", b"\xff"),
        ('{"qom-type": "secret", "id": "s", "data": "a,b"}', b"a,b"),
        ("secret,id=s,file=plain", b"from a file\n"),
        ("secret,id=s,file=coded,format=base64", b"abcabc"),
    ],
)
def test_definitions(
    text: str, value: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain").write_bytes(b"from a file\n")
    Path("coded").write_bytes(b"YWJj\nYWJj\n")
    assert parse_objects([text]).get("s").value == value


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["secret,id=s"], "Either 'file' or 'data'"),
        (["secret,id=s,data=topsecret,file=b"], "mutually exclusive"),
        (["secret,data=topsecret"], "'id' is missing"),
        (["secret,id=1,data=topsecret"], "identifier"),
        (["secret,id=,data=topsecret"], "identifier"),
        (["secret,id=s,data=topsecret,format=hex"], "'hex'"),
        (["secret,id=s,data=top/secret!,format=base64"], "invalid characters"),
        (["secret,id=s,data=topsecret,keyid=k"], "No secret with id 'k'"),
        (["secret,id=s,data=top secret,format=base64"], "invalid characters"),
        ([_KEY, "secret,id=s,data=topsecret,keyid=k"], "IV is required"),
        ([_KEY, "secret,id=s,data=topsecret,keyid=k,iv=AAAA"], "16 bytes in length not 3"),
        ([_KEY, f"secret,id=s,data=topsecret,keyid=k,iv={_IV}"], "Length 9 must be a multiple"),
        ([_KEY, f"secret,id=s,data=topsecret1234567,keyid=k,iv={_IV}"], "cannot be decrypted"),
        ([_KEY, f"secret,id=s,data=,keyid=k,iv={_IV}"], "cannot be decrypted"),
        (["secret,id=k,data=x", f"secret,id=s,data=topsecret,keyid=k,iv={_IV}"], "32 bytes"),
        (["tls-creds,id=s,data=topsecret"], "only 'secret'"),
        (["id=s,data=topsecret"], "'qom-type' is missing"),
        ([""], "'qom-type' is missing"),
        (["secret,id=s,data=topsecret,=x"], "Invalid list"),
        (['{"qom-type": "secret", "data": "topsecret"'], "JSON"),
        (['{"qom-type": "secret", "id": "s", "data": 1}'], "strings"),
        (["secret,id=s,data=topsecret", "secret,id=s,data=topsecret"], "twice"),
    ],
)
def test_refused_definitions(texts: list[str], message: str) -> None:
    with pytest.raises(BadOption, match=message) as caught:
        parse_objects(texts)
    assert "topsecret" not in str(caught.value)


def test_files_of_secrets(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(bytes(MAX_SECRET))
    assert len(parse_objects([f"secret,id=s,file={path}"]).get("s").value) == MAX_SECRET
    path.write_bytes(bytes(MAX_SECRET + 1))
    with pytest.raises(BadOption, match="larger"):
        parse_objects([f"secret,id=s,file={path}"])
    with pytest.raises(OSError, match="No such file"):
        parse_objects([f"secret,id=s,file={tmp_path / 'nope'}"])


def test_encrypted_secrets() -> None:
    pytest.importorskip("cryptography")
    found = parse_objects(
        [
            _KEY,
            f"secret,id=s,keyid=k,iv={_IV},format=base64,data={_ENCRYPTED}",
            "secret,id=t,data=u",
        ]
    )
    assert found.get("s").value == b"open sesame"
    assert found.get("t").value == b"u"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_files_are_read_once(tmp_path: Path) -> None:
    """A FIFO, or a shell's process substitution, gives its contents only once."""
    import threading

    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"passed on",))
    writer.start()
    secrets = parse_objects([f"secret,id=s,file={path}"])
    writer.join()
    assert secrets.get("s").value == secrets.get("s").value == b"passed on"


def test_nothing_shows_them() -> None:
    secret = Secret("topsecret")
    secrets = Secrets({"s": secret}, secret)
    filled = secrets.fill_in(_TABLE, {})
    for shown in (secret, secrets, Opener(secrets=secrets), filled):
        assert "topsecret" not in repr(shown)
        assert "topsecret" not in str(shown)
    assert not hasattr(secret, "__dict__")


def test_ids_become_secrets() -> None:
    one, other = Secret("one"), Secret(b"other")
    secrets = Secrets({"a": one})
    assert secrets.fill_in(_TABLE, {}) == {}
    assert secrets.fill_in(_TABLE, {"key_secret": "a", "size": 3}) == {"key_secret": one, "size": 3}
    with pytest.raises(BadOption, match="No secret with id 'b'"):
        secrets.fill_in(_TABLE, {"key_secret": "b"})
    with_password = Secrets({"a": one}, other)
    assert with_password.fill_in(_TABLE, {})["key_secret"] is other
    assert with_password.fill_in(_TABLE, {"key_secret": "a"})["key_secret"] is one
    third = Secret("third")
    assert with_password.fill_in(_TABLE, _TABLE.check({"key-secret": third}))["key_secret"] is third
    with pytest.raises(BadOption, match="expects the id"):
        secrets.fill_in(_TABLE, _TABLE.check({"key-secret": 3}))
