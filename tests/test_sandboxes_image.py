import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandboxes import image

pytest_plugins = ["docker_engine"]  # its fixtures, once for all files

CACHE_TAG = sys.implementation.cache_tag


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarfile.TarFile]:
    path = tmp_path_factory.mktemp("image") / "layer.tar"
    with open(path, "wb") as file:
        image.write_layer(file)
    with tarfile.open(path) as archive:
        yield archive


def test_the_layer_holds_an_interpreter_that_needs_nothing_else(
    layer: tarfile.TarFile, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may chroot")
    layer.extractall(tmp_path, filter="fully_trusted")
    code = "import bz2, ctypes, hashlib, lzma, sqlite3, ssl, zlib; print(sqlite3.sqlite_version)"
    done = subprocess.run(
        ["/usr/sbin/chroot", tmp_path, "/usr/local/bin/python3", "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        env={},
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("3.")


def test_everything_belongs_to_root_and_can_be_read_by_all(layer: tarfile.TarFile) -> None:
    for entry in layer:
        assert (entry.uid, entry.gid) == (0, 0), entry.name
        assert entry.mode & 0o444 == 0o444, entry.name
        writable = entry.mode & 0o022 and not entry.issym()
        assert not writable, entry.name


def test_every_folder_stands_before_what_is_in_it(layer: tarfile.TarFile) -> None:
    seen = {""}
    for entry in layer:
        assert os.path.dirname(entry.name) in seen, entry.name
        assert entry.name not in seen
        seen.add(entry.name)


def test_the_layer_leaves_out_what_no_task_needs(layer: tarfile.TarFile) -> None:
    parts = {part for name in layer.getnames() for part in Path(name).parts}
    assert not parts & {"test", "idlelib", "tkinter", "ensurepip", "site-packages"}
    assert not any(part.startswith(("_tkinter", "libX11", "config-")) for part in parts)
    assert "json" in parts


def test_a_package_brings_what_it_requires() -> None:
    ((folder, files),) = image.package_files(["pytest"]).items()
    assert folder == Path(pytest.__file__).parents[1]
    assert {"pytest", "_pytest", "pluggy", "iniconfig"} <= {
        path.relative_to(folder).parts[0] for path in files
    }


def test_a_folder_is_taken_whole_without_stale_bytecode(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").mkdir()
    wanted = [tmp_path / "module.py", tmp_path / "__pycache__" / f"module.{CACHE_TAG}.pyc"]
    for path in [*wanted, tmp_path / "__pycache__" / "module.cpython-27.pyc"]:
        path.write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    found = image.package_files([f"{tmp_path}/"])
    assert {key: set(files) for key, files in found.items()} == {tmp_path: set(wanted)}


@pytest.mark.parametrize("wanted", ["no-such-package", "no/such/folder"])
def test_a_package_that_is_not_there_is_named(wanted: str) -> None:
    with pytest.raises(LookupError, match=wanted):
        image.package_files([wanted])


def test_the_command_makes_an_image_of_the_name(
    docker_engine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import docker

    (tmp_path / "my_package.py").write_text("VALUE = 42")
    arguments = ["image", "--tag", "mopd-sandbox-test", "--packages", f"{tmp_path}/"]
    monkeypatch.setattr(sys, "argv", arguments)
    image.main()
    assert capsys.readouterr().out.startswith("mopd-sandbox-test: ")
    client = docker.from_env()
    try:
        code = f"import sys; sys.path.append('{tmp_path}'); import my_package as m; print(m.VALUE)"
        output = client.containers.run(
            "mopd-sandbox-test", ["python3", "-c", code], network_mode="none", remove=True
        )
        assert output == b"42\n"
        labels = client.images.get("mopd-sandbox-test").labels
        assert str(tmp_path) in labels["mopd.sandbox.folders"]
    finally:
        client.images.remove("mopd-sandbox-test", force=True)
        client.close()


@pytest.mark.parametrize("host", ["unix:///no/such/socket", "tcp://127.0.0.1:9"])
def test_without_an_engine_the_command_says_so(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("docker", reason="no docker-py: pip install 'mopd[docker]'")
    monkeypatch.setenv("DOCKER_HOST", host)
    monkeypatch.setattr(sys, "argv", ["image"])
    with pytest.raises(SystemExit) as stop:
        image.main()
    assert stop.value.code == 1
    assert host in capsys.readouterr().err
