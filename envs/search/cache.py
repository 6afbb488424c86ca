"""Where indexes are kept: a folder for each content, written aside and renamed when whole."""

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from envs.search.documents import Document

log = logging.getLogger(__name__)


def cache_folder(given: str | Path | None = None) -> Path:
    """The folder for indexes: `given`, or the user's own (XDG_CACHE_HOME, ~/.cache)."""
    if given is not None:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mopd" / "search"


def content_hash(documents: Sequence[Document], *about: str) -> str:
    """Names documents in their order, and what else decides about an index of them."""
    digest = hashlib.blake2b(digest_size=16)
    for part in about:
        digest.update(_framed((part,)))
    for document in documents:
        digest.update(_framed((document.id, document.title, document.text)))
    return digest.hexdigest()


def _framed(parts: Iterable[str]) -> bytes:
    """The parts with their lengths, so that no two sequences of parts look the same."""
    coded = [part.encode("utf-8", "replace") for part in parts]
    return b"".join(len(part).to_bytes(8, "big") + part for part in coded)


def keep(folder: Path, write: Callable[[Path], None]) -> bool:
    """Let `write` fill a folder that then appears as `folder` at once; whether it is there.

    Where two processes write the same, the first one's stays. A cache that cannot be written
    costs time only, so that is logged.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    except OSError as error:
        log.warning("no cache for search indexes: %s: %s", folder.parent, error)
        return False
    try:
        write(aside)
        os.rename(aside, folder)
    except OSError as error:
        if not folder.exists():
            log.warning("the index is not kept: %s: %s", folder, error)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder.exists()
