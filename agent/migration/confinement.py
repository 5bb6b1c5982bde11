"""What confines a container on the source, AppArmor or SELinux, has to be there on the target: pure but for `loaded`.

dockerd ignores the option on a host without AppArmor, and CRIU would restore the tasks unconfined or not at all:
neither is what the user asked for.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from protocol import reasons
from protocol.errors import Reason, Why
from protocol.status import Engine

PROFILES = Path("/sys/kernel/security/apparmor/profiles")
BY_DEFAULT = "docker-default"
UNCONFINED = "unconfined"


def loaded(profiles: Path = PROFILES) -> frozenset[str]:
    """The profiles that this host's kernel has; none where there is no AppArmor."""
    try:
        lines = profiles.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.rsplit(" (", 1)[0] for line in lines)


def profile(create: Mapping[str, Any]) -> str:
    """The profile that its user has named; empty if none."""
    for option in _options(create):
        key, _, value = option.partition("=")
        if key == "apparmor":
            return str(value)
    return ""


def _options(create: Mapping[str, Any]) -> list[str]:
    given = (create.get("HostConfig") or {}).get("SecurityOpt") or ()
    return [str(option).replace(":", "=", 1) for option in given]


def against(create: Mapping[str, Any], there: Engine, here: Engine, known: Collection[str]) -> tuple[Reason, ...]:
    """Reasons of a target (`here`, with the profiles `known`) against a container from `there`."""
    named = profile(create)
    wanted = named or (BY_DEFAULT if there.apparmor else "")
    if there.selinux and not here.selinux and "label=disable" not in _options(create):
        what = "it is confined by SELinux, and there is no SELinux here"
        return (reasons.against(Why.LSM, what, "use a host with SELinux, or run it with --security-opt label=disable"),)
    if wanted in ("", UNCONFINED):
        return ()
    if not here.apparmor:
        what = f"it is confined by the AppArmor profile {wanted}, and there is no AppArmor here"
        hint = "use a host with AppArmor, or run it with --security-opt apparmor=unconfined"
    elif named and named != BY_DEFAULT and named not in known:
        what, hint = f"its AppArmor profile {named} is not loaded here", "load it with `apparmor_parser --replace FILE`"
    else:
        return ()
    return (reasons.against(Why.LSM, what, hint),)
