"""The pictures of both state machines, drawn from the tables that the agent runs: `python -m agent.migration.diagram`.

Writes docs/machine.md. Nothing is said there that is not in machine.py; a test holds the file against it.
"""

from collections.abc import Iterator
from pathlib import Path

from agent.migration import machine
from agent.migration.machine import ENDS, FIRST, MOVES, RESOLUTIONS, Role
from protocol.status import Phase

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "machine.md"

HEADER = """\
<!-- Written by `python -m agent.migration.diagram` from agent/migration/machine.py. Do not edit. -->
# The two state machines

Every phase of a migration, as its source and as its target have it in their journals, and every move there is between
them; any other raises `IllegalMove`. What leads where, and why, is in `agent/migration/machine.py`; that the two
together never lose a container and never run it twice is explored by `tests/model/`.
"""


def phases(role: Role) -> list[Phase]:
    """The phases of a role, in the order in which the table has them."""
    found = [FIRST[role], *MOVES[role]]
    for after in MOVES[role].values():
        found += sorted(after, key=list(Phase).index)
    return list(dict.fromkeys(found))


def mermaid(role: Role) -> str:
    """The state diagram of one role."""
    return "\n".join(["```mermaid", "stateDiagram-v2", *_edges(role), "```"])


def _edges(role: Role) -> Iterator[str]:
    yield f"    [*] --> {_name(FIRST[role])}"
    order = phases(role)
    for here, after in MOVES[role].items():
        for there in sorted(after, key=order.index):
            yield f"    {_name(here)} --> {_name(there)}"
    for (whose, here), answers in RESOLUTIONS.items():
        for word, there in answers.items():
            if whose is role:
                yield f"    {_name(here)} --> {_name(there)}: a person says {word}"
    for end in sorted(ENDS[role], key=order.index):
        yield f"    {_name(end)} --> [*]"


def _name(phase: Phase) -> str:
    return phase.replace("-", "_").upper()  # mermaid takes no hyphen in a state's name


def meaning(role: Role) -> str:
    """What each phase means for a decision, as the functions of machine.py have it."""
    columns = ["phase", "found after a restart"]
    columns += ["may be cancelled", "answer to a target that asks"] if role is Role.SOURCE else []
    columns += ["its copy may run", "may discard by itself"] if role is Role.TARGET else []
    rows = [columns, ["---"] * len(columns), *(_row(role, phase) for phase in phases(role))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(role: Role, phase: Phase) -> list[str]:
    row = [_name(phase), machine.on_restart(role, phase)]
    if role is Role.SOURCE:
        return [*row, _yes(machine.may_cancel(phase)), machine.decision(phase)]
    return [*row, _yes(machine.may_run(phase)), _yes(machine.may_expire(phase))]


def _yes(so: bool) -> str:
    return "yes" if so else ""


def document() -> str:
    parts = [HEADER.rstrip()]
    for role in Role:
        parts += [f"## {role.title()}", mermaid(role), meaning(role)]
    unknown = f"A migration that the source's journal does not know is answered with `{machine.decision(None)}`."
    return "\n\n".join([*parts, unknown]) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(document())
