"""The training command up to the point where training starts."""

import json
import os
import resource
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from envs import NAMES
from envs.run import configure, listing, main, parse
from mopd.config import Config
from mopd.dry_run import memory
from mopd.interrupt import Interrupt
from mopd.run_folder import RunFolder
from mopd.settings import choices, dump_toml

ROOT = Path(__file__).parent.parent


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "envs.run", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['run', '--help']\n"
        "try: runpy.run_module('envs.run', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print([m for m in ('torch', 'pydantic', 'rich', 'langchain_core') if m in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, since other tests may hold the machine's cores.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert "--tasks-per-step N" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_list_names_what_there_is():
    text = "\n".join(listing())
    assert all(f"\n  {name} " in text for name in NAMES)
    assert f"\n  {', '.join(choices('algo'))}\n" in text
    assert "--config configs/qwen3-4b-code.toml" in text


def test_a_dry_run_prints_settings_that_can_be_used_again_and_writes_nothing(tmp_path):
    done = command(
        "--env", "calculator", "--seed", "3", "--set", "model.device=cpu", "--dry-run", cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    tree = tomllib.loads(done.stdout)
    assert (tree["env"]["name"], tree["seed"], tree["model"]["device"]) == ("calculator", 3, "cpu")
    for part in ("environment", "model", "adapter", "device", "engine", "sandbox", "memory"):
        assert f"\n# {part}: " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_flags_are_settings_and_assignments_win():
    given = parse(["--tasks-per-step", "2", "--group-size", "3", "--seed", "0", "--set", "seed=5"])
    config = configure(given)
    assert (config.rollout.tasks_per_step, config.rollout.group_size, config.seed) == (2, 3, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--env coed", "there is no environment 'coed'; expected calculator, code"),
        ("--dry-run --set env.options.revel=no", "CodeEnv has no option 'revel'; did you mean"),
        ("--algo mpod", "algo is 'mpod'; expected 'mopd' or 'grpo'; did you mean 'mopd'?"),
        ("--stpes 3", "unknown argument '--stpes'; did you mean --steps?"),
        ("--steps few", "argument --steps: got 'few'; expected a whole number"),
        ("--steps 0", "steps is 0; expected greater than or equal to 1"),
        ("--resume . --seed 0", "--resume continues exactly what the folder holds; give it no"),
        ("--resume .", "--resume got ., which holds no config.toml; expected the folder of a run"),
        ("--config no.toml", "no.toml: No such file or directory; expected a TOML file"),
        ("--dry-run --set env.level=99", "env.level=99: "),
        ("--set lr=1", "unknown setting 'lr'; did you mean 'optim.lr'?"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, message, refuses):
    refuses(main, arguments, message)


def test_the_process_ends_with_code_2(tmp_path):
    done = command("--set", "rollout.group_sise=3", cwd=tmp_path)
    message = "unknown setting 'rollout.group_sise'; did you mean 'rollout.group_size'?"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_resuming_takes_the_configuration_of_the_folder(tmp_path):
    config = Config(seed=9, steps=3)
    RunFolder.create(tmp_path / "run", config)
    assert configure(parse(["--resume", str(tmp_path / "run")])) == config


def test_memory_is_counted_from_the_models_own_shape(tmp_path):
    # Qwen3-4B: 4.02e9 weights (its model card), 2 x 36 x 8 x 128 cache entries a token.
    shape = {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    config = configure(
        parse(["--set", "rollout.max_context=16384", "--set", "rollout.max_concurrent=16"])
    )
    text = memory(config, str(tmp_path), itemsize=2)
    assert text.startswith(
        "weights 7.49 + adapter 0.62 + KV cache at full length 36.00 = 44.11 GiB"
    )
    (tmp_path / "config.json").write_text("{}")
    assert "unknown" in memory(config, str(tmp_path), itemsize=2)
    assert "unknown" in memory(config, "no/such-model", itemsize=2)


def test_the_first_interrupt_is_a_request_and_the_second_stops(capfd):
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "finishing this step" in capfd.readouterr().err


def test_a_folder_that_cannot_be_read_back_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "config.toml").write_text(dump_toml(Config()).replace("steps", "stepz"))
    assert main(["--resume", str(tmp_path)]) == 2
    assert "unknown setting 'stepz'; did you mean 'steps'?" in capsys.readouterr().err
