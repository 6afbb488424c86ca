"""The science environment: questions of biology, chemistry and physics, with tools for them."""

from envs.science_qa.env import ScienceQAEnv

__all__ = ["ScienceQAEnv"]
