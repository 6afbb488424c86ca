"""The science environment: bounded tools, problems that add up, published formats and scores."""

import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.science_qa import ScienceQAEnv, formats, problems, tools, units
from envs.science_qa.problems.measures import MASSES, UNITS
from envs.science_qa.quantity import Quantity, grade_quantity
from envs.tools import MalformedCall, call_tool
from envs.types import Message, Task, ToolCall

FILES = ("biology_train", "biology_test", "chemistry_train", "chemistry_test")
BASE = ("calculate", "convert_units", "element")
MMLU = {
    "question_id": 70,
    "question": "Which is a noble gas?",
    "options": ["N", "O", "Ar", "Cl", "H", "N/A"],
    "answer": "C",
    "answer_index": 2,
    "category": "chemistry",
}
GPQA = {
    "Record ID": "rec1",
    "Question": "Which is a noble gas?\n",
    "Correct Answer": "Ar\n",
    "Incorrect Answer 1": "N",
    "Incorrect Answer 2": "O",
    "Incorrect Answer 3": "Cl",
}
SCIKNOWEVAL = {
    "question": "Which is a noble gas?",
    "choices": {"text": ["N", "Ar"], "label": ["A", "B"]},
    "answerKey": "B",
    "type": "mcq-2-choices",
}
PREPARED = {
    "kind": "mcq",
    "system": "Select.",
    "prompt": "Which?\nA: is not\n\nA: N\nB: O\nC: Ar\nD: Cl\nPlease reason step by step.",
    "answer": "C",
}


def use(tool: str, /, **arguments: Any) -> str:
    chosen = {each.name: each for each in tools.choose()}
    started = time.monotonic()
    observation = call_tool(chosen, ToolCall("0", tool, json.dumps(arguments)), 500)
    assert time.monotonic() - started < 5
    return observation


def convert(value: float, from_unit: str, to_unit: str) -> str:
    return use("convert_units", value=value, from_unit=from_unit, to_unit=to_unit)


def draw(level: int, count: int, split: str = "train") -> list[Task]:
    env = ScienceQAEnv(level=level, split=split)
    return [env.task(seed) for seed in range(count)]


# Tools.


@pytest.mark.parametrize(
    ("value", "from_unit", "to_unit", "shown"),
    [
        (72, "km/h", "m/s", "20 m/s"),
        (25, "degC", "K", "298.15 K"),
        (98.6, "\u00b0F", "\u00b0C", "37 \u00b0C"),
        (1, "kg\u00b7m\u00b2/s\u00b2", "J", "1 J"),
        (1, "s\u207b\u00b9", "Hz", "1 Hz"),
        (1, "J/(mol K)", "cal/(mol K)", "0.23900574 cal/(mol K)"),
        (3, "cm3", "mL", "3 mL"),
        (9, "m s-1", "km / h", "32.4 km / h"),
        (2, "cubic meter", "L", "2000 L"),
        (5, "%", "dimensionless", "0.05 dimensionless"),
        (1, "kWh", "J", "3600000 J"),
    ],
)
def test_units_are_converted_as_scientists_write_them(
    value: float, from_unit: str, to_unit: str, shown: str
) -> None:
    assert convert(value, from_unit, to_unit) == shown


@pytest.mark.parametrize(
    ("from_unit", "to_unit", "cure"),
    [
        ("m**9**9**9", "m", "write units like"),
        ("m^99", "m", "write units like"),
        ("(" * 50 + "m" + ")" * 50, "m", "at most 60"),
        ("((m))", "m", "write units like"),
        ("m" * 10_000_000, "m", "at most 60"),
        ("3 m", "m", "write units like"),
        ("9**9**9", "m", "write units like"),
        ("__import__('os')", "m", "write units like"),
        ("m.__class__", "m", "write units like"),
        ("", "m", "write units like"),
        ("m*", "m", "write units like"),
        ("\ud800", "m", "write units like"),
        ("nan", "m", "is not a unit"),
        ("dB^2", "mol", "cannot convert"),
        ("meeter", "m", "did you mean meter"),
        ("m", "s", "cannot convert m to s: they are meter ([length]) and second ([time])"),
        ("F", "degC", "they are farad"),
        ("Ym^9", "ym^9", "too large"),
    ],
)
def test_a_hostile_or_mistaken_unit_is_answered_at_once(
    from_unit: str, to_unit: str, cure: str
) -> None:
    answer = convert(1e300 if "Y" in from_unit else 1, from_unit, to_unit)
    assert answer.startswith("Error: ")
    assert cure in answer


