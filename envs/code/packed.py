"""LiveCodeBench's compressed tests: JSON text in a pickle, in zlib, in base64; never unpickled."""

import base64
import binascii
import json
import pickletools
import zlib
from functools import lru_cache
from typing import Any

MAX_UNPACKED_BYTES = 256 * 2**20
# What pickle writes for one text. Nothing else is read, and nothing is ever executed.
_TEXT = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_FRAME = {"PROTO", "FRAME", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "STOP"}


@lru_cache(maxsize=4)  # the rollouts of a task are graded one after another
def unpack(packed: str) -> Any:
    """The JSON value that `packed` holds.

    Raises:
        ValueError: it is neither JSON nor packed JSON, or larger than `MAX_UNPACKED_BYTES`.
    """
    if packed.lstrip()[:1] in ("[", "{"):
        return _json(packed)
    try:
        compressed = base64.b64decode(packed, validate=True)
        stream = zlib.decompressobj()
        pickled = stream.decompress(compressed, MAX_UNPACKED_BYTES)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise ValueError(
            f"expected tests as JSON, or packed with base64 and zlib: {error}"
        ) from error
    if stream.unconsumed_tail or not stream.eof:
        what = "more than" if stream.unconsumed_tail else "cut off; expected at most"
        raise ValueError(f"packed tests that are {what} {MAX_UNPACKED_BYTES:,} bytes")
    return _json(_only_text(pickled))


def _only_text(pickled: bytes) -> str:
    texts = []
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in _TEXT:
                texts.append(argument)
            elif opcode.name not in _FRAME:
                raise ValueError(f"a pickle of more than a text: {opcode.name}; expected one text")
    except (ValueError, EOFError, UnicodeError) as error:
        raise ValueError(f"packed tests that cannot be read: {error}") from error
    if len(texts) != 1:
        raise ValueError(f"packed tests of {len(texts)} texts; expected one")
    return str(texts[0])


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"tests that are no JSON: {error}") from error
