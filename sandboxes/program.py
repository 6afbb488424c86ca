"""The runner as one text, so that no file of ours has to exist where it runs."""

import base64
import functools
import zlib
from pathlib import Path

_FOLDER = Path(__file__).parent
# Each after what it imports.
_MODULES = ("wire", "runner/seccomp", "runner/system", "runner/confine", "runner/repl",
            "runner/nursery", "runner/job", "runner/server", "runner/main")  # fmt: skip
_LOADER = """
import base64, sys, zlib
for package in ("sandboxes", "sandboxes.runner"):
    sys.modules[package] = type(sys)(package)
    sys.modules[package].__path__ = []
sys.modules["sandboxes"].runner = sys.modules["sandboxes.runner"]
for name, source in eval(zlib.decompress(base64.b64decode("%s"))):
    module = sys.modules[name] = type(sys)(name)
    module.__file__ = "<%%s>" %% name
    parent, _, own = name.rpartition(".")
    setattr(sys.modules[parent], own, module)
    exec(compile(source, module.__file__, "exec"), module.__dict__)
sys.modules["sandboxes.runner.main"].main()
"""

PYTHON_FLAGS = ("-I", "-S", "-B", "-X", "utf8")


@functools.cache
def source() -> str:
    """What to give to `python -c`; its one argument is a descriptor's number, or `stdio`."""
    modules = [
        ("sandboxes." + name.replace("/", "."), (_FOLDER / f"{name}.py").read_text("utf-8"))
        for name in _MODULES
    ]
    packed = base64.b64encode(zlib.compress(repr(modules).encode(), 9)).decode()
    return _LOADER % packed
