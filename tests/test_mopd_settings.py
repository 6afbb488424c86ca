"""Where a setting comes from, and what a person reads who got one wrong."""

import re
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd.config import Config
from mopd.settings import SettingsError, choices, dump_toml, load_resolved, load_settings

CONFIGS = sorted(Path(str(resources.files("configs"))).glob("*.toml"))


def load(*assignments: str, file: Path | None = None, **flags: Any) -> Config:
    return load_settings(file=file, flags=flags, assignments=assignments)


def refusal(*assignments: str, file: Path | None = None, **flags: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(*assignments, file=file, **flags)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_later_sources_win_one_setting_at_a_time(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('steps = 11\nseed = 11\n[env]\nname = "calculator"\n[optim]\nlr = 11.0\n')
    assert load(file=file).steps == 11
    config = load("optim.lr=13", file=file, **{"seed": 12, "optim.lr": 12.0, "steps": None})
    assert (config.steps, config.seed, config.optim.lr) == (11, 12, 13.0)
    assert config.env.name == "calculator"
    assert config.rollout == Config().rollout


def test_the_shipped_file_of_the_environment_lies_under_the_given_ones(tmp_path, monkeypatch):
    (tmp_path / "calculator.toml").write_text("steps = 3\nseed = 3\n")
    (tmp_path / "code.toml").write_text("steps = 4\n")
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    assert load("env.name=calculator", "seed=5", **{"env.name": "code"}).steps == 3
    assert load("env.name=calculator", "seed=5").seed == 5
    assert load().steps == 4


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_parses_and_survives_its_own_dump(path, tmp_path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# python -m envs\.run --(env|config|model) \S+", first)
    config = load(file=path)
    dumped = tmp_path / "config.toml"
    dumped.write_text(dump_toml(config), encoding="utf-8")
    assert load_resolved(dumped) == config


@pytest.mark.parametrize(
    ("text", "section", "name", "value"),
    [
        ("optim.lr=1e-5", "optim", "lr", 1e-5),
        ("loss.tail = false", "loss", "tail", False),
        ("loss.top_k=none", "loss", "top_k", None),
        ("loss.importance_clip=null", "loss", "importance_clip", None),
        ("peers.successes=all", "peers", "successes", "all"),
        ("model.name=Qwen/Qwen3-4B", "model", "name", "Qwen/Qwen3-4B"),
        ("prompt.closing=none", "prompt", "closing", "none"),
        ("prompt.closing=a = b", "prompt", "closing", "a = b"),
        (
            'lora.target_modules=["q_proj", "v_proj"]',
            "lora",
            "target_modules",
            ("q_proj", "v_proj"),
        ),
        ("env={level = 3}", "env", "level", 3),
    ],
)
def test_an_assignment_is_read_as_toml_and_else_as_text(text, section, name, value):
    assert getattr(getattr(load(text), section), name) == value


def test_a_value_cannot_smuggle_in_another_setting():
    assert refusal("steps=1\nseed = 7") == "steps is '1\\nseed = 7'; expected a valid integer"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "rollout.group_sise=3",
            "unknown setting 'rollout.group_sise'; did you mean 'rollout.group_size'?",
        ),
        ("lr=1e-4", "unknown setting 'lr'; did you mean 'optim.lr'?"),
        ("name=x", "unknown setting 'name'; did you mean 'env.name' or 'model.name'?"),
        ("steps.x=1", "unknown setting 'steps.x'; did you mean 'steps'?"),
        ("algo=mpod", "algo is 'mpod'; expected 'mopd' or 'grpo'; did you mean 'mopd'?"),
        ("steps=true", "steps is True; expected a valid integer"),
        ("optim.lr=fast", "optim.lr is 'fast'; expected a valid number"),
        ("rollout.group_size=0", "rollout.group_size is 0; expected greater than or equal to 1"),
        ("peers.failures=some", "peers.failures is 'some'; expected a valid integer or 'all'"),
        ("lora.target_modules=[1]", "lora.target_modules is [1]; expected a valid string"),
        ("steps=none", "steps is 'none'; expected a valid integer"),
        ("steps", "--set got 'steps'; expected KEY=VALUE, such as optim.lr=1e-4"),
        ("eval=5", "'eval' is a section; set one of eval.tasks, eval.samples, eval.every"),
    ],
)
def test_a_refused_setting_is_told_in_one_line_with_the_cure(text, message):
    assert refusal(text) == message


