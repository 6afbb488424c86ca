"""The environments of a run, and where their code runs, from its configuration."""

from collections.abc import Callable

import envs
from envs.base import EnvLimits, Split, ToolEnv
from envs.registry import check_options
from mopd.config import Config
from sandboxes.base import BackendOptions, Limits, Sandbox
from sandboxes.open import open_sandbox

# Nothing here needs torch: a person who plays an environment waits for none.


def task_source(config: Config, split: Split) -> ToolEnv:
    """The environment that draws the tasks of a split, with its data file where there is one."""
    data = config.env.data if split == "train" else config.env.eval_data
    return _make_env(config, split, data=data)


def env_factory(config: Config, split: Split) -> Callable[[], ToolEnv]:
    """Makes the environments of episodes: they are given their task.

    They read no file, but for those whose tools need what it holds.
    """
    if envs.env_class(config.env.name).needs_data:
        return lambda: task_source(config, split)
    return lambda: _make_env(config, split, data=None)


def _make_env(config: Config, split: Split, *, data: str | None) -> ToolEnv:
    section = config.env
    limits = EnvLimits(
        max_turns=section.max_turns,
        max_tool_calls=section.max_tool_calls,
        max_observation_chars=section.max_observation_chars,
        max_episode_s=section.max_episode_s,
    )
    check_options(envs.env_class(section.name), section.options)
    return envs.make(
        section.name,
        split=split,
        level=section.level,
        data=data,
        limits=limits,
        sandbox=lambda: sandbox_of(config),
        **section.options,
    )


def sandbox_of(config: Config) -> Sandbox:
    """Where code runs under these settings; many environments share its processes.

    Raises:
        SandboxError: it does not work on this machine, with what would cure it.
    """
    section = config.sandbox
    return open_sandbox(
        section.backend,
        Limits(
            wall_s=section.wall_s,
            cpu_s=section.wall_s,
            memory_bytes=section.memory_mb * 2**20,
        ),
        options=BackendOptions(
            allow_unsafe=section.allow_unsafe,
            image=section.image,
            runtime=section.runtime,
            max_sessions=section.max_sessions,
        ),
    )
