"""The tools of a task, generated from a declaration: their names, arguments and descriptions."""

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

from envs.tool_use.declaration import Action, Choice, Domain, Kind, Ref
from envs.tool_use.worlds import DOMAINS, KINDS

_Words = Sequence[str]
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_VERBS = {"find": ("find", "search", "look up"), "show": ("show", "get", "read")}
_TELLS = {
    "find": (
        "List each {noun} that has all words of a text; ids of other records count, too.",
        "Search by name, by value or by the id of another record, for each {noun}.",
    ),
    "show": ("Show all fields of a {noun}.", "Tell everything that is known of a {noun}."),
}
_TWINS = ("every", "check")


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a tool; its role is what it means: text, id, ids, value or proof."""

    name: str
    role: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as data; `does` and `form` are what `Store.act` takes."""

    name: str
    description: str
    does: str
    form: str
    arguments: tuple[Argument, ...]

    @property
    def action(self) -> Action:
        """The action of a tool that neither finds nor shows."""
        domain, _, name = self.does.partition("/")
        return DOMAINS[domain].action[name]

    @property
    def choices(self) -> tuple[str, ...]:
        """What its value is one of, if it is."""
        if not any(argument.role == "value" for argument in self.arguments):
            return ()
        field = KINDS[self.action.kind].field(self.action.field)
        return field.values if isinstance(field, Choice) else ()


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools of a task, and their words for kinds (`lamp`) and fields (`lamp.colour`)."""

    tools: tuple[Tool, ...]
    said: Mapping[str, str]

    @property
    def names(self) -> dict[str, str]:
        """Names by what the tools do, without those that only look alike."""
        return {tool.does: tool.name for tool in self.tools if tool.form not in _TWINS}

    def call(self, does: str, roles: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Name and arguments of the call that does something."""
        there = {tool.does: tool for tool in self.tools if tool.form not in _TWINS}
        tool = there.get(does) or there[does.partition(" ")[0]]
        values = {"ids": [roles.get("id")]} | dict(roles)
        return tool.name, {argument.name: values[argument.role] for argument in tool.arguments}

    def data(self) -> dict[str, Any]:
        """As a payload holds it."""
        tools = tuple(
            (t.name, t.description, t.does, t.form, tuple(_row(each) for each in t.arguments))
            for t in self.tools
        )
        return {"tools": tools, "said": dict(self.said)}


def read_toolbox(payload: Mapping[str, Any]) -> Toolbox:
    """The toolbox of a payload, also of one that was stored as JSON."""
    tools = tuple(
        Tool(name, description, does, form, tuple(Argument(*each) for each in arguments))
        for name, description, does, form, arguments in payload["tools"]
    )
    return Toolbox(tools, payload["said"])


def _row(argument: Argument) -> tuple[str, str, str]:
    return argument.name, argument.role, argument.description


def _snake(words: _Words) -> str:
    return "_".join(words)


def _camel(words: _Words) -> str:
    return words[0] + "".join(word.title() for word in words[1:])