def test_a_name_near_an_environments_is_suggested():
    told = refusal("env.name=coed")
    assert told.startswith("there is no environment 'coed'; expected calculator, code, search")
    assert told.endswith("; did you mean 'code'?")


def test_options_of_an_environment_go_through_a_file_and_back(tmp_path):
    config = load("env.options.reveal=nothing", "env.options.k=3", 'env.options.tools=["a", "b"]')
    assert config.env.options == {"reveal": "nothing", "k": 3, "tools": ("a", "b")}
    path = tmp_path / "config.toml"
    path.write_text(dump_toml(config), encoding="utf-8")
    assert load_resolved(path) == config


def test_without_a_near_name_the_names_that_there_are_are_listed():
    assert "there are algo, steps, seed, env, " in refusal("zzz=1")
    assert "there are optim.lr, optim.warmup_steps" in refusal("optim.zzz=1")


def test_settings_that_contradict_each_other_are_refused_in_the_configurations_own_words():
    assert refusal("env.data=rows.jsonl").startswith("env.data and env.eval_data go together")
    assert "no failure would ever be shown" in refusal("peers.successes=0")
    load("peers.successes=0", "peers.failure_shown=always")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"steps = 1\nseed == 2\n", r"broken TOML: .*line 2"),
        (b"steps = 1\n[rollout]\ngroup_sise = 2\n", r"unknown setting 'rollout.group_sise'; did"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    file = tmp_path / "bad.toml"
    if content is not None:
        file.write_bytes(content)
    text = refusal(file=file)
    assert text.startswith(f"{file}: ")
    assert re.search(message, text)


def test_resolving_a_runs_own_file_reads_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "files", lambda package: pytest.fail("read a shipped file"))
    path = tmp_path / "config.toml"
    path.write_text("steps = 7\n")
    assert load_resolved(path) == Config(steps=7)


@given(
    name=st.text(st.characters(codec="utf-8")),
    closing=st.text(st.characters(codec="utf-8")),
    lr=st.floats(min_value=0, exclude_min=True, allow_infinity=True),
    threshold=st.floats(allow_nan=False),
    top_k=st.none() | st.integers(1, 10**6),
    modules=st.text(st.characters(codec="utf-8")) | st.lists(st.text("ab\"\\'\n\x7f"), max_size=3),
)
def test_dumped_settings_come_back_exactly(
    tmp_path_factory, name, closing, lr, threshold, top_k, modules
):
    config = Config.model_validate(
        {
            "model": {"name": name},
            "prompt": {"closing": closing},
            "optim": {"lr": lr},
            "peers": {"success_threshold": threshold},
            "loss": {"top_k": top_k},
            "lora": {"target_modules": modules},
        }
    )
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(dump_toml(config), encoding="utf-8")
    assert load_resolved(path) == config


def test_choices_are_the_names_that_a_setting_can_take():
    assert "mopd" in choices("algo")
    assert "code" in choices("env.name")
    assert choices("steps") == ()


def test_reading_settings_needs_no_torch():
    code = "import sys, mopd.settings, mopd.run_folder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_another_model_than_the_pocket_student_starts_from_settings_of_its_own():
    chosen = load_settings(
        file=None, flags={"model.name": "Qwen/Qwen3-4B"}, assignments=["optim.lr=5e-5"]
    )
    pocket = load_settings(file=None, flags={}, assignments=[])
    assert chosen.rollout.max_new_tokens > 10 * pocket.rollout.max_new_tokens
    assert chosen.optim.lr == 5e-5


@pytest.mark.parametrize(
    ("algo", "assignment"),
    [
        ("grpo", "teacher.kind=base"),
        ("grpo", "loss.top_k=5"),
        ("mopd", "grpo.clip=0.1"),
        ("mopd", "rollout.group_size=1"),
        ("mopd", "prompt.first_success=hello"),
    ],
)
def test_a_setting_that_cannot_have_its_effect_is_refused_in_one_line(algo, assignment):
    with pytest.raises(SettingsError) as refused:
        load_settings(file=None, flags={"algo": algo}, assignments=[assignment])
    assert "\n" not in str(refused.value)
