"""The command that trains an agent in an environment: `python -m envs.run --env code`."""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.command import Parser, whole_number

if TYPE_CHECKING:
    from mopd.config import Config
    from mopd.run_folder import RunFolder

# Whatever else is needed is imported after parsing: --help and a mistyped flag cost no time.


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, configure, run; the exit code is 2 for bad input and 130 after Ctrl-C."""
    given = parse(argv)
    try:
        if "list" in given:
            print("\n".join(listing()))
            return 0
        config = configure(given)
        from mopd.experiment import preflight

        preflight(config)
        if "dry_run" in given:
            from mopd.dry_run import plan

            print("\n".join(plan(config)))
            return 0
        folder = open_folder(given, config)
    except ValueError as error:  # SettingsError, FolderError, DataError: what the user gave
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if folder.summary_path.exists():
        print(f"{folder.path} is finished; its result is in {folder.summary_path}")
        return 0
    return train(config, folder, resume="resume" in given)


SETTINGS = (  # flag, the setting that it sets, type, help
    ("--env", "env.name", str, "what the agent acts in (see --list)"),
    ("--algo", "algo", str, "how it learns (see --list)"),
    ("--model", "model.name", str, "`pocket`, which is embedded, a folder, or a name on the hub"),
    ("--steps", "steps", whole_number, "optimizer steps"),
    ("--tasks-per-step", "rollout.tasks_per_step", whole_number, "tasks in a batch"),
    ("--group-size", "rollout.group_size", whole_number, "rollouts of each task"),
    ("--seed", "seed", whole_number, "decides tasks, sampling and initial weights"),
)


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The options that were given, and only those; a flag for a setting has the setting's name."""
    parser = Parser(
        prog="python -m envs.run",
        description="Train a language-model agent in a tool environment and evaluate it on "
        "held-out tasks before and after.",
        epilog="example: python -m envs.run --env code --algo mopd",
    )
    for flag, setting, kind, text in SETTINGS:
        metavar = "N" if kind is whole_number else "NAME"
        parser.add_argument(flag, dest=setting, type=kind, metavar=metavar, help=text)
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings")
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="any setting: --set optim.lr=1e-4"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (runs/...)")
    parser.add_argument(
        "--resume", type=Path, metavar="DIR", help="continue a run from its folder; stands alone"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show settings, backends and memory; write nothing"
    )
    parser.add_argument(
        "--list", action="store_true", help="show environments, algorithms and configurations"
    )
    given = parser.given(argv)
    if "resume" in given and len(given) > 1:
        parser.error("--resume continues exactly what the folder holds; give it no other flag")
    return given


def configure(given: dict[str, Any]) -> "Config":
    """The configuration that the options ask for."""
    from mopd.run_folder import RunFolder
    from mopd.settings import load_settings

    if "resume" in given:
        return RunFolder.open(given["resume"]).config()
    return load_settings(
        file=given.get("config"),
        flags={setting: given.get(setting) for _, setting, _, _ in SETTINGS},
        assignments=given.get("set", ()),
    )


def open_folder(given: dict[str, Any], config: "Config") -> "RunFolder":
    """The folder to resume, or a new one."""
    from datetime import datetime

    from mopd.run_folder import RunFolder, default_path

    if "resume" in given:
        return RunFolder.open(given["resume"])
    return RunFolder.create(given.get("out") or default_path(config, datetime.now()), config)


def train(config: "Config", folder: "RunFolder", *, resume: bool) -> int:
    """Run the experiment; one that ends without a summary was interrupted."""
    from agents.base import EngineError
    from mopd.experiment import run_experiment
    from mopd.interrupt import Interrupt
    from mopd.live import open_view
    from mopd.sync import WrongWeightsError

    interrupt = Interrupt()
    try:
        with contextlib.suppress(KeyboardInterrupt), interrupt, open_view() as view:
            run_experiment(config, folder, view, interrupt=interrupt, resume=resume)
    except (EngineError, WrongWeightsError) as error:
        print("error:", *str(error).split(), file=sys.stderr)
        return 1
    if folder.summary_path.exists():
        return 0
    command = f"python -m envs.run --resume {shlex.quote(str(folder.path))}"
    print(f"stopped before the end; to continue: {command}")
    return 130


def listing() -> Iterator[str]:
    """What there is to choose from."""
    from importlib import resources

    from envs import env_class
    from mopd.settings import choices

    yield "environments (--env), or package.module:Class"
    for name in choices("env.name"):
        kind = env_class(name)
        yield f"  {name:12} {(kind.__doc__ or '').splitlines()[0]}"
        if kind.formats:
            yield f"  {'':12} data: {', '.join(kind.formats)}"
    yield "algorithms (--algo)"
    yield f"  {', '.join(choices('algo'))}"
    yield "configurations (--config)"
    for file in sorted(resources.files("configs").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            yield f"  {file.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}"


if __name__ == "__main__":
    sys.exit(main())
