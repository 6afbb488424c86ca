"""The words of errands: what records are called, what is asked for and how it is said."""

from dataclasses import dataclass

FIRST = ("Ann", "Bob", "Cara", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivan", "Jill")
LAST = ("Lee", "Roy", "Kim", "Fox", "Day", "Cole")
TOPICS = ("plan", "budget", "review", "report", "trip", "party", "lunch", "survey")
FOLDERS = ("tax", "home", "work", "old", "team", "bin")
ITEMS = ("pens", "cups", "lamps", "chairs", "desks", "bags")


@dataclass(frozen=True, slots=True)
class Verb:
    """A way to ask for one call of a tool on a record of a kind.

    `plain` says what it means; each of `tricky` reads at first like another verb. `argument` is
    the tool's second argument, if it has one.
    """

    tool: str
    kind: str
    argument: str
    plain: tuple[str, ...]
    tricky: tuple[str, ...]


VERBS = (
    Verb(
        "set_phone",
        "contact",
        "phone",
        (
            "Set the phone of {target} to {value}.",
            "Change the phone of {target} to {value}.",
            "Store {value} as the phone of {target}.",
        ),
        ("From now on, {value} rings at {target}.", "Move {target} to the phone {value}."),
    ),
    Verb(
        "move",
        "event",
        "to",
        ("Move {target} to {value}.", "Shift {target} to {value}.", "Hold {target} on {value}."),
        ("Put {target} off until {value}.", "Set {target} for {value}."),
    ),
    Verb(
        "move",
        "file",
        "to",
        (
            "Move {target} to {value}.",
            "Put {target} into {value}.",
            "Keep {target} in {value}.",
        ),
        ("Drop {target} in {value}.", "Clear {target} away into {value}."),
    ),
    Verb(
        "delete",
        "event",
        "",
        ("Delete {target}.", "Cancel {target}.", "Remove {target}."),
        ("Call {target} off.", "Put an end to {target}."),
    ),
    Verb(
        "delete",
        "file",
        "",
        ("Delete {target}.", "Erase {target}.", "Remove {target}."),
        ("Move {target} out of existence.", "Clear {target} away for good."),
    ),
    Verb(
        "archive",
        "file",
        "",
        ("Archive {target}.", "Keep {target} in the archive.", "Send {target} to the archive."),
        ("Put {target} aside.", "Retire {target}."),
    ),
    Verb(
        "buy",
        "item",
        "count",
        ("Buy {value} of {target}.", "Order {value} of {target}.", "Get {value} of {target}."),
        ("Leave {rest} of {target} in stock.", "Clear {target} away but for {rest}."),
    ),
)
# What is asked of a record of a kind: the field, and how.
QUESTIONS = {
    "contact": ("phone", ("What is the phone of {target}?", "Which phone has {target}?")),
    "event": ("day", ("On which day is {target}?", "When is {target}?")),
    "file": ("folder", ("In which folder is {target}?", "Where is {target}?")),
    "item": ("stock", ("How many of {target} are in stock?", "What is the stock of {target}?")),
}
# Relations to a contact: the kind of record that has one, the field, and how it is said.
RELATIONS = {
    "contact": ("boss", "the boss of {}"),
    "event": ("host", "the host of {}"),
    "file": ("owner", "the owner of {}"),
}
# The other way round, from a contact.
INVERSE = {"event": "the event that {} hosts", "file": "the file that {} owns"}
# Both values have to be looked up before one is overwritten.
SWAPS = ("Swap the {field}s of {one} and {other}.", "Let {one} and {other} trade {field}s.")
