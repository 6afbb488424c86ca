"""`python -m mopd.probe`: what a model makes of peers, in one environment, for its model card."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel

    from agents.by_message import Speaker
    from envs.base import ToolEnv
    from mopd.analysis import Slots
    from mopd.config import Config
    from mopd.player import Sampler

# Whatever else is needed is imported after parsing: --help costs no time.

Findings = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, load, measure, show; 2: bad input, 1: nothing could be scored."""
    args = parse(argv)
    from mopd.engines import engine_of
    from mopd.evaluate import UnscoredError
    from mopd.player import close_agent

    try:
        config = configure(args)
        env, agent, findings = load(config, args.adapter, alone=args.alone)
    except ValueError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    try:
        found = findings()
    except UnscoredError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 1
    finally:
        close_agent(agent)
    report = {
        "env": config.env.name,
        "level": env.level,
        "model": config.model.name,
        "engine": engine_of(config),
        "adapter": str(args.adapter) if args.adapter else None,
        "seed": config.seed,
        **found,
    }
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(report)
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command's options; None for what was not given."""
    parser = argparse.ArgumentParser(prog="python -m mopd.probe", description=__doc__)
    parser.add_argument("--env", required=True, metavar="NAME")
    parser.add_argument("--model", metavar="NAME", help="`pocket`, a folder, or a name on the hub")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="a run's adapter on top")
    parser.add_argument("--level", type=int, metavar="N", help="difficulty of the tasks")
    parser.add_argument("--tasks", type=int, metavar="N", help="held-out tasks")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="rollouts of a task")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--alone", action="store_true", help="only the success without peers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers here")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of a run"
    )
    return parser.parse_args(argv)


def configure(args: argparse.Namespace) -> "Config":
    """The configuration that the options ask for."""
    from mopd.settings import load_settings

    return load_settings(
        file=None,
        flags={
            "env.name": args.env,
            "env.level": args.level,
            "model.name": args.model,
            "eval.tasks": args.tasks,
            "eval.samples": args.samples,
            "seed": args.seed,
        },
        assignments=args.set,
    )


def load(
    config: "Config", adapter: Path | None, *, alone: bool
) -> tuple["ToolEnv", "Sampler | Speaker", Callable[[], Findings]]:
    """The environment of the tasks, who plays them, and what measures that.

    Raises:
        ValueError: something cannot work, told before anything is played.
    """
    from agents.by_message import Speaker
    from agents.chat import Chat
    from mopd.analysis import CONDITIONS
    from mopd.engines import engine_of, speaks_in_messages, transformers_agent
    from mopd.experiment import check_room, preflight_rollouts, quiet_libraries
    from mopd.player import adapted_student, adapter_digest, load_agent
    from mopd.student import load_tokenizer
    from mopd.worlds import task_source

    quiet_libraries()
    if adapter is not None:
        adapter_digest(adapter)
    preflight_rollouts(config, "held_out")
    evidence = 0 if alone else config.prompt.max_tokens
    if not speaks_in_messages(config):
        check_room(config, evidence)
    # One engine plays everything, evidence or not: it has room for the longest transcripts.
    room = {"max_context": config.rollout.max_context + evidence}
    roomy = config.model_copy(update={"rollout": config.rollout.model_copy(update=room)})
    env = task_source(config, "held_out")
    conditions = {} if alone else CONDITIONS
    if engine_of(config) == "transformers":  # which plays with the teacher's weights
        student = adapted_student(config, adapter)
        chat = Chat(load_tokenizer(config.model), env.schemas())
        agent = transformers_agent(roomy, chat, student)
        return env, agent, partial(by_tokens, agent, student, env, config, conditions)
    player = load_agent(roomy, adapter, env)
    if isinstance(player, Speaker):
        return env, player, partial(by_message, player, env, config, conditions)
    # An adapter that does not fit is found out here, before an engine starts.
    student = adapted_student(config, adapter)
    return env, player, partial(by_tokens, player, student, env, config, conditions)


