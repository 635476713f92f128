"""How amounts, times and bytes are printed, as qemu-io prints them."""

from __future__ import annotations

from collections.abc import Iterator

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_ROW = 16


def amount(value: float) -> str:
    """Return bytes in the largest unit that fits, with three decimals if it does not go evenly."""
    exponent = 0
    while value >= 1024 and exponent < len(_UNITS) - 1:
        value /= 1024
        exponent += 1
    text = f"{value:.3f}" if exponent else f"{value:.6f}"
    whole, _, decimals = text.partition(".")
    return f"{whole if not int(decimals) else text} {_UNITS[exponent]}"


def _clock(seconds: float, *, full: bool) -> str:
    hundredths = int(seconds * 100)
    minutes, rest = divmod(hundredths // 100, 60)
    hours, minutes = divmod(minutes, 60)
    if full or hours or minutes:
        return f"{hours}:{minutes:02}:{rest:02}.{hundredths % 100:02}"
    return f"{rest:02}.{hundredths % 100:02} sec"


def report(did: str, offset: int, length: int, seconds: float, *, machine: bool) -> str:
    """The lines about one request; ``machine`` gives the figures alone, between commas."""
    # A clock that has not moved on would make the rates infinite.
    seconds = max(seconds, 1e-9)
    rate, operations = length / seconds, 1 / seconds
    if machine:
        return f"{length},1,{_clock(seconds, full=True)},{rate:.3f},{operations:.3f}"
    return (
        f"{did} {length}/{length} bytes at offset {offset}\n"
        f"{amount(length)}, 1 ops; {_clock(seconds, full=False)} "
        f"({amount(rate)}/sec and {operations:.4f} ops/sec)"
    )


def dump(offset: int, data: bytes) -> Iterator[str]:
    """The lines that show ``data``, of which the first byte is at ``offset``."""
    for start in range(0, len(data), _ROW):
        row = data[start : start + _ROW]
        text = "".join(chr(byte) if chr(byte).isalnum() and byte < 0x80 else "." for byte in row)
        yield f"{offset + start:08x}:  {row.hex(' ')}  {text}"
