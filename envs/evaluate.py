"""The command that measures an agent: `python -m envs.evaluate --env code --samples 4`."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.command import Parser, whole_number

if TYPE_CHECKING:
    from agents.base import Agent
    from agents.by_message import Speaker
    from envs.base import Split, ToolEnv
    from envs.types import Task
    from mopd.config import Config
    from mopd.evaluation_file import EvaluationFile, Header
    from mopd.evaluation_report import Outcomes
    from mopd.rejudge import Stored

# Whatever else is needed is imported after parsing: --help and a mistyped flag cost no time.


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, prepare, measure; 2: bad input, 1: nothing could be scored, 130: Ctrl-C."""
    given = parse(argv)
    try:
        measure = prepare_rejudging(given) if "rejudge" in given else prepare_evaluation(given)
    except ValueError as error:  # SettingsError, FolderError, DataError: what the user gave
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    try:
        return measure()
    except KeyboardInterrupt:
        cure = "; the same command with --resume goes on" if "json" in given else ""
        print(f"stopped before the end{cure}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


SETTINGS = (  # flag, the setting that it sets, type, help
    ("--env", "env.name", str, "a name, or package.module:Class"),
    ("--model", "model.name", str, "`pocket`, which is embedded, a folder, or a name on the hub"),
    ("--data", "env.eval_data", str, "tasks of a file or hub:owner/name:split; else procedural"),
    ("--level", "env.level", whole_number, "difficulty of procedural tasks"),
    ("--samples", "eval.samples", whole_number, "rollouts of each task: the K of pass@K"),
    ("--tasks", "eval.tasks", whole_number, "how many held-out tasks, or first rows of the file"),
    ("--seed", "seed", whole_number, "decides the sampling"),
)


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The options that were given, and only those; a flag for a setting has the setting's name."""
    parser = Parser(
        prog="python -m envs.evaluate",
        description="Play held-out tasks several times each and report mean@k, unbiased pass@k "
        "and their intervals.",
        epilog="example: python -m envs.evaluate --env code --adapter runs/NAME/adapter --samples "
        "8 --tasks 100 --json code.json",
    )
    for flag, setting, kind, text in SETTINGS:
        metavar = "N" if kind is whole_number else "NAME"
        parser.add_argument(flag, dest=setting, type=kind, metavar=metavar, help=text)
    add = parser.add_argument
    add("--adapter", type=Path, metavar="DIR", help="a LoRA adapter on top, such as a run's")
    add("--set", action="append", metavar="KEY=VALUE", help="any setting of a run")
    add("--json", type=Path, metavar="FILE", help="report; rollouts go to FILE's .rollouts.jsonl")
    add("--resume", action="store_true", help="play only what --json lacks or what errored")
    add("--rejudge", type=Path, metavar="RUN", help="score stored rollouts again; generate nothing")
    given = parser.given(argv)
    if "rejudge" not in given and "env.name" not in given:
        parser.error("--env is needed (or --rejudge); see --help")
    if "resume" in given and "json" not in given:
        parser.error("--resume goes on with the file of --json; give that too")
    if "resume" in given and "rejudge" in given:
        parser.error("--resume and --rejudge exclude each other")
    return given


def configure(given: dict[str, Any]) -> "Config":
    """The configuration that the options ask for."""
    from mopd.settings import load_settings

    flags = {setting: given.get(setting) for _, setting, _, _ in SETTINGS}
    flags["env.data"] = flags["env.eval_data"]
    return load_settings(file=None, flags=flags, assignments=given.get("set", ()))


def prepare_evaluation(given: dict[str, Any]) -> Callable[[], int]:
    """Check all that can be wrong and load the model; what is returned plays and reports."""
    config = configure(given)
    from mopd.evaluate import held_out_tasks
    from mopd.evaluation_file import EvaluationFile, Header
    from mopd.experiment import preflight_rollouts, quiet_libraries
    from mopd.player import adapter_digest, load_agent
    from mopd.worlds import task_source

    quiet_libraries()
    adapter = given.get("adapter")
    digest = adapter_digest(adapter) if adapter else None
    preflight_rollouts(config, "held_out")
    env = task_source(config, "held_out")
    tasks = held_out_tasks(env, config.eval.tasks)
    header = Header.of(config, tasks, adapter, digest)
    file = EvaluationFile(given["json"]) if "json" in given else None
    outcomes: Outcomes = {}
    if file and "resume" in given:
        outcomes = file.go_on(header)
    elif file:
        file.refuse_existing()
    agent = load_agent(config, adapter, env)
    if file and "resume" not in given:
        file.begin(header)
    return lambda: evaluate(config, header, env, tasks, agent, file, outcomes)


def evaluate(
    config: "Config",
    header: "Header",
    env: "ToolEnv",
    tasks: "Sequence[Task]",
    agent: "Agent | Speaker",
    file: "EvaluationFile | None",
    outcomes: "Outcomes",
) -> int:
    """Play what is missing, batch by batch, and report on all of it."""
    from dataclasses import asdict

    from mopd.evaluate import play_places
    from mopd.evaluation_report import outcome_of, rows, summarise
    from mopd.live import open_view
    from mopd.player import close_agent
    from mopd.sheet import show_sheet
    from mopd.worlds import env_factory

    started = time.monotonic()
    resumed = sum(not outcome.errored for outcome in outcomes.values())
    places = [(task, index) for task in tasks for index in range(config.eval.samples)]
    missing = [(task, i) for task, i in places if (task.id, i) not in outcomes]
    errored = [(t, i) for t, i in places if (t.id, i) in outcomes and outcomes[t.id, i].errored]
    make_env = env_factory(config, "held_out")
    with open_view() as view:
        view.phase(f"playing {len(missing) + len(errored)} of {len(places)} rollouts")
        for again, wanted in ((False, missing), (True, errored)):
            for batch in play_places(agent, make_env, wanted, config, again=again):
                if file:
                    file.append(batch)
                outcomes |= {(o.task, o.index): o for o in map(outcome_of, batch)}
                succeeded = sum(bool(o.success) for o in outcomes.values())
                view.phase(f"{len(outcomes)} of {len(places)} rollouts, {succeeded} succeeded")
    close_agent(agent)
    env.close()
    numbers = summarise(outcomes, header.task_ids, config.eval.samples)
    level = env.level if env.rows is None else None
    if file:
        about = {
            "env": config.env.name,
            "level": level,
            "model": config.model.name,
            "rejected_rows": [asdict(row) for row in env.rejected],
            "rollouts_file": file.rollouts_path.name,
            "rollouts_of_earlier_calls": resumed,
            "wall_s": time.monotonic() - started,
        }
        file.finish({**about, **numbers, **asdict(header)})
    what = f"level {level}" if level else str(config.env.eval_data)
    title = f"{config.env.name} ({what}), {agent.version}"
    show_sheet(f"{title}: {len(tasks)} held-out tasks x {config.eval.samples}", rows(numbers))
    if file:
        print(f"everything is in {file.path} and {file.rollouts_path}")
    return 0 if numbers["rollouts"] else 1


def prepare_rejudging(given: dict[str, Any]) -> Callable[[], int]:
    """Find the rollouts and their settings; what is returned judges and reports."""
    from mopd.rejudge import find_rollouts

    source, report = given["rejudge"], given.get("json")
    if report is not None and report.exists():
        raise ValueError(f"{report} exists; choose another --json")
    stored, files = find_rollouts(source)
    if stored is None and "env.name" not in given:
        raise ValueError(f"{source} says not which environment it is from; add --env NAME")
    asked = sorted(set(given) - {"rejudge", "json"})
    if stored is not None and asked:
        flag = {setting: flag for flag, setting, _, _ in SETTINGS}.get(asked[0], f"--{asked[0]}")
        raise ValueError(f"{source} has its own settings, which are used again; leave out {flag}")
    from mopd.worlds import task_source

    config = stored or configure(given)
    env_of = {split: task_source(config, split) for split in {file.split for file in files}}
    return lambda: rejudge(config, source, files, env_of, report)


def rejudge(
    config: "Config",
    source: Path,
    files: "Sequence[Stored]",
    env_of: "Mapping[Split, ToolEnv]",
    report: Path | None,
) -> int:
    """Score stored rollouts again and say how far the verdicts agree."""
    from mopd.rejudge import agreement, judge_again, rows
    from mopd.run_folder import write_whole
    from mopd.sheet import show_sheet

    found = agreement(tuple(judge_again(files, env_of)))
    for env in env_of.values():
        env.close()
    if report is not None:
        about = {"source": str(source), "config": config.as_dict()}
        write_whole(report, json.dumps({**about, **found}, indent=2) + "\n")
    show_sheet(f"{config.env.name}: {source}, judged again", rows(found))
    return 0 if found["rollouts"] else 1


if __name__ == "__main__":
    sys.exit(main())
