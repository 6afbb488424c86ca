"""The code environment: write a function, try it with `run_python`, pass hidden tests."""

from envs.code.env import CodeEnv

__all__ = ["CodeEnv"]
