"""The embedded student: a tiny model with its tokenizer, chat template and recipe."""

from pathlib import Path

PATH = Path(__file__).parent
TAUGHT = ("calculator", "code")  # the environments whose formats the recipe shows it
