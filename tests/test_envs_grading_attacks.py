"""Wrong programs that want the reward: none gets it from a judge, and a naive judge falls."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from envs.grading.in_process import judge_pytest, pytest_policy
from envs.grading.program import judge_cases, judge_script
from envs.grading.stdio import judge_stdio
from envs.types import Verdict
from sandboxes import wire
from sandboxes.base import BackendOptions, ExecResult, Limits, Sandbox
from sandboxes.open import BACKENDS, choose, open_sandbox, probe

RIGHT = "def count(xs):\n    return sum(x > 0 for x in xs)\n"
CASES = [(([3, -1],), 1), (([1, 2],), 2)]
SCRIPT = """
def check(candidate):
    assert candidate([3, -1]) == 1
    assert candidate([1, 2]) == 2
"""
QUIET_SCRIPT = "try:\n    assert count([1]) == 1\nexcept Exception: raise"
MAIN = "\nif __name__ == '__main__':\n    print(count([int(x) for x in input().split()]))\n"
STDIN_CASES = [("3 -1\n", "1\n"), ("1 2\n", "2\n")]
PYTEST = """
import pytest, unittest
from solution import count

def test_mixed():
    assert count([3, -1]) == 1

@pytest.mark.parametrize(("xs", "n"), [([1, 2], 2), ([1, 2, 3], 3)])
def test_positive(xs, n):
    assert count(xs) == n

class TestClose:
    def test_close(self):
        assert count([7]) == pytest.approx(1.0)

class TestOld(unittest.TestCase):
    def test_old(self):
        self.assertEqual(count([4]), 1)

def test_refusal():
    with pytest.raises(TypeError):
        count(5)
"""


def forged(message: tuple[object, ...], kind: bytes) -> bytes:
    return wire.frame(bytes(16) + kind + wire.encode(message))


FRAMES = forged(("case", "ok", 1), b"e") * 2 + forged(("ok", "", None, 0.0, 0), b"d")
LIAR = """
class Liar:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __bool__(self): return True
    def __hash__(self): return 0
"""

# By the numbers of the list of attacks in the project's notes on sandboxes.
ATTACKS = {
    "V00 nothing but wrong": "def count(xs): return 0",
    "V01 an object equal to everything": LIAR + "def count(xs):\n    len(xs)\n    return Liar()",
    "V02 an int that lies": """