def _pascal(words: _Words) -> str:
    return "".join(word.title() for word in words)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How tools are named: which words in which order, and how they are joined."""

    order: str  # of v(erb), n(oun), f(ield) and d(omain)
    join: Callable[[_Words], str]


SCHEMES = (
    Scheme("vnf", _snake),
    Scheme("vf", _snake),
    Scheme("nfv", _snake),
    Scheme("vnf", _camel),
)
HELD_OUT_SCHEMES = (Scheme("nvf", _pascal), Scheme("dvnf", _snake))


@dataclass(frozen=True, slots=True)
class Style:
    """How the tools of one task are made."""

    scheme: Scheme
    one_lookup: bool  # one tool finds, and one shows, records of all kinds
    lists: bool  # what may be done to several records takes a list of ids
    wordy: bool  # arguments are described, and what has to be so first


def draw_style(rng: random.Random, held: bool) -> Style:
    """A style of the train or the held-out tasks: the latter name tools in unseen ways, too."""
    scheme = rng.choice(HELD_OUT_SCHEMES if held and rng.random() < 0.5 else SCHEMES)
    return Style(scheme, rng.random() < 0.6, rng.random() < 0.5, rng.random() < 0.5)


def draw_toolbox(
    rng: random.Random,
    style: Style,
    domain: Domain,
    foreign: tuple[Domain, Kind],
    needed: Iterable[str],
    near: int,
) -> Toolbox:
    """The tools that a task needs, and others.

    Args:
        rng: draws words and tools.
        style: how the tools are named and described.
        domain: of the task.
        foreign: another domain, and the one of its kinds that the world has, too.
        needed: what has to be done: `find lamp`, `show lamp`, `home/colour`.
        near: how many other actions of the domain there are beside.
    """
    maker = _Maker(rng, style, [*domain.kinds, foreign[1]])
    needed = list(dict.fromkeys(needed))
    actions = [does for does in needed if "/" in does]
    for does in _lookups(rng, style, domain, needed):
        maker.look(does)
    others = [a for a in domain.action if f"{domain.name}/{a}" not in actions]
    for does in [*actions, *_near(rng, domain, others, actions, near)]:
        action = domain.action[does.partition("/")[2]]
        maker.act(domain, action, "many" if style.lists and action.many else "one")
    alien = [a for a in foreign[0].actions if a.kind == foreign[1].name and not a.needs]
    maker.act(foreign[0], rng.choice(alien), "one")
    twins = [domain.action[does.partition("/")[2]] for does in actions[-1:]]
    for action in twins:
        forms = _TWINS if action.how == "set" and not action.proof else _TWINS[1:]
        maker.act(domain, action, rng.choice(forms))
    rng.shuffle(maker.tools)
    return Toolbox(tuple(maker.tools), maker.said)


def _lookups(
    rng: random.Random, style: Style, domain: Domain, needed: Sequence[str]
) -> tuple[str, ...]:
    """What finds and shows: all kinds at once, or those that are needed and another one."""
    if style.one_lookup:
        return ("find", "show")
    kinds = [does for does in needed if "/" not in does]
    other = f"{rng.choice(('find', 'show'))} {rng.choice(domain.kinds).name}"
    return tuple(dict.fromkeys((*kinds, other)))


def _near(
    rng: random.Random, domain: Domain, names: Sequence[str], done: Sequence[str], count: int
) -> list[str]:
    """Actions that are not needed, rather those on the kinds of the needed ones."""
    kinds = {domain.action[does.partition("/")[2]].kind for does in done}
    ranked = sorted(names, key=lambda name: rng.random() + (domain.action[name].kind not in kinds))
    return [f"{domain.name}/{name}" for name in ranked[:count]]


class _Maker:
    """Makes the tools of one task, each with a name of its own."""

    def __init__(self, rng: random.Random, style: Style, kinds: Iterable[Kind]) -> None:
        self._rng = rng
        self._style = style
        self.tools: list[Tool] = []
        self.said: dict[str, str] = {}
        for kind in kinds:
            self.said[kind.name] = rng.choice(kind.nouns)
            for field in kind.fields:
                self.said[f"{kind.name}.{field.names[0]}"] = rng.choice(field.names)

    def look(self, does: str) -> None:
        """A tool that finds or shows."""
        verb, _, kind = does.partition(" ")
        noun = self.said.get(kind, "record")
        name = self._name(_VERBS[verb], noun, "", "")
        described = _with_articles(self._rng.choice(_TELLS[verb]).format(noun=noun))
        if verb == "find":
            argument = Argument(self._rng.choice(("text", "query", "words")), "text")
        else:
            argument = self._target(noun, "id")
        self.tools.append(Tool(name, described, does, "one", (argument,)))

    def act(self, domain: Domain, action: Action, form: str) -> None:
        """A tool that does something, to one record or in another form."""
        noun = self.said[action.kind]
        field = self.said.get(f"{action.kind}.{action.field}", "")
        verbs = [f"check {verb}" for verb in action.verbs] if form == "check" else action.verbs
        nouns = f"all {noun}s" if form == "every" else noun
        name = self._name(verbs, nouns, field if action.says_field else "", domain.name)
        arguments = self._arguments(action, form, noun, field)
        described = self._described(action, form, noun, field)
        self.tools.append(Tool(name, described, f"{domain.name}/{action.name}", form, arguments))

    def _name(self, verbs: Sequence[str], noun: str, field: str, domain: str) -> str:
        """One that no other tool has; with more words where the scheme's are not enough."""
        scheme, taken = self._style.scheme, {tool.name for tool in self.tools}
        for order in (scheme.order, "vnf"):
            for verb in self._rng.sample(verbs, len(verbs)):
                words = {"v": verb, "n": noun, "f": field, "d": domain}
                name = scheme.join(" ".join(words[part] for part in order).split())
                if name not in taken and not iskeyword(name):
                    return name
        raise AssertionError(f"all names of {verbs} {noun} {field} are taken: {sorted(taken)}")

    def _arguments(self, action: Action, form: str, noun: str, field: str) -> tuple[Argument, ...]:
        arguments = []
        if form != "every":
            arguments.append(self._target(noun, "ids" if form == "many" else "id"))
        if action.takes_value:
            arguments.append(self._value(action, field))
        if action.proof:
            proof = self.said[f"{action.kind}.{action.proof}"]
            arguments.append(self._argument(proof, "proof", f"The {proof} of the {noun}."))
        return tuple(arguments)

    def _target(self, noun: str, role: str) -> Argument:
        end = "s" if role == "ids" else ""
        name = self._rng.choice((noun + end, f"{noun} id{end}", f"id{end}", f"item id{end}"))
        return self._argument(name, role, f"{'Ids' if end else 'Id'} of the {noun}{end}.")

    def _value(self, action: Action, field: str) -> Argument:
        kind = KINDS[action.kind].field(action.field)
        if isinstance(kind, Ref):
            noun = self.said[kind.kind]
            name = self._rng.choice((f"{noun} id", f"to {noun}", "other id"))
            return self._argument(name, "value", f"Id of the {noun}.")
        if action.how == "set":
            name = self._rng.choice((field, f"new {field}", "value", "new value"))
            return self._argument(name, "value", f"What the {field} should be.")
        name = self._rng.choice(("amount", "by", "how many"))
        return self._argument(name, "value", f"How much of the {field}.")

    def _argument(self, name: str, role: str, description: str) -> Argument:
        join = _snake if self._style.scheme.join is _pascal else self._style.scheme.join
        return Argument(join(name.split()), role, description if self._style.wordy else "")

    def _described(self, action: Action, form: str, noun: str, field: str) -> str:
        proof = self.said.get(f"{action.kind}.{action.proof}", "")
        text = self._rng.choice(action.tells).format(noun=noun, field=field, proof=proof)
        if form == "every":
            text = f"For all {noun}s at once: {text[0].lower()}{text[1:]}"
        if form == "check":
            text = f"Only tell whether this would work: {text[0].lower()}{text[1:]}"
        if self._style.wordy and form in ("one", "many"):
            text += "".join(f" {self._first(action, n.field, n.of_value)}" for n in action.needs)
        return _with_articles(text)

    def _first(self, action: Action, name: str, of_value: bool) -> str:
        """What has to be looked after first, without how it has to be."""
        kind = action.kind
        field = KINDS[kind].field(action.field) if of_value else None
        if isinstance(field, Ref):
            kind = field.kind
        return f"Depends on the {self.said[f'{kind}.{name}']} of the {self.said[kind]}."


def _with_articles(text: str) -> str:
    return _ARTICLE.sub(r"\1n ", text)
