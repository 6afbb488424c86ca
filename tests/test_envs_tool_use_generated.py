"""Chores in generated worlds, with tools that are made for the task."""

import copy
import hashlib
import json
import random
import re
import warnings
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from itertools import combinations
from keyword import iskeyword
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.tools import ToolException

from agents.types import Trajectory
from envs.base import EnvLimits, Transcript
from envs.tasks import held_out
from envs.text_actions import TextActions
from envs.tool_use import ToolUseEnv
from envs.tool_use.acting import Store
from envs.tool_use.declaration import Action, Flag, Number, Ref
from envs.tool_use.errands import CALLS
from envs.tool_use.worlds import DOMAINS, KINDS
from envs.trl import dataset, trl_environment
from envs.types import Message, StopReason, Task, ToolCall, Verdict
from envs.validate import examine
from mopd.rejudge import replay
from mopd.run_folder import json_line, trajectory_from_record, trajectory_record

TRAIN = [domain for domain in DOMAINS.values() if not domain.held_out]
ACTIONS = [
    pytest.param(domain, action, id=f"{domain.name}/{action.name}")
    for domain in DOMAINS.values()
    for action in domain.actions
]
HOME = (
    ("r10", (("kind", "room"), ("name", "Hall"), ("floor", "top"))),
    (
        "l20",
        (
            *(("kind", "lamp"), ("name", "Nova"), ("room", "r10"), ("power", False)),
            *(("colour", "red"), ("brightness", 40)),
        ),
    ),
    (
        "l21",
        (
            *(("kind", "lamp"), ("name", "Sol"), ("room", "r10"), ("power", True)),
            *(("colour", "red"), ("brightness", 40)),
        ),
    ),
    (
        "d30",
        (
            *(("kind", "door"), ("name", "Oak"), ("room", "r10"), ("lock", True)),
            ("pin", "1234"),
        ),
    ),
)


def opened(level: int | None = None, **options: Any) -> ToolUseEnv:
    return ToolUseEnv(world="generated", level=level, **options)


def play(env: ToolUseEnv, task: Task, messages: Transcript) -> Verdict:
    env.reset(options={"task": task})
    for message in messages:
        env.step(message)
        if env.stop_reason is not None:
            break
    assert env.verdict is not None
    return env.verdict