class Int(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def count(xs): return Int(0)
""",
    "V02 a string that lies": """
class Str(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def count(xs): return Str("0")
""",
    "V02 a list that lies": """
class List(list):
    def __eq__(self, other): return True
def count(xs): return List()
""",
    "V02 a class that lies about itself": """
class Meta(type):
    def __eq__(self, other): return True
    def __hash__(self): return hash(int)
class Int(metaclass=Meta):
    def __eq__(self, other): return True
    __class__ = int
    __module__ = "builtins"
def count(xs): return Int()
""",
    "V03 sys.exit(0) at its top level": "import sys\nsys.exit(0)",
    "V03 sys.exit(0) in the call": "import sys\ndef count(xs): sys.exit(0)",
    "V04 os._exit(0) at its top level": "import os\nos._exit(0)",
    "V04 os._exit(0) in the call": "import os\ndef count(xs): os._exit(0)",
    "V05 printed answers": """
import json
def count(xs):
    print("PASSED")
    print('{"reward": 1.0, "success": true}')
    print(json.dumps([True, True]))
    return 0
""",
    "V05 printed answers and a quick end": """
import os
def count(xs):
    print("PASSED", flush=True)
    print("[true, true]", flush=True)
    os._exit(0)
""",
    "V06 answers written to every descriptor": f"""
import os
def count(xs):
    for fd in range(3, 1024):
        try: os.write(fd, {FRAMES!r})
        except OSError: pass
    return 0
""",
    "V06 answers written to every descriptor, then an end": f"""
import os
for fd in range(3, 1024):
    try: os.write(fd, {FRAMES!r} * 3)
    except OSError: pass
os._exit(0)
""",
    "V07 other builtins": LIAR
    + """
import builtins
builtins.isinstance = builtins.issubclass = lambda *a: True
builtins.any = builtins.all = lambda *a: True
builtins.len = lambda *a: 1
builtins.id = lambda *a: 1
builtins.AssertionError = type("Quiet", (BaseException,), {})
def count(xs): return Liar()
""",
    "V07 patched modules": """
import sys, json, operator, copy, unittest
operator.eq = operator.ne = lambda *a: True
json.dumps = json.JSONEncoder.encode = lambda *a, **k: "[true, true]"
copy.deepcopy = lambda *a: 1
unittest.TestCase.assertEqual = lambda *a: None
for module in list(sys.modules.values()):
    for name in ("check", "matches", "judge_cases", "encode", "described"):
        if hasattr(module, name): setattr(module, name, lambda *a: b"")
def count(xs): return 0
""",
    "V07 a planted test framework": """
import sys
check = candidate = raises = approx = lambda *a: True
sys.modules["envs"] = sys.modules["pytest"] = sys.modules["unittest"] = sys.modules[__name__]
def count(xs): return 0
""",
    "V08 what is expected, from the frames": """
import sys
def count(xs):
    frame = sys._getframe()
    while frame := frame.f_back:
        for name, value in {**frame.f_globals, **frame.f_locals}.items():
            if "expected" in name: return value
    return 0
""",
    "V08 what is expected, from the garbage collector": """
import gc
def count(xs):
    for thing in gc.get_objects():
        if type(thing) in (tuple, list) and len(thing) == 2 and thing[0] == [xs]:
            return thing[1]
    return 0
""",
    "V09 a pickle that runs on the host": """
class Pickle:
    def __reduce__(self): return exec, ("print(True, flush=True)\\nimport os\\nos._exit(0)",)
def count(xs): return Pickle()
""",
    "V10 late writers": """
import atexit, threading, time
def late():
    time.sleep(0.01)
    print("PASSED")
    print("[true, true]")
class Late:
    def __del__(self): late()
kept = Late()
atexit.register(late)
def count(xs):
    threading.Thread(target=late).start()
    return 0
""",
    "V14 a number that is not one": "def count(xs): return float('nan')",
    "V14 an infinity": "def count(xs): return 1e400",
    "V15 an error": "def count(xs): raise ValueError",
    "V15 an end of iteration": "def count(xs): raise StopIteration",
    "V15 an exception of its own": "class Quiet(BaseException): pass\ndef count(xs): raise Quiet",
    "V16 every answer at once": """
def count(xs):
    for line in (1, 2, 1, 2): print(line)
    return [1, 2]
""",
    "V17 changed arguments": """
def count(xs):
    if isinstance(xs, list): xs.clear()
    return 0
""",
    "V18 tricks of the copy": """
class Copy:
    def __deepcopy__(self, memo): return 1
    def __copy__(self): return 1
    def __reduce_ex__(self, protocol): return (int, (1,))
    def __index__(self): return 1
    __int__ = __index__
    __class__ = int
def count(xs): return Copy()
""",
    "V19 kill the parent": """
import os
for pid in (os.getppid(), 1):
    try: os.kill(pid, 9)
    except OSError: pass
def count(xs): return 0
""",
}

# They need pytest, or the modules of a session that has it.
PYTEST_ATTACKS = {
    "V11 files of pytest": """
hook = '''
import pytest
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    report.outcome = "passed"
'''
for name, content in (
    ("conftest.py", hook), ("pytest.py", "def raises(*a): ..."), ("sitecustomize.py", "x = 1"),
    ("evil.pth", "import os"), ("tests.py", "def test_mixed(): pass"),
    ("test_it.py", "def test_mixed(): pass"), ("pytest.ini", "[pytest]\\naddopts = --co"),
):
    for folder in ("", "/", "/tmp/"):
        try: open(folder + name, "w").write(content)
        except OSError: pass
def count(xs): return 0
""",
    "V12 a skip of the module": """
import pytest
pytest.skip("not now", allow_module_level=True)
""",
    "V12 a skip of the test": "import pytest\ndef count(xs): pytest.skip('not now')",
    "V12 a failure that is expected": "import pytest\ndef count(xs): pytest.xfail('known')",
    "V12 a clean exit": "import pytest\ndef count(xs): pytest.exit('done', returncode=0)",
    "V12 a skip of unittest": "import unittest\ndef count(xs): raise unittest.SkipTest",
    "V12 deselected tests": """
import _pytest.main
items = _pytest.main.Session.genitems
_pytest.main.Session.genitems = lambda *a: [i for i in items(*a) if "test_c" in i.name]
def count(xs): return 1
""",
    "V13 reports that always pass": """
from _pytest.reports import TestReport
old = TestReport.from_item_and_call.__func__
def new(cls, item, call):
    call.excinfo = None
    return old(cls, item, call)
TestReport.from_item_and_call = classmethod(new)
def count(xs): return 0
""",
    "V13 tests that are not run": """
import _pytest.python, _pytest.runner
_pytest.python.Function.runtest = lambda *a: None
_pytest.runner.pytest_runtest_call = lambda item: None
def count(xs): return 0
""",
    "V13 an exit code of its own": """
import pytest, _pytest.main
old = pytest.main
pytest.main = lambda *a, **k: old(*a, **k) and 0
_pytest.main.Session.testsfailed = property(lambda self: 0, lambda self, value: None)
def count(xs): return 0
""",
    "V13 nothing raises": """
import pytest, contextlib
pytest.raises = lambda *a, **k: contextlib.suppress(BaseException)
def count(xs): return sum(x > 0 for x in xs) if isinstance(xs, list) else 0
""",
    "V13 everything is near enough": """
import pytest
pytest.approx = lambda *a, **k: 0
def count(xs): return 0 if xs == [7] else sum(x > 0 for x in xs)
""",
    "V13 methods of unittest that do nothing, from the first call on": """
import unittest
def count(xs):
    unittest.TestCase.assertEqual = lambda *a: None
    return sum(x > 0 for x in xs) if xs != [4] else 0
""",
    "V13 a counter that equals everything": """
import collections
collections.Counter.__eq__ = lambda *a: True
def count(xs): return collections.Counter(xs)
""",
    "V13 an approximation of everything": """
import pytest
def count(xs):
    len(xs)
    return pytest.approx(1.0, abs=1e9)
""",
    "V13 what a mock takes for anything": """
from unittest.mock import ANY
def count(xs):
    len(xs)
    return ANY
""",
    "V13 a proxy of a liar": LIAR
    + """
import weakref
liar = Liar()
def count(xs):
    len(xs)
    return weakref.proxy(liar)
""",
}

BACKEND = choose()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with closing(open_sandbox(BACKEND, Limits(wall_s=4.0))) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def with_pytest() -> Iterator[Sandbox]:
    with closing(open_sandbox(BACKEND, Limits(wall_s=8.0), pytest_policy())) as sandbox:
        yield sandbox


def judged_by_hosts(sandbox: Sandbox, program: str) -> list[Verdict]:
    """By the judges whose tests never meet the program's process."""
    return [
        judge_stdio(sandbox, program + MAIN, STDIN_CASES),
        judge_cases(sandbox, program, "count", CASES),
        judge_script(sandbox, program, "count", SCRIPT),
        judge_script(sandbox, program, "count", QUIET_SCRIPT),
    ]


def test_the_right_program_is_rewarded_by_every_judge(
    sandbox: Sandbox, with_pytest: Sandbox
) -> None:
    verdicts = [
        *judged_by_hosts(sandbox, RIGHT),
        judge_pytest(with_pytest, RIGHT, PYTEST),
    ]
    assert [(verdict.reward, verdict.feedback) for verdict in verdicts] == [(1.0, "")] * 5


@pytest.mark.parametrize("program", ATTACKS.values(), ids=ATTACKS.keys())
def test_no_attack_is_rewarded(sandbox: Sandbox, with_pytest: Sandbox, program: str) -> None:
    verdicts = [
        *judged_by_hosts(sandbox, program),
        judge_pytest(with_pytest, program, PYTEST),
    ]
    assert [verdict.reward for verdict in verdicts] == [0.0] * 5
    assert all(verdict.feedback for verdict in verdicts)


@pytest.mark.parametrize("program", PYTEST_ATTACKS.values(), ids=PYTEST_ATTACKS.keys())
def test_no_attack_on_pytest_is_rewarded(with_pytest: Sandbox, program: str) -> None:
    verdict = judge_pytest(with_pytest, program, PYTEST)
    assert (verdict.reward, verdict.success) == (0.0, False)
    assert verdict.feedback


SEARCH = """
import gc, re, sys

PATTERN = re.compile(rb"expect" + rb"ed-[0-9a-f]{16}")

def search(n):
    found = []  # of bytes, as the pattern is
    frame = sys._getframe()
    while frame:
        names = {**frame.f_locals, **frame.f_globals}
        found += [repr(value).encode() for value in names.values()]
        frame = frame.f_back
    found += [repr(thing).encode() for thing in gc.get_objects() if type(thing) in (tuple, list)]
    try:
        maps, memory = open("/proc/self/maps").readlines(), open("/proc/self/mem", "rb", 0)
    except OSError:
        maps = []
    for line in maps:
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if " rw" in line:
            try:
                memory.seek(start)
                found += [memory.read(end - start)]
            except (OSError, OverflowError, ValueError):
                pass
    return sorted({hit.decode() for text in found for hit in PATTERN.findall(text)})
"""


def test_what_is_expected_is_nowhere_in_the_programs_process(sandbox: Sandbox) -> None:
    secret = "expected-0123456789abcdef"
    script = f"def check(candidate):\n    assert candidate(2) == [{secret!r}]"
    by_cases = judge_cases(sandbox, SEARCH, "search", [((1,), [secret]), ((2,), [secret])])
    by_script = judge_script(sandbox, SEARCH, "search", script)
    by_output = judge_stdio(sandbox, SEARCH + "print(search(input()))", [("1", f"[{secret!r}]")])
    assert by_cases.feedback == f"search(1) returned [], expected [{secret!r}]"
    assert by_script.feedback.startswith("search(2) returned []; failed: assert")
    assert "line 1 of the output is '[]', expected" in by_output.feedback
    known = "seen = 'expected-' + '0123456789abcdef'\n" + SEARCH  # the search does find things
    assert judge_cases(sandbox, known, "search", [((1,), [secret])]).success


def test_an_error_is_no_empty_output(sandbox: Sandbox) -> None:
    for program in ("raise ValueError", "import sys\nsys.exit(1)", "import os\nos._exit(3)", "x ="):
        assert judge_stdio(sandbox, program, [("", "")]).reward == 0.0
    assert judge_stdio(sandbox, "pass", [("", "")]).success


def test_the_right_answer_before_a_time_out_is_none() -> None:
    late = "print(1, flush=True)\n"
    with closing(open_sandbox(BACKEND, Limits(wall_s=0.4))) as hasty:
        for program in ("while True: pass", "import time\ntime.sleep(9)"):
            verdict = judge_stdio(hasty, late + program, [("", "1")])
            assert verdict.reward == 0.0
            assert "did not finish in time" in verdict.feedback


def test_the_right_answer_at_the_head_of_a_flood_is_none(sandbox: Sandbox) -> None:
    flood = "print(1)\nprint('\\n' * 2 * 10**6)"  # all blank, so what is kept of it is right
    assert "printed too much" in judge_stdio(sandbox, flood, [("", "1")]).feedback


def test_arguments_that_the_program_changed_are_not_the_tests_own(sandbox: Sandbox) -> None:
    script = "xs = [3, -1]\nassert count(xs) == sum(x > 0 for x in xs)"
    assert not judge_script(sandbox, ATTACKS["V17 changed arguments"], "count", script).success
    assert judge_script(sandbox, RIGHT, "count", script).success


def test_a_program_that_knows_the_judge_of_last_resort_wins(with_pytest: Sandbox) -> None:
    # The limit of sharing a process, which `parts` tells: it changes the guard for its own class.
    knowing = f"""
{LIAR}
import __main__
check = __main__.Guard.check
def lenient(self, name, left, right, *approximate):
    if type(left) is not Liar: check(self, name, left, right, *approximate)
__main__.Guard.check = lenient
def count(xs):
    len(xs)
    return Liar()
"""
    verdict = judge_pytest(with_pytest, knowing, PYTEST)
    assert (verdict.reward, verdict.parts["in_process"]) == (1.0, 1.0)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name not in ("docker", BACKEND)])
