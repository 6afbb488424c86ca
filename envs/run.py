"""The command that trains an agent in an environment: `python -m envs.run --env code`."""

import argparse
import contextlib
import difflib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

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
        if "dry_run" in given:
            print("\n".join(plan(config)))
            return 0
        from mopd.experiment import preflight

        preflight(config)
        folder = open_folder(given, config)
    except ValueError as error:  # SettingsError, FolderError, DataError: what the user gave
        print("error:", *str(error).split(), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return train(config, folder, resume="resume" in given)


def whole_number(text: str) -> int:
    """An argument that counts something."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number") from None


SETTINGS = (  # flag, the setting that it sets, type, help
    ("--env", "env.name", str, "what the agent acts in (see --list)"),
    ("--algo", "algo", str, "how it learns (see --list)"),
    ("--model", "model.name", str, "`pocket`, which is embedded, a folder, or a name on the hub"),
    ("--steps", "steps", whole_number, "optimizer steps"),
    ("--tasks-per-step", "rollout.tasks_per_step", whole_number, "tasks in a batch"),
    ("--group-size", "rollout.group_size", whole_number, "rollouts of each task"),
    ("--seed", "seed", whole_number, "decides tasks, sampling and initial weights"),
)


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 2."""
        self.exit(2, f"error: {message}\n")


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The options that were given, and only those; a flag for a setting has the setting's name."""
    parser = Parser(
        prog="python -m envs.run",
        description="Train a language-model agent in a tool environment and evaluate it on "
        "held-out tasks before and after.",
        epilog="example: python -m envs.run --env code --algo mopd",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
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
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = re.findall(r"--[a-z-]+", parser.format_usage())
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
        cure = f"did you mean {near[0]}?" if near else "see --help"
        parser.error(f"unknown argument {unknown[0]!r}; {cure}")
    given = vars(options)
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
    from mopd.experiment import run_experiment
    from mopd.interrupt import Interrupt
    from mopd.live import open_view

    interrupt = Interrupt()
    with contextlib.suppress(KeyboardInterrupt), interrupt, open_view() as view:
        run_experiment(config, folder, view, interrupt=interrupt, resume=resume)
    if folder.summary_path.exists():
        return 0
    command = f"python -m envs.run --resume {shlex.quote(str(folder.path))}"
    print(f"stopped before the end; to continue: {command}")
    return 130


def listing() -> Iterator[str]:
    """What there is to choose from."""
    from importlib import import_module, resources

    from mopd.settings import choices

    yield "environments (--env)"
    for name in choices("env.name"):
        yield f"  {name:12} {(import_module(f'envs.{name}').__doc__ or '').splitlines()[0]}"
    yield "algorithms (--algo)"
    yield f"  {', '.join(choices('algo'))}"
    yield "configurations (--config)"
    for file in sorted(resources.files("configs").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            yield f"  {file.read_text(encoding='utf-8').splitlines()[0].removeprefix('# ')}"


def plan(config: "Config") -> Iterator[str]:
    """The resolved configuration with, as comments, what each part uses and how much memory."""
    from importlib.metadata import version

    from mopd.experiment import env_factory
    from mopd.settings import dump_toml
    from mopd.student import device_of, dtype_of, model_path

    env_factory(config, "train")().close()  # refuses a level or a data file
    env_factory(config, "held_out")().close()
    device = device_of(config.model)
    dtype = dtype_of(config.model, device)
    yield dump_toml(config)
    for part, used in {
        "environment": ("gymnasium", "langchain-core"),
        "model": ("transformers", "torch"),
        "adapter": ("peft",),
        "trainer": ("transformers", "accelerate"),
    }.items():
        yield f"# {part + ':':13}{', '.join(f'{name} {version(name)}' for name in used)}"
    yield f"# {'device:':13}{device}, {str(dtype).removeprefix('torch.')}"
    yield f"# {'engine:':13}transformers, {config.rollout.max_concurrent} episodes at once"
    yield f"# {'sandbox:':13}{config.sandbox.backend}"
    yield f"# {'memory:':13}{memory(config, model_path(config.model.name), dtype.itemsize)}"


def memory(config: "Config", model: str, itemsize: int) -> str:
    """Weights, adapter and KV cache of a dense model whose config.json is on this machine."""
    import json

    from huggingface_hub import try_to_load_from_cache

    local = Path(model) / "config.json"
    found = str(local) if local.is_file() else None
    if found is None and not Path(model).exists():
        with contextlib.suppress(ValueError):  # a path is no name of a repository
            cached = try_to_load_from_cache(model, "config.json")
            found = cached if isinstance(cached, str) else None
    if found is None:
        return f"unknown, since there is no config.json of {model} on this machine"
    shape = json.loads(Path(found).read_text(encoding="utf-8"))
    try:
        hidden, mlp = shape["hidden_size"], shape["intermediate_size"]
        layers, heads = shape["num_hidden_layers"], shape["num_attention_heads"]
        head_size = shape.get("head_dim") or hidden // heads
        queries, keys = heads * head_size, shape.get("num_key_value_heads", heads) * head_size
        embeddings = shape["vocab_size"] * hidden * (1 if shape.get("tie_word_embeddings") else 2)
    except KeyError as error:
        return f"unknown, since {found} says nothing of {error}"
    linear = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    linear += [(hidden, mlp), (hidden, mlp), (mlp, hidden)]
    weights = (layers * sum(a * b for a, b in linear) + embeddings) * itemsize
    # In float32: the weights, their gradient, two moments of Adam, and the EMA teacher's copy.
    copies = 5 if config.algo == "mopd" and config.teacher.kind == "ema" else 4
    adapter = layers * config.lora.r * sum(a + b for a, b in linear) * 4 * copies
    rollout = config.rollout
    episodes = min(rollout.max_concurrent, rollout.tasks_per_step * rollout.group_size)
    cache = 2 * layers * keys * itemsize * episodes * rollout.max_context
    sizes = {"weights": weights, "adapter": adapter, "KV cache at full length": cache}
    text = " + ".join(f"{name} {size / 2**30:.2f}" for name, size in sizes.items())
    return f"{text} = {sum(sizes.values()) / 2**30:.2f} GiB; activations and the program on top"


if __name__ == "__main__":
    sys.exit(main())