def test_a_value_that_is_no_finite_number_is_refused() -> None:
    for value in (float("nan"), float("inf")):
        assert "expected a finite number" in convert(value, "m", "cm")


def test_random_units_raise_nothing_else() -> None:
    rng = random.Random(0)
    parts = ["m", "s", "^", "**", "9", "-", "(", ")", "*", "/", " ", "degC", "per ", "\u00b5", "dB"]
    for _ in range(1000):
        text = "".join(rng.choices(parts, k=rng.randint(1, 9)))
        with contextlib.suppress(units.UnitProblem):
            units.convert(rng.choice((0.0, 1e300, -2.5)), text, "km")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Na", "Na sodium: number 11, mass 22.9898 g/mol"),
        ("Aluminium", "Al aluminum: number 13"),
        ("na", "Na sodium"),
        ("U-235", "U-235: number 92, mass 235.04393 g/mol"),
        ("uranium-235", "U-235: number 92"),
        ("CO", "Error: there is no element 'CO'"),
        ("neutron", "Error: there is no element"),
        ("C-99", "Error: no data for C-99; carbon has isotopes 8 to 22"),
        ("", "Error: there is no element"),
        ("x" * 10_000_000, "Error: there is no element"),
    ],
)
def test_elements_are_found_by_symbol_name_and_isotope(name: str, shown: str) -> None:
    assert use("element", name=name).startswith(shown)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("c", "speed of light in vacuum = 299792458.0 m s^-1 (exact)"),
        ("Planck constant", "Planck constant = 6.62607015e-34 J Hz^-1 (exact)"),
        ("G", "Newtonian constant of gravitation = 6.6743"),
        ("g", "standard acceleration of gravity = 9.80665 m s^-2"),
        ("Planck", "Error: 16 constants have 'Planck' in their names, such as planck mass"),
        ("plank constant", "Error: there is no constant 'plank constant'; did you mean planck"),
        ("x" * 10_000_000, "Error: a name of 10000000 characters"),
    ],
)
def test_constants_are_those_of_codata(name: str, shown: str) -> None:
    pytest.importorskip("scipy", reason="the tool comes with the extra `science`")
    assert use("constant", name=name).startswith(shown)


ASPIRIN = (
    "C9H8O4, 180.159 g/mol, atoms 21 (heavy 13), rings 1 (aromatic 1), logP 1.31, TPSA 63.6, "
    "H-bond donors 1, acceptors 3, rotatable bonds 2"
)