def call(env: ToolUseEnv, name: str, arguments: Any) -> str:
    """What the environment answers to one call."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return env.step(Message("assistant", "", (ToolCall("c", name, text),)))[0][0].content


def meant(task: Task) -> dict[str, tuple[str, str]]:
    """What the tools of a task do, and in which form, by name."""
    return {name: (does, form) for name, _, does, form, _ in task.payload["tools"]}


def acts(task: Task) -> list[str]:
    """What the solution does, without finding and showing."""
    does = [meant(task)[name][0] for name, _ in task.payload["steps"]]
    return [each for each in does if "/" in each]


# Tasks.


@pytest.mark.parametrize("level", ToolUseEnv.levels)
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_solutions_succeed_and_corrupted_ones_fail_in_both_formats(level: int, split: Any) -> None:
    env = opened(level, split=split)
    for seed in range(40):
        finding = examine(env, env, env.task(seed))
        assert finding.reasons == (), finding
        assert finding.gold == finding.corrupted == {"native": True, "text": True}
        assert env.stop_reason is StopReason.ANSWERED
        assert env.verdict is not None
        assert env.verdict.feedback


def test_a_level_needs_its_number_of_calls() -> None:
    for level in ToolUseEnv.levels:
        env = opened(level)
        tasks = [env.task(seed) for seed in range(200)]
        calls = [len(task.payload["steps"]) for task in tasks]
        assert (min(calls), max(calls)) == CALLS[level]
        assert 40 < sum(bool(task.payload["asked"]) for task in tasks) < 140
        assert max(len(task.prompt) for task in tasks) < 180


def test_every_action_of_a_domain_is_asked_for_in_its_split() -> None:
    for split, domains in (("train", TRAIN), ("held_out", list(DOMAINS.values()))):
        opens = [opened(level, split=split) for level in (2, 3, 4)]  # type: ignore[arg-type]
        used = {does for env in opens for seed in range(400) for does in acts(env.task(seed))}
        assert used == {f"{d.name}/{a}" for d in domains for a in d.action}


def test_train_and_held_out_share_no_prompt_and_one_domain_is_only_held_out() -> None:
    for level in ToolUseEnv.levels:
        seen, unseen = (
            [opened(level, split=split).task(seed) for seed in range(200)]
            for split in ("train", "held_out")
        )
        families = [{re.sub(r"\b\d+\b", "#", t.prompt) for t in tasks} for tasks in (seen, unseen)]
        assert not families[0] & families[1]
        assert not any(map(held_out, families[0]))
        assert len({t.id for t in (*seen, *unseen)}) == len({*seen_ids(seen), *seen_ids(unseen)})
        foreign = {does.split("/")[0] for t in seen for does, _ in meant(t).values() if "/" in does}
        assert foreign == {domain.name for domain in TRAIN}
        new = [t for t in unseen if any(d.startswith("harbour/") for d in acts(t))]
        assert len(new) > 20


def seen_ids(tasks: list[Task]) -> set[tuple[str, str]]:
    return {(task.id, task.prompt) for task in tasks}


def test_some_ways_of_naming_tools_are_only_held_out() -> None:
    unseen = re.compile(rf"[A-Z]\w+|({'|'.join(DOMAINS)})_\w+")
    for split, expected in (("train", 0), ("held_out", 60)):
        env = opened(2, split=split)
        tasks = [env.task(seed) for seed in range(200)]
        named = sum(any(unseen.fullmatch(name) for name in meant(task)) for task in tasks)
        assert named > expected if expected else named == 0


def test_from_level_3_on_a_call_needs_the_result_of_another() -> None:
    """No id stands in the prompt; ids and codes were in a result before they were used."""
    for level in (3, 4):
        env = opened(level)
        for seed in range(150):
            task = env.task(seed)
            ids = {id for id, _ in task.payload["world"]}
            assert not ids & set(re.findall(r"\w+", task.prompt)), task.prompt
            env.reset(options={"task": task})
            seen = task.prompt
            for name, text in task.payload["steps"]:
                for value in json.loads(text).values():
                    for each in value if isinstance(value, list) else [value]:
                        if str(each) in ids or re.fullmatch("[0-9]{4}", str(each)):
                            assert str(each) in seen, (task.prompt, name, text)
                seen += call(env, name, text)


def test_names_are_shared_and_lists_and_relations_are_meant_from_level_3_on() -> None:
    for level in ToolUseEnv.levels:
        env = opened(level)
        tasks = [env.task(seed) for seed in range(200)]
        firsts = [[dict(f)["name"].split()[0] for _, f in t.payload["world"]] for t in tasks]
        shared = sum(len(set(names)) < len(names) for names in firsts)
        groups = sum("all " in task.prompt for task in tasks)
        decoys = sum("whatever the note" in t.prompt or "yesterday" in t.prompt for t in tasks)
        assert shared > 150 if level > 2 else shared < 50
        assert (groups > 2, decoys > 5) == (level > 2, level > 2)


def test_what_has_to_be_done_first_is_refused_with_what_would_help() -> None:
    for level in (3, 4):
        env, refused = opened(level), 0
        for seed in range(200):
            task = env.task(seed)
            steps, done = task.payload["steps"], acts(task)
            if len(done) < 2 or task.payload["asked"] or " Then " in task.prompt:
                continue
            cure, last = (next(n for n, t in meant(task).items() if t[0] == d) for d in done[-2:])
            if done[-2] == done[-1]:  # one call for each of several records
                continue
            env.reset(options={"task": task})
            for name, text in steps:
                if "/" not in meant(task)[name][0]:
                    call(env, name, text)
            said = call(env, *steps[-1])
            assert said.startswith("Error: the "), said
            assert "has to be" in said
            assert any(f"first, with {name}" in said for name in meant(task)), said
            refused += steps[-1][0] == last and cure in said
            assert play(env, task, env.solution(task)).success
        assert refused > 10


def test_a_needless_change_fails_and_looking_is_free() -> None:
    env = opened(2)
    task = next(t for t in map(env.task, range(99)) if acts(t) and not t.payload["asked"])
    *steps, done = env.solution(task)
    assert not play(env, task, (done,)).success
    look = steps[0]
    assert play(env, task, (look, *steps, look, done)).success
    alien = next(
        (name, arguments)
        for name, _, does, form, arguments in task.payload["tools"]
        if "/" in does and does.split("/")[0] != acts(task)[0].split("/")[0] and form == "one"
    )
    env.reset(options={"task": task})
    for step in steps:
        env.step(step)
    action = DOMAINS[meant(task)[alien[0]][0].split("/")[0]].action[
        meant(task)[alien[0]][0].split("/")[1]
    ]
    record, fields = next(
        (id, dict(f)) for id, f in task.payload["world"] if dict(f)["kind"] == action.kind
    )
    before = env._store.freeze()
    value = other_value(action, fields)
    by_role = {"id": record, "value": value}
    said = call(env, alien[0], {name: by_role[role] for name, role, _ in alien[1]})
    assert said.startswith(f"{record}: "), said
    assert env._store.freeze() != before
    env.step(done)
    assert env.verdict is not None
    assert env.verdict.feedback.startswith(f"{action.field.capitalize()} of {record} is ")


def other_value(action: Action, fields: dict[str, Any]) -> Any:
    field = KINDS[action.kind].field(action.field)
    now = fields[action.field]
    if isinstance(field, Flag):
        return not now
    if isinstance(field, Number):
        return 1 if action.how != "set" else next(n for n in (field.low, field.high) if n != now)
    return next(v for v in getattr(field, "values", ("1111", "2222")) if v != now)


def test_the_agent_sees_neither_the_goal_nor_the_world() -> None:
    for level in ToolUseEnv.levels:
        env = opened(level)
        for seed in range(50):
            task = env.task(seed)
            opening, info = env.reset(options={"task": task})
            shown = opening[0].content + "".join(opening[0].tools) + str(info).replace(task.id, "")
            for id, fields in task.payload["world"]:
                assert f'"{id}"' not in shown
                assert str(dict(fields)["name"]) not in shown


# Tools.


def test_tools_come_with_the_task_and_differ_from_task_to_task() -> None:
    env = opened(3)
    assert env.schemas() == ()
    assert env.action_space.tools == ()  # type: ignore[attr-defined]
    names: dict[str, set[str]] = {}
    descriptions, styles, drawn = set(), Counter[str](), Counter[str]()
    for seed in range(300):
        task = env.task(seed)
        (system, user), _ = env.reset(options={"task": task})
        assert tuple(map(json.loads, system.tools)) == env.schemas()
        assert user == Message("user", task.prompt)
        for schema in env.schemas():
            function = schema["function"]
            does, form = meant(task)[function["name"]]
            names.setdefault(f"{does} {form}", set()).add(function["name"])
            descriptions.add(function["description"])
            drawn[f"{does} {form}"] += 1
            for argument, each in function["parameters"]["properties"].items():
                assert argument.isidentifier()
                styles["enum" if "enum" in each else each["type"]] += 1
                styles["described"] += "description" in each
                styles["bare"] += "description" not in each
    often = [does for does, count in drawn.items() if count > 25]
    assert len(often) > 15
    assert min(len(names[does]) for does in often) > 5
    assert len(descriptions) > 200
    assert set(styles) == {*("string", "integer", "boolean", "array", "enum", "described", "bare")}
    assert min(styles.values()) > 50, styles


def test_tools_are_told_apart_and_some_are_of_no_use() -> None:
    twins = Counter[str]()
    for level in ToolUseEnv.levels:
        for split in ("train", "held_out"):
            env = opened(level, split=split)  # type: ignore[arg-type]
            for seed in range(150):
                task = env.task(seed)
                tools = task.payload["tools"]
                names = [name for name, *_ in tools]
                assert len(set(names)) == len(names)
                assert all(n.isidentifier() and not iskeyword(n) and len(n) < 64 for n in names)
                for _, description, _, form, arguments in tools:
                    assert not re.search(r"[{}]|\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", description)
                    assert len({name for name, *_ in arguments}) == len(arguments)
                    twins[form] += 1
                used = {name for name, _ in task.payload["steps"]}
                domains = {meant(task)[name][0].split("/")[0] for name in names}
                assert len(domains & set(DOMAINS)) == 2, "one other domain"
                assert len(used) + 2 <= len(names) <= 14
                assert not any(meant(task)[name][1] in ("every", "check") for name in used)
    assert set(twins) == {"one", "many", "every", "check"}
    assert min(twins.values()) > 100


WRONG_TYPES: dict[str, tuple[Any, ...]] = {
    "string": (7, True, None, ["a"], {"a": 1}),
    "integer": ("7", 7.5, True, None, [7]),
    "boolean": ("yes", 1, None, "true"),
    "array": ("l20", 7, None, [7], {"a": 1}),
    "enum": ("purple", 1, None, ["red"], True),
}


def test_arguments_of_other_types_are_told_with_how_to_call() -> None:
    env, tried = opened(2), Counter[str]()
    for seed in range(40):
        task = env.task(seed)
        for name, _, _, _, arguments in task.payload["tools"]:
            env.reset(options={"task": task})
            before = env._store.freeze()
            properties = env.tools[name].args
            for argument, *_ in arguments:
                kind = "enum" if "enum" in properties[argument] else properties[argument]["type"]
                good = {key: well_typed(each) for key, each in properties.items()}
                for wrong in WRONG_TYPES[kind]:
                    env.reset(options={"task": task})
                    said = call(env, name, {**good, argument: wrong})
                    assert said.startswith(f"Error: argument '{argument}"), said
                    assert f"Expected {name}({next(iter(properties))}: " in said
                    tried[kind] += 1
                env.reset(options={"task": task})
                del good[argument]
                assert "Field required. Expected" in call(env, name, good)
            assert env._store.freeze() == before
    assert set(tried) == set(WRONG_TYPES)


def well_typed(schema: dict[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    return {"string": "x", "integer": 1, "boolean": True, "array": ["x"]}[schema["type"]]


@pytest.mark.parametrize(
    ("does", "form", "arguments", "cure"),
    [
        ("show", "one", {"id": "x1"}, "there is no record 'x1'; seek tells the ids"),
        ("show lamp", "one", {"id": "d30"}, "d30 is of the kind door; expected light"),
        ("home/colour", "one", {"id": "d30", "value": "red"}, "expected light"),
        ("home/colour", "one", {"id": "x" * 99, "value": "red"}, f"record '{'x' * 40}...'"),
        (
            "home/colour",
            "one",
            {"id": "l20", "value": "blue"},
            "the power of l20 is off; it has to be on first, with turn_it",
        ),
        (
            "home/brightness",
            "one",
            {"id": "l21", "value": 91},
            "expected from 10 to 90, as the dimming is 40",
        ),
        ("home/brightness", "one", {"id": "l21", "value": 10**4000}, "expected from 10 to 90"),
        ("home/unlock", "one", {"id": "d30", "proof": "0000"}, "not the pin of d30; look tells"),
        ("home/power", "many", {"ids": [], "value": True}, "got 0 ids; expected from 1 to 4"),
        ("home/power", "many", {"ids": ["l20"] * 5, "value": True}, "got 5 ids"),
        ("home/power", "many", {"ids": ["l20", "d30"], "value": True}, "d30 is of the kind door"),
        ("home/colour", "every", {"value": "blue"}, "the power of l20 is off"),
        ("home/colour", "check", {"id": "l20", "value": "blue"}, "the power of l20 is off"),
    ],
)
def test_a_refused_call_says_how_to_repair_it_and_changes_nothing(
    does: str, form: str, arguments: Any, cure: str
) -> None:
    said = {"lamp": "light", "lamp.brightness": "dimming"}
    store = Store(HOME, said, {"find": "seek", "show": "look", "home/power": "turn_it"})
    with pytest.raises(ToolException) as refused:
        store.act(does, form, arguments)
    assert cure in str(refused.value)
    assert store.freeze() == HOME


def test_numbers_codes_and_references_are_checked() -> None:
    store = Store(
        [
            ("s10", {"kind": "shelf", "name": "North", "subject": "art"}.items()),
            ("m20", {"kind": "member", "name": "Ada", "card": "1111", "debt": 7}.items()),
            ("b30", dict(BOOK, shelf="s10").items()),
        ]
    )
    for does, arguments, cure in (
        ("pay", {"id": "m20", "value": 8}, "expected from 1 to 7, as the debt is 7"),
        ("pay", {"id": "m20", "value": 0}, "expected from 1 to 7"),
        ("charge", {"id": "m20", "value": 93}, "expected from 1 to 92"),
        ("card", {"id": "m20", "value": "12x4"}, "'12x4' is no code; expected four digits"),
        ("lend", {"id": "b30", "value": "s10"}, "s10 is of the kind shelf; expected member"),
        ("lend", {"id": "b30", "value": "m21"}, "there is no record 'm21'"),
        ("lend", {"id": "b30", "value": "m20"}, "the debt of m20 is 7; it has to be 0 first"),
    ):
        with pytest.raises(ToolException, match=re.escape(cure)):
            store.act(f"library/{does}", "one", arguments)
    assert store.act("library/pay", "one", {"id": "m20", "value": 7}) == "m20: debt 0."
    assert store.act("library/lend", "one", {"id": "b30", "value": "m20"}) == "b30: borrower m20."
    assert store.act("show", "one", {"id": "b30"}).endswith(
        "borrower m20, claimant none, state new"
    )


BOOK = {"kind": "book", "name": "Dune", "borrower": "", "claimant": "", "state": "new"}


def test_lookalikes_do_something_else() -> None:
    store = Store(HOME)
    assert store.act("home/power", "check", {"id": "l20", "value": True}).startswith("That would")
    assert store.freeze() == HOME
    assert store.act("home/power", "every", {"value": True}) == "l20, l21: power on."
    assert all(r["power"] for r in store.records.values() if r["kind"] == "lamp")
    assert store.act("home/power", "many", {"ids": ["l21"], "value": False}) == "l21: power off."
    assert store.act("home/unlock", "one", {"id": "d30", "proof": "1234"}) == "d30: lock unlocked."
    assert store.matching("r10") == ["r10", "l20", "l21", "d30"]
    assert store.matching("nova r10", "lamp") == ["l20"]
    assert store.act("find lamp", "one", {"text": ""}) == "Nothing has ''."


# Declarations.


def test_kinds_and_nouns_are_of_one_domain_only() -> None:
    kinds = [kind for domain in DOMAINS.values() for kind in domain.kinds]
    assert len(KINDS) == len(kinds)
    assert len({kind.prefix for kind in kinds}) == len(kinds)
    for one, other in combinations(kinds, 2):
        assert not set(one.nouns) & set(other.nouns), "a prompt or tool name would fit both"
    for kind in kinds:
        names = [name for field in kind.fields for name in field.names]
        assert len(set(names)) == len(names)
        assert kind.people == (not kind.names)
        assert len(set(kind.names)) == len(kind.names)


@pytest.mark.parametrize(("domain", "action"), ACTIONS)
def test_an_action_is_declared_soundly(domain: Any, action: Action) -> None:
    kind = domain.kind[action.kind]
    assert (action.how == "remove") == (action.field == "")
    assert not action.proof or kind.field(action.proof)
    templates = (*action.plain, *action.tricky)
    assert len(templates) == len(set(templates))
    for template in templates:
        slots = set(re.findall(r"\{(\w+)\}", template))
        value = {"value"} if "{rest}" not in template else {"rest"}
        assert slots == ({"target"} | value if action.takes_value else {"target"}), template
        assert template.endswith(".")
        assert "{rest}" not in template or action.how in ("add", "take")
    for text in action.tells:
        assert set(re.findall(r"\{(\w+)\}", text)) <= {"noun", "field", "proof"}
        assert text[0].isupper()
        assert text.endswith(".")
    for need in action.needs:
        cure, holder = domain.action[need.cure], kind
        if need.of_value:
            field = kind.field(action.field)
            assert isinstance(field, Ref)
            holder = domain.kind[field.kind]
        assert (cure.kind, cure.field) == (holder.name, need.field)
        assert cure.value == need.wanted or cure.takes_value
    for other in domain.actions:
        if other is not action and other.kind == action.kind:
            same = set(other.verbs) & set(action.verbs)
            assert not same or (other.says_field and action.says_field), "tools of one name"
            if type(domain.field(other) if other.field else None) is type(
                domain.field(action) if action.field else None
            ):
                assert not {*other.plain, *other.tricky} & set(templates), "one order for two"


# Elsewhere.


def test_a_task_that_went_through_json_plays_alike_and_is_judged_again(tmp_path: Path) -> None:
    env = opened(4, split="held_out")
    for seed in range(20):
        task = env.task(seed)
        for messages in (env.solution(task), env.corrupted(task, random.Random(seed))):
            verdict = play(env, task, messages)
            assert verdict.success == (messages == env.solution(task))
            assert env.stop_reason is not None
            trajectory = Trajectory(
                *(task, 0, (1,), (True,), (0.0,), tuple(env.transcript)),
                *(verdict, env.stop_reason, "student"),
            )
            line = json_line(trajectory_record(trajectory))
            stored = trajectory_from_record(json.loads(line))
            office = ToolUseEnv()  # the stored task says what it is
            assert replay(office, stored) == ""
            assert office.verdict == verdict
            assert office.solution(stored.task) == env.solution(task)
            again = office.corrupted(stored.task, random.Random(seed))
            assert again == env.corrupted(task, random.Random(seed))


def test_gymnasium_takes_it_alone_and_in_vectors() -> None:
    env: Any = gymnasium.make("mopd/tool_use-v0", world="generated", render_mode="ansi")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=False)
    vector = gymnasium.make_vec(
        "mopd/tool_use-v0", 2, vectorization_mode="sync", world="generated", level=1
    )
    shown, _ = vector.reset(seed=[7, 7])
    assert shown[0] == shown[1]
    task = env.unwrapped.__class__(world="generated", level=1)
    first, _ = task.reset(seed=7)
    assert shown[0] == first
    messages = task.solution(task.current_task)
    for message in messages:
        _, reward, *_ = vector.step((message, message))
    assert list(reward) == [1.0, 1.0]
    vector.close()


@pytest.mark.skipif(find_spec("datasets") is None, reason="needs datasets")
def test_trl_cannot_show_tools_that_differ_from_task_to_task() -> None:
    factory = trl_environment("tool_use", world="generated")
    with pytest.raises(ValueError, match=r"task tool_use/chore/\w+ has tools of its own \(.+\)"):
        dataset(factory, 3)


def test_an_agent_without_tool_calls_reads_the_tools_in_the_system_message() -> None:
    env = opened(3)
    player = TextActions(env)
    (system, _), _ = player.reset(options={"task": env.task(0)})
    assert all(f"\n{name}(" in system.content for name in meant(env.task(0)))


def test_options_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"env\.world='moon': expected 'office' or 'generated'"):
        ToolUseEnv(world="moon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"env\.world='generated' .* does nothing with data"):
        opened(data=tmp_path / "rows.jsonl")


def test_the_office_is_what_students_have_learnt() -> None:
    """Tasks, prompts, schemas and ids of the default world, byte for byte."""
    digest = hashlib.sha256()
    for level in ToolUseEnv.levels:
        for split in ("train", "held_out"):
            env = ToolUseEnv(level=level, split=split)  # type: ignore[arg-type]
            for seed in range(25):
                task = env.task(seed)
                shown = env.reset(options={"task": task})
                digest.update(repr((task, shown, env.schemas(), env.solution(task))).encode())
    assert digest.hexdigest() == OFFICE


OFFICE = "3c9c0f8595947cef2489c6f8f106804eba9b4d97bb3561d9486bd4a3d296af5c"

HOSTILE = st.one_of(
    st.text(max_size=20),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.text(max_size=3) | st.sampled_from(("l20", "b30")), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(("x" * 1_000_000, "\ud800", "\x00\x1b[2J", "<|im_end|>", "9" * 4000, "")),
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), level=st.sampled_from(list(ToolUseEnv.levels)), seed=st.integers(0, 200))
def test_random_calls_are_answered_and_leave_the_task_as_it_is(
    data: st.DataObject, level: int, seed: int
) -> None:
    env = opened(level)
    task = env.task(seed)
    before = copy.deepcopy(task)
    env.reset(options={"task": task})
    world = [(id, dict(fields)) for id, fields in task.payload["world"]]
    known = [id for id, _ in world] + [value for _, fields in world for value in fields.values()]
    values = st.sampled_from(known) | HOSTILE
    for _ in range(data.draw(st.integers(1, 6))):
        name = data.draw(st.sampled_from(list(env.tools)))
        arguments: dict[str, Any] = {}
        for key, schema in env.tools[name].args.items():
            fitting = st.lists(values, max_size=3) if schema["type"] == "array" else values
            arguments[key] = data.draw(st.sampled_from(schema.get("enum", [""])) | fitting)
        said = call(env, name, arguments)
        assert len(said) <= env.limits.max_observation_chars
        said.encode("utf-8")
        if env.stop_reason is not None:
            break
    else:
        env.step(Message("assistant", data.draw(st.text(max_size=20))))
        assert env.verdict is not None
    assert task == before
    for id, record in env._store.records.items():
        assert record.keys() == dict(dict(before.payload["world"])[id]).keys()
        assert all(isinstance(v, int) or len(v) < 20 for v in record.values())


@pytest.mark.parametrize("text", ["[1]", "null", "{", "[" * 100_000, "9" * 10_000, '{"a": 1}'])
def test_arguments_that_are_no_object_of_the_tool_are_answered(text: str) -> None:
    env = opened(2)
    task = env.task(0)
    for name in meant(task):
        env.reset(options={"task": task})
        said = call(env, name, text)
        assert said.startswith("Error")
        assert name in said


def test_an_instance_keeps_nothing_of_the_last_episode() -> None:
    env = opened(2)
    task = next(t for t in map(env.task, range(99)) if acts(t))
    assert play(env, task, env.solution(task)).success
    env.reset(options={"task": task})
    assert env._store.freeze() == task.payload["world"]
    assert not play(env, task, env.solution(task)[-1:]).success
    other = replace(task, payload=ToolUseEnv(level=1).task(3).payload)
    env.reset(options={"task": other})
    assert next(iter(env.tools)) == "find"


def test_malformed_turns_end_the_episode_and_a_closed_environment_works_again() -> None:
    env = opened(2)
    task = env.task(0)
    first = task.payload["steps"][0]
    for reason in (StopReason.MALFORMED, StopReason.ANSWERED):
        env.reset(options={"task": task})
        assert not call(env, *first).startswith("Error")
        if reason is StopReason.MALFORMED:
            for _ in range(env.limits.max_malformed_turns):
                assert env.stop_reason is None
                assert call(env, first[0], {"nothing": 1}).startswith("Error")
        else:
            env.step(Message("assistant", "I cannot."))
        assert env.stop_reason is reason
        env.close()
        env.close()


def test_long_observations_are_clipped() -> None:
    env = opened(4, limits=EnvLimits(max_observation_chars=50))
    for seed in range(20):
        env.reset(options={"task": env.task(seed)})
        for message in env.solution(env.task(seed))[:-1]:
            (observation,), *_ = env.step(message)
            assert len(observation.content) <= 50
