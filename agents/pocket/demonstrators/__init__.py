"""Noisy demonstrators, one for each environment that the recipe teaches."""

from agents.pocket.demonstrators.base import Demonstrator, Reading
from agents.pocket.demonstrators.calculator import CalculatorDemonstrator
from agents.pocket.demonstrators.code import CodeDemonstrator
from agents.pocket.demonstrators.science_qa import ScienceQADemonstrator
from agents.pocket.demonstrators.search import SearchDemonstrator
from agents.pocket.demonstrators.tool_use import ToolUseDemonstrator

DEMONSTRATORS: tuple[type[Demonstrator], ...] = (
    CalculatorDemonstrator,
    CodeDemonstrator,
    SearchDemonstrator,
    ScienceQADemonstrator,
    ToolUseDemonstrator,
)

__all__ = ["DEMONSTRATORS", "Demonstrator", "Reading"]