@pytest.mark.parametrize(
    ("smiles", "shown"),
    [
        ("CC(=O)Oc1ccccc1C(=O)O", ASPIRIN),
        ("CC(=O)[O-]", "C2H3O2-, 59.044 g/mol"),
        ("C(C)(C)(C)(C)C", "Error: the molecule cannot exist: Explicit valence for atom # 0 C"),
        ("c1cccc1", "Error: the molecule cannot exist: Can't kekulize"),
        ("C1CC", "Error: 'C1CC' cannot be read as SMILES"),
        ("water", "Error: 'water' cannot be read as SMILES"),
        ("C |comment|", "Error: 'C |comment|' is not SMILES"),
        ("[C+99999999]", "Error: a number in the SMILES is too large"),
        ("C" * 1_000_000, "Error: a SMILES of 1000000 characters; at most 1500"),
        ("(" * 1500, "Error: '((((("),
        ("\ud800", "Error: '\\ud800' is not SMILES"),
        ("", "Error: '' is not SMILES"),
    ],
)
def test_molecules_are_read_from_smiles(
    smiles: str, shown: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rdkit", reason="the tool comes with the extra `science`")
    assert use("molecule", smiles=smiles).startswith(shown)
    assert capfd.readouterr() == ("", "")  # RDKit logs to the terminal


def test_a_molecule_of_many_rings_is_refused_before_they_are_searched() -> None:
    pytest.importorskip("rdkit", reason="the tool comes with the extra `science`")

    def all_bound(size: int) -> str:
        closures = dict.fromkeys(range(size), "")
        pairs = [(a, b) for a in range(size) for b in range(a + 2, size)]
        for label, (a, b) in enumerate(pairs, start=100):
            closures[a] += f"%({label})"
            closures[b] += f"%({label})"
        return "".join(f"[U]{closure}" for closure in closures.values())

    assert use("molecule", smiles=all_bound(13)).startswith("U13, 3094.377 g/mol")
    refused = use("molecule", smiles=all_bound(15))
    assert refused == "Error: 91 independent rings; at most 80 are allowed"


def test_a_tool_without_its_library_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("scipy", "rdkit"):
        monkeypatch.setitem(sys.modules, library, None)
    env = ScienceQAEnv()
    assert tuple(env.tools) == BASE
    with pytest.raises(ValueError, match=r"env\.tools: molecule needs rdkit; pip install 'mopd\["):
        ScienceQAEnv(tools=("molecule",))


def test_tools_can_be_chosen() -> None:
    assert tuple(ScienceQAEnv(tools=("element", "calculate")).tools) == ("element", "calculate")
    assert not ScienceQAEnv(tools=()).tools
    with pytest.raises(ValueError, match=r"env\.tools: got 'oracle'; there are calculate, "):
        ScienceQAEnv(tools=("oracle",))


def test_libraries_are_loaded_by_the_tools_that_need_them() -> None:
    code = (
        "import sys; from envs.science_qa import ScienceQAEnv; ScienceQAEnv().task(0);"
        "print({'pint', 'rdkit', 'scipy', 'periodictable'} & set(sys.modules))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert done.stdout.split() == [b"set()"]


words = st.text(max_size=40) | st.sampled_from(("x" * 1_000_000, "\ud800", "9" * 5000, "(" * 5000))
values = words | st.floats() | st.integers() | st.none() | st.booleans()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_arguments_make_a_tool_raise(data: st.DataObject) -> None:
    offered = {each.name: each for each in tools.choose()}
    chosen = data.draw(st.sampled_from(sorted(offered)))
    arguments = {key: data.draw(values) for key in offered[chosen].args}
    try:
        text = call_tool(offered, ToolCall("0", chosen, json.dumps(arguments)), 500)
    except MalformedCall as error:
        text = str(error)
    assert f"{chosen} raised" not in text


def test_threads_share_the_tools() -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor as Pool\n"
        "from envs.science_qa import elements, units\n"
        "def use(n): return units.convert(n, 'km/h', 'm/s') * 3.6 - n, elements.describe('Fe')\n"
        "found = list(Pool(16).map(use, range(200)))\n"
        "assert max(abs(rest) for rest, _ in found) < 1e-9\n"
        "assert len({iron for _, iron in found}) == 1"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Procedural problems.


def test_the_tables_of_the_problems_agree_with_the_libraries() -> None:
    for symbol, (name, mass) in MASSES.items():
        assert use("element", name=symbol).startswith(f"{symbol} {name}: ")
        assert f"mass {float(mass):.6g} g/mol" in use("element", name=symbol)
    for a, source in UNITS.items():
        for b, target in UNITS.items():
            if source.dimension == target.dimension:
                exact = (7 * source.size + source.zero - target.zero) / target.size
                assert units.convert(7.0, a, b) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("level", problems.LEVELS)
def test_each_step_of_a_solution_uses_what_the_tools_said_before(level: int) -> None:
    env = ScienceQAEnv(level=level)
    for task in draw(level, 60):
        env.reset(options={"task": task})
        *calls, answer = env.solution(task)
        seen: list[str] = []
        for message in calls:
            (observation,), *_ = env.step(message)
            assert not observation.content.startswith("Error"), (task.prompt, message)
            seen.append(observation.content)
        last = seen[-1].rpartition("about ")[2].rstrip(")")
        if "mass" in last:
            last = last.partition("mass ")[2]
        number = last.split()[0]
        assert float(Fraction(number)) == pytest.approx(task.payload["value"], rel=1e-5)
        env.step(answer)
        assert env.verdict is not None
        assert env.verdict.success, (task.prompt, answer)


def test_the_level_is_the_number_of_calls() -> None:
    for level, allowed in {1: {1}, 2: {2}, 3: {3}, 4: {4, 5}}.items():
        assert {len(task.payload["steps"]) for task in draw(level, 200)} == allowed


@pytest.mark.parametrize("level", problems.LEVELS)
def test_every_subject_is_in_both_splits_and_prompts_are_short(level: int) -> None:
    for split in ("train", "held_out"):
        tasks = draw(level, 120, split)
        assert {task.id.split("/")[1] for task in tasks} == set(problems.SUBJECTS)
        assert max(len(task.prompt) for task in tasks) < 250


@pytest.mark.parametrize("level", problems.LEVELS)
def test_solutions_pass_and_corrupted_ones_fail(level: int) -> None:
    env, rng = ScienceQAEnv(level=level), random.Random(level)
    for task in draw(level, 150, "held_out"):
        assert env.grade(task, env.solution(task)[-1]).success
        wrong = env.grade(task, env.corrupted(task, rng)[-1])
        assert not wrong.success
        assert wrong.feedback


def test_problems_need_no_more_than_the_base_tools() -> None:
    used = {
        tool
        for level in problems.LEVELS
        for t in draw(level, 100)
        for tool, _ in t.payload["steps"]
    }
    assert used == set(BASE)


SPEED = Quantity(20.0, "m/s", 0.01, unit_required=True)


@pytest.mark.parametrize(
    ("answer", "success", "says"),
    [
        ("20 m/s", True, "is correct"),
        ("20.19 m/s", True, "is correct"),
        ("20.21 m/s", False, "too large"),
        ("19.8 m/s", True, "is correct"),
        ("72 km/h", True, "is correct"),
        ("2 x 10^1 m/s", True, "is correct"),
        ("$2 \\times 10^{1}\\,\\text{m/s}$", True, "is correct"),
        ("2e1 m s^{-1}.", True, "is correct"),
        ("0.02 km/s", True, "is correct"),
        ("40/2 m/s", True, "is correct"),
        ("20", False, "its unit is missing"),
        ("20 m", False, "cannot convert m"),
        ("-20 m/s", False, "of the wrong sign"),
        ("200 m/s", False, "far too large"),
        ("1 m/s", False, "far too small"),
        ("0 m/s", False, "not correct"),
        ("20 or 30 m/s", False, "not a unit"),
        ("fast", False, "is no number. Write it like"),
        ("1e999 m/s", False, "is no number"),
        ("1/0 m/s", False, "is no number"),
        ("20 m**9**9**9", False, "is not a unit"),
        ("", False, "There is no answer"),
        ("9" * 10_000_000, False, "no short text"),
    ],
)
def test_a_quantity_is_judged_with_its_unit(answer: str, success: bool, says: str) -> None:
    verdict = grade_quantity(f"So <answer>{answer}</answer>", SPEED)
    assert verdict.success == success, verdict.feedback
    assert says in verdict.feedback


def test_a_unit_that_the_question_names_may_be_left_out() -> None:
    assert grade_quantity("<answer>1,200</answer>", Quantity(1200.0, "m", 0.01)).success
    assert grade_quantity("<answer>1.2 km</answer>", Quantity(1200.0, "m", 0.01)).success
    assert not grade_quantity("<answer>1200 s</answer>", Quantity(1200.0, "m", 0.01)).success


def test_what_is_counted_stands_in_place_of_a_unit() -> None:
    peas = Quantity(12.0, "", 0.01, counted="peas")
    for answer, success in {
        "12": True,
        "12 green peas": True,
        "12 m": False,
        "12 %": False,
    }.items():
        assert grade_quantity(f"<answer>{answer}</answer>", peas).success == success


# Published formats.


@pytest.mark.parametrize("row", [MMLU, GPQA, SCIKNOWEVAL, PREPARED])
def test_each_format_is_told_by_its_fields(row: Mapping[str, Any]) -> None:
    env = ScienceQAEnv()
    task = env.read_row(row)
    assert f"\n{task.answer}: Ar\n" in task.prompt
    assert "N/A" not in task.prompt
    (_, user), _ = env.reset(options={"task": task})
    assert user.content == task.prompt
    for letter in task.payload["letters"]:
        reply = Message("assistant", f"<answer>{letter}</answer>")
        assert env.grade(task, reply).success == (letter == task.answer)
    assert not env.grade(task, env.corrupted(task, random.Random(0))[-1]).success


def test_ids_depend_on_the_row_alone() -> None:
    assert formats.read_row(MMLU).id == "mmlu_pro/70"
    assert formats.read_row(GPQA).id == "gpqa/rec1"
    anonymous = {key: value for key, value in GPQA.items() if key != "Record ID"}
    assert formats.read_row(anonymous).id == formats.read_row(dict(anonymous)).id
    prepared = {"kind": "mcq", "system": "x", "prompt": formats.read_row(SCIKNOWEVAL).prompt}
    assert formats.read_row(prepared | {"answer": "B"}).id == formats.read_row(SCIKNOWEVAL).id


def test_the_options_of_gpqa_are_in_an_order_of_each_question() -> None:
    rows = [GPQA | {"Question": f"Question {n}?", "Record ID": f"{n}"} for n in range(200)]
    tasks = [formats.read_row(row) for row in rows]
    assert [formats.read_row(row) for row in reversed(rows)] == tasks[::-1]
    letters = [task.answer for task in tasks]
    assert all(30 < letters.count(letter) < 70 for letter in "ABCD")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"a": 1}, "expected the fields of SciKnowEval or .* got 'a'"),
        (PREPARED | {"answer": "E"}, "expected an answer out of ABCD, got 'E'"),
        (PREPARED | {"kind": "tooluse"}, "expected 'kind' \"mcq\", got 'tooluse'"),
        (PREPARED | {"prompt": "No options."}, "expected 2 to 10 options A, B, ..., got ''"),
        (PREPARED | {"prompt": ""}, "expected a text in 'prompt', got an empty text"),
        (PREPARED | {"prompt": "Q\n\nA: 1\nB: 1"} | {"answer": "A"}, "defective: the right option"),
        (SCIKNOWEVAL | {"choices": {"text": [], "label": []}, "type": "open"}, "'open' is no mul"),
        (SCIKNOWEVAL | {"choices": None}, "expected a mapping in 'choices', got NoneType"),
        (MMLU | {"answer_index": 3}, "'answer' 'C' and 'answer_index' 3 disagree"),
        (MMLU | {"options": "ABC"}, "expected a list of texts in 'options', got str"),
        (GPQA | {"Incorrect Answer 2": "Ar"}, "defective: the right option"),
        (GPQA | {"Correct Answer": None}, "expected a text in 'Correct Answer', got NoneType"),
    ],
)
def test_a_row_that_is_no_task_is_refused_with_the_reason(
    row: Mapping[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        formats.read_row(row)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(KeyError, match="answerKey"):
        formats.read_row({"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}})


def test_the_system_prompt_is_that_of_the_task() -> None:
    env = ScienceQAEnv()
    ten = env.read_row(MMLU | {"options": list("abcdefghij")})
    assert "ten options" in env.reset(options={"task": ten})[0][0].content
    assert "(A, B, C, D, E, F, G, H, I, or J)" in env.transcript[0].content
    assert env.reset(options={"task": env.read_row(PREPARED)})[0][0].content == "Select."
    assert env.reset(seed=0)[0][0].content == ScienceQAEnv.system_prompt


@pytest.mark.parametrize("name", FILES)
def test_every_published_row_is_a_task_with_the_published_prompts(
    name: str, shared_data: Path
) -> None:
    path = shared_data / "sciknoweval" / f"{name}.jsonl"
    env = ScienceQAEnv(data=path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert env.rows is not None
    assert not env.rejected
    rng = random.Random(0)
    for row, task in zip(rows, env.rows, strict=True):
        system, user = env.reset(options={"task": task})[0]
        assert (system.content, user.content) == (row["system"], row["prompt"])
        assert system.content == formats.system(4)
        assert env.grade(task, env.solution(task)[-1]).success
        assert not env.grade(task, env.corrupted(task, rng)[-1]).success
