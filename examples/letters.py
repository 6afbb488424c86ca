"""Count letters: a complete environment."""

from langchain_core.tools import tool

from envs.base import ToolEnv
from envs.grading.number import grade_number
from envs.types import Task


@tool
def spell(word: str) -> str:
    """Spell a word, letter by letter."""
    return " ".join(word)


class LettersEnv(ToolEnv):
    """How often a letter stands in a word."""

    system_prompt = "Use spell, count, and give the number in \\boxed{}."
    levels, default_level = range(1, 4), 1

    def make_tools(self):  # what the agent can call: any LangChain tools
        return (spell,)

    def generate_task(self, rng):  # the next of an endless supply; the splits share no word
        letters = "abcd" if self.split == "train" else "wxyz"
        word = "".join(rng.choices(letters, k=4 * self.level))
        return self.read_row({"word": word, "letter": rng.choice(letters)})

    def read_row(self, row):  # a row of a data file, such as {"word": "banana", "letter": "a"}
        word, letter = row["word"], row["letter"]
        prompt = f"How many {letter} are in {word}?"
        return Task(f"letters/{word}/{letter}", prompt, answer=str(word.count(letter)))

    def grade(self, task, answer):  # the verdict on the final message: reward, success, feedback
        return grade_number(answer.content, task.answer)
