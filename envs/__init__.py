"""What an agent acts in: multi-turn tool environments, registered with Gymnasium on import."""

import gymnasium

NAMES = ("calculator", "code")

for _name, _class in (("calculator", "CalculatorEnv"), ("code", "CodeEnv")):
    gymnasium.register(
        id=f"mopd/{_name}-v0",
        entry_point=f"envs.{_name}:{_class}",
        # The wrappers check for numpy observations and warn about messages.
        disable_env_checker=True,
    )
