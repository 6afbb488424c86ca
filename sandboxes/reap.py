"""`python -m sandboxes.reap`: remove what killed processes left behind, on this machine."""

import importlib.util
import sys

from sandboxes import cgroup
from sandboxes.backend import Unavailable


def main() -> int:
    """Reap, and say how much there was."""
    groups, containers = cgroup.reap(), reap_containers()
    print(f"removed {groups} control groups and {containers} containers")
    return 0


def reap_containers() -> int:
    """Remove containers whose owners are gone, if there is an engine; returns how many.

    Jails need no reaping: they end when the line to their owner is cut.
    """
    if importlib.util.find_spec("docker") is None:
        return 0
    from sandboxes import docker_backend

    try:
        client = docker_backend.connect()
    except Unavailable:
        return 0
    try:
        return docker_backend.reap(client)
    finally:
        client.close()


if __name__ == "__main__":
    sys.exit(main())
