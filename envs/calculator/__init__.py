"""The calculator environment: word problems and expressions, solved with `calculate`."""

from envs.calculator.env import CalculatorEnv

__all__ = ["CalculatorEnv"]
