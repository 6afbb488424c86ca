"""Makes the docker backend's image from this machine's own Python: no registry, no Dockerfile.

    python -m sandboxes.image [--tag TAG] [--packages NAME-OR-FOLDER ...]

Everything lies in the image where it lies here, so that binaries find their libraries and
`Policy(packages=...)` means the same folders. Beside Python there are a shell and what its users
expect most, for policies with subprocesses.
"""

import argparse
import contextlib
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Set
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sandboxes.backend import Unavailable
from sandboxes.docker_backend import FOLDERS_LABEL, LABEL, connect
from sandboxes.docker_backend import default_image as default_tag

if TYPE_CHECKING:
    from docker import DockerClient

# Of the standard library: what only developers of Python, or programs with windows, can use.
_LEFT_OUT = frozenset(
    {
        *("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3"),
        *("site-packages", "dist-packages", "sitecustomize.py", "_tkinter"),
    }
)
_LIBRARY = re.compile(r"\t(?:\S+ => )?(/.+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_ELF = b"\x7fELF"
# As far as they are here.
_PROGRAMS = (
    *("sh", "bash", "env", "echo", "printf", "true", "false", "sleep", "date", "expr", "seq"),
    *("ls", "cat", "cp", "mv", "rm", "ln", "mkdir", "rmdir", "touch", "pwd", "basename", "dirname"),
    *("head", "tail", "sort", "uniq", "wc", "cut", "tr", "tee", "grep", "sed", "find", "xargs"),
)
_SEARCHED = "/usr/local/bin"  # first on the PATH of the image, and of sessions
_USERS = b"root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUPS = b"root:x:0:\nnogroup:x:65534:\n"
_MOUNT_POINTS = ("/dev", "/proc", "/sys", "/tmp")


def build(client: "DockerClient", tag: str, packages: Iterable[str] = ()) -> None:
    """Make the image; `packages` are as for `package_files`.

    Raises:
        LookupError: there is no such package or folder.
    """
    from docker.utils import parse_repository_tag  # an extra, and slow to import

    files = package_files(packages)
    folders = json.dumps([*map(str, _own_folders()), *map(str, files)])
    changes = [
        f"ENV PATH={_SEARCHED}:/usr/bin:/bin",
        f"LABEL {LABEL}.python={platform.python_version()}",
        f"LABEL {FOLDERS_LABEL}={json.dumps(folders)}",  # quoted as in a Dockerfile
    ]
    repository, version = parse_repository_tag(tag)
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        write_layer(file, itertools.chain.from_iterable(files.values()))
        file.flush()
        client.api.import_image(file.name, repository, version or "latest", changes=changes)


def package_files(packages: Iterable[str]) -> dict[Path, list[Path]]:
    """The folders to import the packages from, each with the files that it has to hold.

    A name is that of an installed distribution, which brings what it requires; a path, known by
    its slash, is that of a folder taken whole.

    Raises:
        LookupError: there is no such package or folder.
    """
    found: dict[Path, list[Path]] = {}
    names: list[str] = []
    for wanted in packages:
        folder = Path(wanted).absolute()
        if "/" not in wanted:
            names.append(wanted)
        elif folder.is_dir():
            found.setdefault(folder, []).extend(_tree(folder))
        else:
            raise LookupError(f"no such folder: {folder}")
    for distribution in _with_requirements(names):
        folder = Path(str(distribution.locate_file("")))
        files = [Path(str(path.locate())) for path in distribution.files or ()]
        found.setdefault(folder, []).extend(
            path for path in files if ".." not in path.parts and path.is_file()
        )
    return found


def _with_requirements(names: Iterable[str]) -> Iterator[metadata.Distribution]:
    seen: set[str] = set()
    asked = list(names)
    left = list(asked)
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name in asked:
                raise LookupError(f"no such package here: pip install {name}") from None
            continue  # for another platform or version
        yield distribution
        for requirement in distribution.requires or ():
            match = re.match(r"[\w.-]+", requirement)
            if match is not None and "extra ==" not in requirement:
                left.append(match[0])


def write_layer(file: IO[bytes], more: Iterable[Path] = ()) -> None:
    """Write the image's only layer: a tar archive of Python, what it needs, and `more`."""
    binary = Path(sys.executable).resolve()
    files = [binary, *more]
    for folder in _own_folders():
        files += _tree(folder, _LEFT_OUT)
    cache = Path("/etc/ld.so.cache")  # where the loader looks for libraries in unusual folders
    if cache.exists():
        files.append(cache)
    programs = {name: Path(path) for name in _PROGRAMS if (path := shutil.which(name))}
    files += programs.values()
    with tarfile.open(fileobj=file, mode="w") as archive:
        layer = _Layer(archive)
        for point in _MOUNT_POINTS:
            layer.add_folder(point)
        layer.add_data("/etc/passwd", _USERS)
        layer.add_data("/etc/group", _GROUPS)
        for path in sorted({*map(str, files), *shared_libraries(files)}):
            layer.add_file(path)
        if "sh" in programs:  # `subprocess` looks for it there
            layer.add_link("/bin/sh", str(programs["sh"]))
        for name in ("python3", "python"):
            layer.add_link(f"{_SEARCHED}/{name}", str(binary))


def shared_libraries(files: Iterable[Path]) -> set[str]:
    """The libraries, with the loader itself, that the binaries among the files are linked to."""
    binaries = [str(path) for path in files if _is_binary(path)]
    environment = {**os.environ, "LC_ALL": "C"}
    ldd = subprocess.run(
        ["ldd", *binaries], capture_output=True, text=True, env=environment, check=False
    )  # what it cannot resolve, this Python cannot import either
    return {os.path.normpath(path) for path in _LIBRARY.findall(ldd.stdout)}


class _Layer:
    """An archive in which everything belongs to root and all may read everything."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._paths = {"/"}

    def add_folder(self, path: str, mode: int = 0o755) -> None:
        entry = self._entry(path, mode)
        if entry is not None:
            entry.type = tarfile.DIRTYPE
            self._archive.addfile(entry)

    def add_data(self, path: str, data: bytes) -> None:
        entry = self._entry(path, 0o644)
        if entry is not None:
            entry.size = len(data)
            self._archive.addfile(entry, BytesIO(data))

    def add_file(self, path: str) -> None:
        """Add the file of the same path here; a link becomes the file that it leads to."""
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            entry = self._entry(path, 0o755 if found.st_mode & 0o100 else 0o644)
            if entry is not None:
                # Compiled modules count only beside a source of the same time and size.
                entry.size, entry.mtime = found.st_size, int(found.st_mtime)
                self._archive.addfile(entry, file)

    def add_link(self, path: str, target: str) -> None:
        entry = self._entry(path, 0o777)
        if entry is not None:
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            self._archive.addfile(entry)

    def _entry(self, path: str, mode: int) -> tarfile.TarInfo | None:
        """What the archive says of a path, below its parents; None if it is there already."""
        if path in self._paths:
            return None
        self.add_folder(os.path.dirname(path))
        self._paths.add(path)
        entry = tarfile.TarInfo(path[1:])
        entry.mode = mode
        return entry


def _own_folders() -> list[Path]:
    """The folders of the standard library: one, or two where binaries are kept apart."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    names = ("stdlib", "platstdlib")
    return [Path(path) for path in dict.fromkeys(sysconfig.get_path(n, vars=base) for n in names)]


def _tree(folder: Path, left_out: Set[str] = frozenset()) -> Iterator[Path]:
    """The regular files below a folder without those that no run needs."""
    compiled = f".{sys.implementation.cache_tag}.pyc"
    for top, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [n for n in folders if n not in left_out and not n.startswith("config-")]
        for name in names:
            path = Path(top, name)
            wanted = path.suffix != ".pyc" or name.endswith(compiled)
            if left_out.isdisjoint((name, name.split(".")[0])) and wanted and path.is_file():
                yield path


def _is_binary(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_ELF)) == _ELF


def main() -> None:
    """Make the image that the command line describes."""
    parser = argparse.ArgumentParser(
        prog="python -m sandboxes.image", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--tag", default=default_tag(), help="name:version (default: %(default)s)")
    parser.add_argument(
        "--packages",
        metavar="NAME-OR-FOLDER",
        nargs="+",
        default=[],
        help="installed packages with what they require, or folders to import from, taken whole",
    )
    arguments = parser.parse_args()
    started_s = time.monotonic()
    try:
        with contextlib.closing(connect()) as client:
            build(client, arguments.tag, arguments.packages)
            megabytes = client.images.get(arguments.tag).attrs["Size"] / 1e6
    except (Unavailable, LookupError, OSError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{arguments.tag}: {megabytes:.0f} MB in {time.monotonic() - started_s:.1f} s")


if __name__ == "__main__":
    main()
