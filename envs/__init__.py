"""What an agent acts in: multi-turn tool environments, ours registered with Gymnasium on import."""

from typing import TYPE_CHECKING, Any

import gymnasium

from envs.registry import BUILT_IN, EnvNameError, env_class, names

if TYPE_CHECKING:
    from envs.base import ToolEnv

__all__ = ["NAMES", "EnvNameError", "env_class", "make", "names"]

NAMES = tuple(BUILT_IN)

for _name, _address in BUILT_IN.items():
    gymnasium.register(
        id=f"mopd/{_name}-v0",
        entry_point=_address,
        # The wrappers check for numpy observations and warn about messages.
        disable_env_checker=True,
    )


def make(name: str, **options: Any) -> "ToolEnv":
    """The environment of one of `names()`, or of an address `package.module:Class`.

    Raises:
        EnvNameError: there is no such environment.
    """
    return env_class(name)(**options)
