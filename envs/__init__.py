"""What an agent acts in: multi-turn tool environments, registered with Gymnasium on import."""

from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from envs.base import ToolEnv

_CLASSES = {"calculator": "CalculatorEnv", "code": "CodeEnv"}
NAMES = tuple(_CLASSES)

for _name, _class in _CLASSES.items():
    gymnasium.register(
        id=f"mopd/{_name}-v0",
        entry_point=f"envs.{_name}:{_class}",
        # The wrappers check for numpy observations and warn about messages.
        disable_env_checker=True,
    )


def make(name: str, **options: Any) -> "ToolEnv":
    """The environment `name` of `NAMES`, without Gymnasium's wrappers."""
    # Gymnasium's registry knows no more than Env.
    env: ToolEnv = gymnasium.make(f"mopd/{name}-v0", **options).unwrapped  # type: ignore[assignment]
    return env
