"""The search environment: questions answered from documents with `search` and `open`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.search.env import SearchEnv

__all__ = ["SearchEnv"]


def __getattr__(name: str) -> Any:
    """`SearchEnv` when it is first used: the server's command needs no environment."""
    if name == "SearchEnv":
        from envs.search.env import SearchEnv

        return SearchEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
