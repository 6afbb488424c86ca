"""Frames of plain Python data with exact types, for peers of which one is hostile.

The two ends are different interpreters, one of them running code that nobody trusts, so pickle
and marshal are out; and the judge has to tell a tuple from a list, True from 1 and 1 from 1.0,
which JSON cannot. A value is a tag, a size and a body; anything but the exact plain types is
refused when it is written, and anything malformed when it is read.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_VALUE_BYTES = 4 * 2**20  # of what the code sends
MAX_FRAME_BYTES = 64 * 2**20  # between the host and its runner, who trust each other
MAX_DEPTH = 200
MAX_ITEMS = 2**19  # of one value: an empty set takes 5 bytes here and 216 in memory

_MAX_EQUAL_HASHES = 100
_HEADER = struct.Struct(">cI")
_DOUBLE = struct.Struct(">d")
_SIZE = struct.Struct(">I")


class WireError(ValueError):
    """The value is not plain data, or the bytes are not a value."""


_ATOMS: dict[type, tuple[bytes, Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    type(None): (b"n", lambda _: b"", lambda _: None),
    bool: (b"?", lambda value: b"1" if value else b"", bool),
    int: (
        b"i",
        lambda value: value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True),
        lambda body: int.from_bytes(body, "big", signed=True),
    ),
    float: (b"f", _DOUBLE.pack, lambda body: _DOUBLE.unpack(body)[0]),
    str: (
        b"s",
        lambda value: value.encode("utf-8", "surrogatepass"),
        lambda body: body.decode("utf-8", "surrogatepass"),
    ),
    bytes: (b"b", bytes, bytes),
}
_COLLECTIONS: dict[type, bytes] = {list: b"[", tuple: b"(", set: b"{", frozenset: b"<", dict: b":"}
_READ_ATOM = {tag: read for tag, _, read in _ATOMS.values()}
_READ_COLLECTION = {tag: kind for kind, tag in _COLLECTIONS.items()}


def encode(value: Any, max_bytes: int = MAX_VALUE_BYTES) -> bytes:
    """The bytes of `value`.

    Raises:
        WireError: the value holds something that is not plain, is nested too deeply or too big.
    """
    parts: list[bytes] = []
    _write(value, parts, MAX_DEPTH)
    data = b"".join(parts)
    if len(data) > max_bytes:
        raise WireError(f"a value of {len(data)} bytes, more than {max_bytes}")
    return data


def decode(data: bytes, budget: list[int] | None = None) -> Any:
    """The value that `encode` wrote; what it holds is taken from `budget`, the items left.

    Raises:
        WireError: the bytes are not exactly one value, or hold too many.
    """
    try:
        value, end = _read(data, 0, MAX_DEPTH, [MAX_ITEMS] if budget is None else budget)
    except (ValueError, TypeError, LookupError, struct.error) as error:
        raise WireError(f"malformed value: {error}") from error
    if end != len(data):
        raise WireError(f"{len(data) - end} bytes after the value")
    return value


def frame(body: bytes) -> bytes:
    """The body with its size in front."""
    return _SIZE.pack(len(body)) + body


class Frames:
    """Bodies cut out of a stream of bytes that arrives in pieces."""

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pending = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what has arrived."""
        self._pending += data

    def take(self) -> bytes | None:
        """The next whole body, None if it has not arrived yet.

        Raises:
            WireError: what has arrived is no frame.
        """
        if len(self._pending) < _SIZE.size:
            return None
        (size,) = _SIZE.unpack_from(self._pending)
        if size > self._max_bytes:
            raise WireError(f"a frame of {size} bytes")
        end = _SIZE.size + size
        if len(self._pending) < end:
            return None
        body = bytes(self._pending[_SIZE.size : end])
        del self._pending[:end]
        return body


def _write(value: Any, parts: list[bytes], depth: int) -> None:
    kind = type(value)
    if kind in _ATOMS:
        tag, to_bytes, _ = _ATOMS[kind]
        body = to_bytes(value)
        parts += (_HEADER.pack(tag, len(body)), body)
    elif kind not in _COLLECTIONS:
        raise WireError(f"an object of type {kind.__name__}, which is not plain data")
    elif depth == 0:
        raise WireError(f"a value nested deeper than {MAX_DEPTH} levels")
    else:
        parts.append(_HEADER.pack(_COLLECTIONS[kind], len(value)))
        for item in value:
            _write(item, parts, depth - 1)
            if kind is dict:
                _write(value[item], parts, depth - 1)


def _read(data: bytes, start: int, depth: int, budget: list[int]) -> tuple[Any, int]:
    budget[0] -= 1
    if budget[0] < 0:
        raise WireError("too many items")
    tag, size = _HEADER.unpack_from(data, start)
    start += _HEADER.size
    if tag in _READ_ATOM:
        body = data[start : start + size]
        if len(body) != size:
            raise WireError(f"{size} bytes announced, {len(body)} there")
        return _READ_ATOM[tag](body), start + size
    if depth == 0:
        raise WireError(f"nested deeper than {MAX_DEPTH} levels")
    kind = _READ_COLLECTION[tag]
    items = []
    for _ in range(2 * size if kind is dict else size):
        item, start = _read(data, start, depth - 1, budget)
        items.append(item)
    if kind in (set, frozenset, dict):
        keys = items[::2] if kind is dict else items
        if len(keys) - len(set(map(hash, keys))) > _MAX_EQUAL_HASHES:
            raise WireError("keys that were made to have one hash")  # building it takes minutes
    if kind is dict:
        return dict(zip(items[::2], items[1::2], strict=True)), start
    return kind(items), start
