"""`python -m mopd.probe`: what a model makes of peers, in one environment, for its model card."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mopd.config import Config

# Whatever else is needed is imported after parsing: --help costs no time.


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, show; the exit code is 2 for bad input."""
    args = parse(argv)
    from mopd.experiment import preflight
    from mopd.settings import load_settings

    try:
        config = load_settings(
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
        preflight(config)
        if args.adapter is not None and not (args.adapter / "adapter_config.json").is_file():
            raise ValueError(f"--adapter got {args.adapter}, which holds no adapter_config.json")
    except ValueError as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    report = measure(config, args.adapter, alone=args.alone)
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


def measure(config: "Config", adapter: Path | None, *, alone: bool = False) -> dict[str, Any]:
    """Play held-out tasks without peers, then with each kind of evidence, and score the former."""
    import torch

    from agents.chat import Chat
    from agents.transformers_agent import TransformersAgent
    from mopd import analysis
    from mopd.config import TeacherSection
    from mopd.evaluate import evaluate, held_out_tasks
    from mopd.experiment import TINY, quiet_libraries
    from mopd.student import device_of, load_student, load_tokenizer
    from mopd.teacher import LocalTeacher
    from mopd.worlds import env_factory, task_source

    quiet_libraries()
    model = load_student(config.model, config.lora, seed=config.seed)
    if adapter is not None:
        model.load_adapter(str(adapter), adapter_name="probed")
        model.set_adapter("probed")
    if device_of(config.model).type == "cpu" and model.num_parameters() < TINY:
        torch.set_num_threads(1)
    make_env = env_factory(config, "held_out")
    env = task_source(config, "held_out")
    chat = Chat(load_tokenizer(config.model), env.schemas())

    def agent_with_room(max_context: int) -> TransformersAgent:
        return TransformersAgent(
            model,
            chat,
            temperature=config.rollout.temperature,
            max_context=max_context,
            max_episodes=config.rollout.max_concurrent,
            reproducible=config.rollout.reproducible,
        )

    tasks = held_out_tasks(env, config.eval.tasks)
    agent = agent_with_room(config.rollout.max_context)
    evaluation, groups = evaluate(agent, make_env, tasks, config)
    teacher = LocalTeacher(model, TeacherSection(kind="base"), config.rollout.temperature)

    def judged(contexts: analysis.Contexts) -> dict[str, Any]:
        scores = analysis.teacher_scores(teacher, groups, contexts, config, chat)
        return asdict(analysis.agreement(groups, scores))

    def effect(condition: tuple[analysis.Slots, analysis.Slots]) -> dict[str, Any]:
        contexts = analysis.peers_of_new_rollouts(groups, condition, config)
        return asdict(
            analysis.peer_effect(agent_with_room, chat, make_env, groups, contexts, config)
        )

    conditions = {} if alone else analysis.CONDITIONS
    return {
        "env": config.env.name,
        "level": env.level,
        "model": config.model.name,
        "adapter": str(adapter) if adapter else None,
        "seed": config.seed,
        "without_peers": evaluation.as_dict(),
        "with_peers": {name: effect(slots) for name, slots in conditions.items()},
        "teacher_auc": {"none": judged(analysis.without_peers(groups))}
        | {
            name: judged(analysis.peers_of_judged_rollouts(groups, slots, config))
            for name, slots in conditions.items()
        },
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
    columns = ("in the prompt", "tasks", "rollouts", "without", "with peers", "gain")
    for name in (*columns, "mixed", "teacher AUC"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, judged in report["teacher_auc"].items():
        effect = report["with_peers"].get(name)
        shown = ["", "", "", "", ""]
        if effect:
            shown = [str(effect["tasks"]), str(effect["rollouts"])]
            shown += [_text(effect[key]) for key in ("alone", "with_peers", "gain")]
        table.add_row(name, *shown, str(judged["tasks"]), _text(judged["auc"]))
    width = None if sys.stdout.isatty() else 130
    Console(width=width).print(table)


def _text(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    return f"{estimate['mean']:.2f} [{estimate['ci_low']:.2f}, {estimate['ci_high']:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
