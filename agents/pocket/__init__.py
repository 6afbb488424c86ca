"""The embedded student: a tiny model with its tokenizer, chat template and recipe."""

from pathlib import Path

PATH = Path(__file__).parent
# The environments whose formats the recipe shows it.
TAUGHT = ("calculator", "code", "search", "science_qa", "tool_use")
