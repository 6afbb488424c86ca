"""The tool use environment: errands in a small office, and calls of documented APIs."""

from envs.tool_use.env import ToolUseEnv

__all__ = ["ToolUseEnv"]
