"""No sandbox lets an attack of the suite through, and the unconfined control does."""

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandboxes.attacks import ATTACKS, Attack, Outcome, run_attacks
from sandboxes.attacks.__main__ import NO_CAGE
from sandboxes.base import BackendOptions
from sandboxes.open import open_sandbox

pytest_plugins = ["docker_engine"]  # its fixtures, once for all files

ROOT = Path(__file__).parents[1]
PLAIN_UID = 4242  # a user that the machine does not have
AT_MOST_S = 400.0  # some 60 s on two idle cores
PROBE = "import sys; from sandboxes.open import probe; print(probe(sys.argv[1]) or 'works')"


@dataclass(frozen=True)
class Configuration:
    """A backend, whose user starts it, and which attacks have nothing to attack there."""

    backend: str
    user: str = ""
    inapplicable: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.backend} as {self.user}" if self.user else self.backend


SUBPROCESSES = {"A13", "A33", "A77"}  # are their own, and without a control group there are none
FOLDER = {"A31", "A32", "A74"}
DISK = {"A15", "A64", "A65"}  # of a container is for all its sessions
CONFIGURATIONS = (
    Configuration("jail", "root"),
    Configuration("jail", "a plain user", frozenset(SUBPROCESSES)),
    Configuration("landlock", "root", frozenset(SUBPROCESSES | FOLDER)),
    Configuration("landlock", "a plain user", frozenset(SUBPROCESSES | FOLDER)),
    Configuration("docker", inapplicable=frozenset(DISK | {"A63"})),
)
# What tells the attacks from code that attacks nothing: unconfined, they succeed.
CONTROLS = tuple(
    attack
    for attack in ATTACKS
    if attack.id in ("A01", "A02", "A05", "A06", "A16", "A27", "A29", "A30", "A49", "A51", "A52",
                     "A60", "A61")
)  # fmt: skip


def sentence(attack: Attack) -> str:
    return f"{attack.id} {attack.title}"


@pytest.fixture(scope="session", params=CONFIGURATIONS, ids=str)
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[str, Outcome]]:
    """What came of every attack in one configuration."""
    configuration: Configuration = request.param
    if configuration.backend == "docker":
        request.getfixturevalue("docker_image")
    with ExitStack() as undo:
        python = python_of(configuration.user, undo)
        found = subprocess.run(
            [*python, "-c", PROBE, configuration.backend], capture_output=True, text=True, cwd="/"
        ).stdout.strip()
        if found != "works":
            pytest.skip(f"{configuration} does not work here: {found}")
        yield attacked(python, configuration.backend)


def python_of(user: str, undo: ExitStack) -> list[str]:
    """The command that starts Python as that user, with the package `sandboxes` in its reach."""
    is_root = os.geteuid() == 0
    if user == "root" and not is_root:
        pytest.skip("only root starts sandboxes as root")
    if user != "a plain user" or not is_root:
        return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-B"]
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    recent = "import sys; sys.exit(sys.version_info < (3, 11))"
    if python is None or subprocess.run([python, "-c", recent]).returncode != 0:
        pytest.skip("other users have no Python 3.11 here: apt-get install python3")
    folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="sandbox-attacks-"))
    os.chmod(folder, 0o755)
    shutil.copytree(ROOT / "sandboxes", Path(folder, "sandboxes"))
    for path in Path(folder).rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    drop = ["setpriv", f"--reuid={PLAIN_UID}", f"--regid={PLAIN_UID}", "--clear-groups"]
    return [*drop, "env", f"HOME={folder}", f"PYTHONPATH={folder}", python, "-B"]


def attacked(python: Sequence[str], backend: str, *ids: str) -> dict[str, Outcome]:
    chosen = ["--ids", *ids] if ids else []
    command = [*python, "-m", "sandboxes.attacks", "--backend", backend, "--json", *chosen]
    ran = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=AT_MOST_S)
    if ran.returncode == NO_CAGE:
        pytest.skip(ran.stderr.strip())
    assert ran.returncode in (0, 1), ran.stderr
    assert ran.stderr == ""
    lines = (Outcome(**json.loads(line)) for line in ran.stdout.splitlines())
    return {outcome.id: outcome for outcome in lines}


@pytest.mark.parametrize("attack", ATTACKS, ids=sentence)
def test_it_does_not_happen_that(attack: Attack, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[attack.id]
    assert outcome.held is not False, outcome.detail


def test_every_attack_that_could_be_tried_was(
    outcomes: dict[str, Outcome], request: pytest.FixtureRequest
) -> None:
    configuration = request.node.callspec.params["outcomes"]
    untried = {outcome.id for outcome in outcomes.values() if outcome.held is None}
    assert set(outcomes) == {attack.id for attack in ATTACKS}
    assert untried <= configuration.inapplicable


@pytest.fixture(scope="session")
def control() -> dict[str, Outcome]:
    """What came of the harmless attacks where nothing holds them back, in a control group."""
    with ExitStack() as undo:
        python = python_of("", undo)
        return attacked(python, "unsafe_local", *(attack.id for attack in CONTROLS))


@pytest.mark.parametrize("attack", CONTROLS, ids=sentence)
def test_without_confinement_it_happens_that(attack: Attack, control: dict[str, Outcome]) -> None:
    assert control[attack.id].held is False, "the attack does not attack"


def test_without_confinement_only_harmless_attacks_are_tried() -> None:
    tried = {attack.id for attack in CONTROLS}
    assert tried <= {attack.id for attack in ATTACKS if attack.harmless}
    harmful = next(attack for attack in ATTACKS if not attack.harmless)
    (outcome,) = run_attacks(
        lambda limits, policy: open_sandbox("unsafe_local", limits, policy, BackendOptions()),
        backend="unsafe_local",
        ids=[harmful.id],
    )
    assert (outcome.held, outcome.detail) == (None, "it would harm this machine")


def test_the_attacks_have_names_of_their_own_and_are_sentences() -> None:
    assert len({attack.id for attack in ATTACKS}) == len(ATTACKS)
    assert len({attack.title for attack in ATTACKS}) == len(ATTACKS)


def test_the_plain_user_is_nobody_of_this_machine() -> None:
    with pytest.raises(KeyError):
        pwd.getpwuid(PLAIN_UID)
