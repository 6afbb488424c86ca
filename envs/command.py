"""How the commands read their arguments: only what was given, and a mistake is told in one line."""

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Leaves out what was not given, and ends the program with exit code 2 for bad input."""

    def __init__(self, **texts: Any) -> None:
        super().__init__(argument_default=argparse.SUPPRESS, allow_abbrev=False, **texts)

    def error(self, message: str) -> NoReturn:
        """End the program with exit code 2."""
        self.exit(2, f"error: {message}\n")

    def given(self, argv: Sequence[str] | None) -> dict[str, Any]:
        """The options that were given; an unknown one is refused with a near name."""
        options, unknown = self.parse_known_args(argv)
        if unknown:
            flags = re.findall(r"--[a-z-]+", self.format_usage())
            near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, n=1)
            cure = f"did you mean {near[0]}?" if near else "see --help"
            self.error(f"unknown argument {unknown[0]!r}; {cure}")
        return vars(options)


def whole_number(text: str) -> int:
    """An argument that counts something; how small it may be, its setting says."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number") from None