def by_tokens(
    agent: "Sampler",
    student: "PeftModel",
    env: "ToolEnv",
    config: "Config",
    conditions: "Mapping[str, tuple[Slots, Slots]]",
) -> Findings:
    """Play held-out tasks without peers, then with each kind of evidence, and score the former.

    The teacher is the base model of `student`, whatever engine the agent has.
    """
    from mopd import analysis
    from mopd.config import TeacherSection
    from mopd.evaluate import evaluate, held_out_tasks
    from mopd.teacher import LocalTeacher
    from mopd.worlds import env_factory

    def agent_with_room(max_context: int) -> "Sampler":
        agent.max_context = max_context
        return agent

    make_env = env_factory(config, "held_out")
    tasks = held_out_tasks(env, config.eval.tasks)
    evaluation, groups = evaluate(
        agent_with_room(config.rollout.max_context), make_env, tasks, config
    )
    teacher = LocalTeacher(student, TeacherSection(kind="base"), config.rollout.temperature)

    def judged(contexts: analysis.Contexts) -> Findings:
        scores = analysis.teacher_scores(teacher, groups, contexts, config, agent.chat)
        return asdict(analysis.agreement(groups, scores))

    def effect(slots: tuple[analysis.Slots, analysis.Slots]) -> Findings:
        contexts = analysis.peers_of_new_rollouts(groups, slots, config)
        return asdict(
            analysis.peer_effect(agent_with_room, agent.chat, make_env, groups, contexts, config)
        )

    return {
        "without_peers": evaluation.as_dict(),
        "with_peers": {name: effect(slots) for name, slots in conditions.items()},
        "teacher_auc": {"none": judged(analysis.without_peers(groups))}
        | {
            name: judged(analysis.peers_of_judged_rollouts(groups, slots, config))
            for name, slots in conditions.items()
        },
    }


def by_message(
    speaker: "Speaker",
    env: "ToolEnv",
    config: "Config",
    conditions: "Mapping[str, tuple[Slots, Slots]]",
) -> Findings:
    """`by_tokens` of who speaks in messages: there are no tokens for a teacher to score."""
    from mopd import analysis
    from mopd.evaluate import evaluate_speaker, held_out_tasks
    from mopd.worlds import env_factory

    make_env = env_factory(config, "held_out")
    tasks = held_out_tasks(env, config.eval.tasks)
    evaluation, groups = evaluate_speaker(speaker, make_env, tasks, config)

    def effect(slots: tuple[analysis.Slots, analysis.Slots]) -> Findings:
        contexts = analysis.peers_of_new_rollouts(groups, slots, config)
        return asdict(analysis.spoken_peer_effect(speaker, make_env, groups, contexts, config))

    return {
        "without_peers": evaluation.as_dict(),
        "with_peers": {name: effect(slots) for name, slots in conditions.items()},
        "teacher_auc": None,
    }


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    alone = report["without_peers"]
    table = Table(
        box=SIMPLE,
        title=f"{report['env']} level {report['level']}, {report['model']}: {_text(alone)} without "
        f"peers, on {alone['tasks']} held-out tasks x {alone['samples']}",
    )
    aucs = report["teacher_auc"]  # None where there are no tokens to score
    columns = ["in the prompt", "tasks", "rollouts", "without", "with peers", "gain"]
    for name in columns + (["mixed", "teacher AUC"] if aucs else []):
        table.add_column(name, justify="right", no_wrap=True)
    for name in aucs or report["with_peers"]:
        effect = report["with_peers"].get(name)
        shown = ["", "", "", "", ""]
        if effect:
            shown = [str(effect["tasks"]), str(effect["rollouts"])]
            shown += [_text(effect[key]) for key in ("alone", "with_peers", "gain")]
        if aucs:
            shown += [str(aucs[name]["tasks"]), _text(aucs[name]["auc"])]
        table.add_row(name, *shown)
    width = None if sys.stdout.isatty() else 130
    Console(width=width, emoji=False, markup=False).print(table)  # `:x:` is a model's name


def _text(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate['mean']:.2f} [{estimate['ci_low']:.2f}, {estimate['ci_high']:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
