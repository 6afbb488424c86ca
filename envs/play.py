"""The command that plays one episode: `python -m envs.play --env calculator --human`."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.command import Parser

if TYPE_CHECKING:
    from agents.base import Agent
    from agents.by_message import Speaker
    from agents.types import Trajectory
    from envs.base import ToolEnv
    from envs.types import Message, Task
    from mopd.config import Config

# Whatever else is needed is imported after parsing: --help and a mistyped flag cost no time. A
# person who plays waits for no torch either.


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, prepare, play, tell; 2: bad input, 130: Ctrl-C before a verdict."""
    given = parse(argv)
    try:
        config = configure(given)
        env, task = open_task(given, config)
        agent = None if "human" in given else open_agent(given, config, env)
    except ValueError as error:  # SettingsError, DataError: what the user gave
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    try:
        with contextlib.closing(env):
            if agent is None:
                trajectory = play_human(env, task)
            else:
                trajectory = play_model(given, config, env, task, agent)
        finish(given, config, trajectory)
    except KeyboardInterrupt:
        print("\nstopped; nothing is saved", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def natural_number(text: str) -> int:
    """An argument that counts from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number from 0 on")
    return int(text)


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The options that were given, and only those."""
    parser = Parser(
        prog="python -m envs.play",
        description="Watch a model play one task of an environment turn by turn, or play it "
        "yourself. --human reads lines from standard input; /help says what they can be.",
        epilog="example: python -m envs.play --env calculator --human",
    )
    add = parser.add_argument
    add("--env", required=True, metavar="NAME", help="a name, or package.module:Class")
    add("--human", action="store_true", help="play yourself")
    add("--model", metavar="NAME", help="`pocket` (default), a folder, or a name on the hub")
    add("--adapter", type=Path, metavar="DIR", help="a LoRA adapter on top, such as a run's")
    add("--task", type=natural_number, metavar="N", help="which task, or row of the data (seed)")
    add("--seed", type=natural_number, metavar="N", help="decides the model's sampling (0)")
    add("--level", type=natural_number, metavar="L", help="difficulty of procedural tasks")
    add("--split", choices=("train", "held_out"), help="whose tasks (held_out)")
    add("--data", metavar="FILE", help="tasks of a file or hub:owner/name:split; else procedural")
    add("--set", action="append", metavar="KEY=VALUE", help="any setting of a run")
    add("--no-pause", action="store_true", help="do not wait for Enter between a model's turns")
    add("--out", type=Path, metavar="FILE", help="add the trajectory there, as one JSON line")
    given = parser.given(argv)
    for flag in ("model", "adapter"):
        if "human" in given and flag in given:
            parser.error(f"--human plays without a model; leave out --{flag}")
    out = given.get("out")
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        parser.error(f"--out got {out}; expected a file in a folder that exists")
    return given


def configure(given: dict[str, Any]) -> "Config":
    """The configuration that the options ask for."""
    from mopd.settings import load_settings

    flags = {
        "env.name": given["env"],
        "env.level": given.get("level"),
        "env.data": given.get("data"),
        "env.eval_data": given.get("data"),
        "model.name": given.get("model"),
        "seed": given.get("seed"),
    }
    return load_settings(file=None, flags=flags, assignments=given.get("set", ()))


def open_task(given: dict[str, Any], config: "Config") -> tuple["ToolEnv", "Task"]:
    """The environment of the split, and the task that was asked for."""
    from mopd.worlds import task_source

    env = task_source(config, given.get("split", "held_out"))
    number = given.get("task", config.seed)
    if env.rows is not None and number >= len(env.rows):
        raise ValueError(f"--task {number}: the data has {len(env.rows)} tasks, counted from 0")
    return env, env.task(number)


def open_agent(given: dict[str, Any], config: "Config", env: "ToolEnv") -> "Agent | Speaker":
    """The model that plays."""
    from mopd.experiment import preflight_rollouts, quiet_libraries
    from mopd.player import adapter_digest, load_agent

    quiet_libraries()
    adapter = given.get("adapter")
    if adapter is not None:
        adapter_digest(adapter)
    preflight_rollouts(config, given.get("split", "held_out"))
    return load_agent(config, adapter, env)


def play_human(env: "ToolEnv", task: "Task") -> "Trajectory":
    """Messages come from standard input; what is typed there is repeated where it is piped."""
    from agents.human import HELP, Typist, play, tools_text
    from agents.stage import Scribe

    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):  # not everywhere; it edits lines and keeps them
            import readline  # noqa: F401 - `input` uses it once it is loaded
    scribe = Scribe()

    def see(messages: "Sequence[Message]") -> None:
        for message in messages:
            print(scribe.text(message), flush=True)

    typist = Typist(lambda: next_line("> " if typed else ""), print)

    def say() -> "Message | None":
        message = typist.message(env.schemas())
        text = scribe.text(message) if message is not None else ""
        if text and not typed:
            print(text)
        return message

    def start(observation: "Sequence[Message]") -> None:
        see(observation)
        print(tools_text(env.schemas()))
        print(HELP if typed else "(/help says what a line can be)", flush=True)

    return play(env, task, say, start, see)


def play_model(
    given: dict[str, Any],
    config: "Config",
    env: "ToolEnv",
    task: "Task",
    agent: "Agent | Speaker",
) -> "Trajectory":
    """The rollout of a training run, of one episode, which somebody follows."""
    from agents.by_message import Speaker, play_episode
    from agents.rollout import rollout_groups
    from agents.stage import Scribe
    from agents.watched import WatchedAgent
    from mopd.player import close_agent

    scribe = Scribe()
    waits = sys.stdin.isatty() and sys.stdout.isatty() and "no_pause" not in given

    def pause() -> None:
        if waits and next_line("[Enter: next turn, Ctrl-C: stop] ") is None:
            raise KeyboardInterrupt

    def see(messages: "Sequence[Message]") -> None:
        for message in messages:
            print(scribe.text(message), flush=True)

    if isinstance(agent, Speaker):
        return play_episode(agent, env, task, seed=config.seed, see=see, pause=pause)
    watched = WatchedAgent(agent, env, see, pause)
    (group,) = rollout_groups(
        watched,
        lambda: env,
        [task],
        1,
        seed=config.seed,
        max_new_tokens=config.rollout.max_new_tokens,
        max_context=config.rollout.max_context,
    )
    watched.catch_up()
    close_agent(agent)
    return group.trajectories[0]


def next_line(prompt: str) -> str | None:
    """A line of standard input; None at its end."""
    try:
        return input(prompt)
    except EOFError:
        return None


def finish(given: dict[str, Any], config: "Config", trajectory: "Trajectory") -> None:
    """Tell how it ended, and save it."""
    from agents.stage import ending
    from mopd.run_folder import trajectory_record

    print(ending(trajectory))
    if "out" in given:
        about = {"env": config.env.name, "player": "human" if "human" in given else "model"}
        with given["out"].open("a", encoding="utf-8") as file:
            file.write(json.dumps(trajectory_record(trajectory, **about)) + "\n")
        print(f"saved in {given['out']}")


if __name__ == "__main__":
    sys.exit(main())