def test_other_backends_make_the_same_verdicts(backend: str) -> None:
    options = BackendOptions(allow_unsafe=True)
    policy = pytest_policy()
    if reason := probe(backend, policy, options):
        pytest.skip(f"{backend} does not work here: {reason}")
    with closing(open_sandbox(backend, Limits(wall_s=4.0), policy, options)) as sandbox:
        for program, reward in (
            (RIGHT, 1.0),
            (ATTACKS["V00 nothing but wrong"], 0.0),
            (ATTACKS["V01 an object equal to everything"], 0.0),
            (ATTACKS["V04 os._exit(0) in the call"], 0.0),
            (ATTACKS["V08 what is expected, from the frames"], 0.0),
        ):
            verdicts = [
                *judged_by_hosts(sandbox, program),
                judge_pytest(sandbox, program, PYTEST),
            ]
            assert [verdict.reward for verdict in verdicts] == [reward] * 5


# Judges as they are often written, each one whole program that shares its process with the
# judged one. They run in a sandbox, too; what they print or exit with is their verdict.
NAIVE = {
    "exit code": """
import sys
names = {}
exec(sys.argv[1], names)
exec(sys.argv[2], names)
names["check"](names["count"])
""",
    "printed line": """
import sys
names = {}
exec(sys.argv[1], names)
exec(sys.argv[2], names)
try: names["check"](names["count"])
except BaseException: print("FAILED")
else: print("PASSED")
""",
    "json": """
import json, sys
names = {}
exec(sys.argv[1], names)
results = []
for (arguments, expected) in json.loads(sys.argv[3]):
    results.append(names["count"](*arguments) == expected)
print(json.dumps(results))
""",
    "pickle": """
import json, pickle, sys
names = {}
exec(sys.argv[1], names)
cases = json.loads(sys.argv[3])
sent = pickle.dumps([names["count"](*arguments) for arguments, expected in cases])
print(pickle.loads(sent) == [expected for arguments, expected in cases])  # on "the host"
""",
    "pytest": """
import sys
from pathlib import Path
sys.dont_write_bytecode = True
sys.path.insert(0, ".")
Path("solution.py").write_text(sys.argv[1])
Path("test_it.py").write_text(sys.argv[4])
try: import solution
except Exception: pass  # the tests will say so
import pytest
plugins = ["--disable-plugin-autoload", "-p", "no:cacheprovider"]
sys.exit(pytest.main([*plugins, "-q", "test_it.py"]))
""",
}
PASSES: dict[str, Callable[[ExecResult], bool]] = {
    "exit code": lambda result: result.exit_code == 0,
    "printed line": lambda result: "PASSED" in result.stdout,
    "json": lambda result: "[true, true]" in result.stdout,
    "pickle": lambda result: "True" in result.stdout,
    "pytest": lambda result: result.exit_code == 0,
}
FOOLED = {
    "exit code": (
        "V01 an object equal to everything",
        "V02 an int that lies",
        "V02 a string that lies",
        "V02 a list that lies",
        "V02 a class that lies about itself",
        "V03 sys.exit(0) at its top level",
        "V03 sys.exit(0) in the call",
        "V04 os._exit(0) at its top level",
        "V04 os._exit(0) in the call",
        "V06 answers written to every descriptor, then an end",
    ),
    "printed line": ("V05 printed answers", "V07 other builtins", "V10 late writers"),
    "json": (
        "V05 printed answers and a quick end",
        "V07 patched modules",
        "V08 what is expected, from the frames",
        "V08 what is expected, from the garbage collector",
        "V10 late writers",
    ),
    "pickle": (
        "V08 what is expected, from the frames",
        "V09 a pickle that runs on the host",
    ),
    "pytest": (
        "V01 an object equal to everything",
        "V04 os._exit(0) in the call",
        "V11 files of pytest",
        "V12 a skip of the test",
        "V12 a failure that is expected",
        "V12 a clean exit",
        "V12 deselected tests",
        "V13 reports that always pass",
        "V13 tests that are not run",
        "V13 an exit code of its own",
        "V13 nothing raises",
        "V13 everything is near enough",
        "V13 methods of unittest that do nothing, from the first call on",
        "V13 a counter that equals everything",
        "V13 an approximation of everything",
        "V13 what a mock takes for anything",
        "V13 a proxy of a liar",
    ),
}


@pytest.mark.parametrize("judge", NAIVE)
def test_the_same_attacks_fool_a_judge_that_shares_its_process(
    with_pytest: Sandbox, judge: str
) -> None:
    if judge == "pytest" and BACKEND == "landlock":
        pytest.skip("the naive judge writes files, and landlock has no place for them")

    def rewarded(program: str) -> bool:
        given = [program, SCRIPT, json.dumps(CASES), PYTEST]
        return bool(PASSES[judge](with_pytest.run(NAIVE[judge], argv=given)))

    attacks = ATTACKS | PYTEST_ATTACKS
    assert rewarded(RIGHT)
    assert not rewarded(attacks["V00 nothing but wrong"])
    assert [name for name in FOOLED[judge] if not rewarded(attacks[name])] == []
