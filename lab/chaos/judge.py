"""The invariants of handover.md, held against what was seen: one copy at most, one at the end, nothing lost or left.

What an accident takes from any container, with or without a move, is no violation: a host that goes takes the memory of
what runs on it, so does the end of its shim, and a limit that is hit. What was written is there all the same. It is the
same where the target's host goes in the instant in which the decided copy is let go: a person is told so, and decides.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from lab import endings
from lab.chaos import inspect_host, kernel, loads
from lab.chaos.accidents import Struck
from lab.chaos.inspect_host import Listed
from lab.chaos.loads import NAME, Load, Running, Written
from lab.chaos.plan import Accident
from lab.host import Host
from lab.shell import PATIENCE, LabError

SETTLE_SECONDS = 45.0 * PATIENCE
PROGRESS_SECONDS = 20.0 * PATIENCE
PROGRESS = 5
TAKES_MEMORY = (Accident.HOST_GONE, Accident.SHIM_KILLED, Accident.MEMORY_LIMIT)
ENDS_DOCKERD = (Accident.DOCKERD_KILLED, Accident.HOST_GONE)
TAKES_LOG = (*TAKES_MEMORY, Accident.DOCKERD_KILLED, Accident.DOCKER_FULL)
"""dockerd has lines in its own memory before they are in its file, and drops what it can't write."""


@dataclass(slots=True)
class Known:
    """What a container had before a run."""

    token: str = ""
    numbers: int = 0
    log_from: int = 1
    """The first number that its log has to have."""
    acknowledged: int = 0


@dataclass(slots=True)
class Verdict:
    """How a run came out."""

    violations: list[str] = field(default_factory=list)
    where: str = ""
    went_on: bool = True
    """The same process, its memory as it was."""
    outcome: str = ""
    container: Listed | None = None
    resolved: str = ""
    lost: bool = False
    may_have_run: bool = False
    """The target's host went in the instant in which its copy was let go, and the source's was taken back."""
    debris: list[str] = field(default_factory=list)
    """Folders that a killed dockerd has left, and can't load itself: its own, and nothing of the move's."""


def wait_for_rest(hosts: list[Host], seconds: float = SETTLE_SECONDS) -> tuple[list[str], list[Listed]]:
    """Wait until one container runs and nothing is left over; what is wrong at the end of that time."""
    end = time.monotonic() + seconds
    while True:
        wrong, found = _at_rest(hosts)
        if not wrong or time.monotonic() > end:
            return wrong, found
        time.sleep(0.15)


def _at_rest(hosts: list[Host]) -> tuple[list[str], list[Listed]]:
    wrong: list[str] = []
    found: list[Listed] = []
    for host in hosts:
        listed = inspect_host.containers(host)
        if listed is None:
            return [f"dockerd on {host.name} does not answer"], []
        found += [one for one in listed if one.name == NAME]
    if len(found) != 1:
        wrong.append(f"{len(found)} containers named {NAME}: {[(one.host, one.running) for one in found]}")
    wrong += [f"it does not run on {one.host}" for one in found if not one.running]
    wrong += [f"its restart policy is {one.policy} on {one.host}" for one in found if one.policy != "always"]
    for host in () if wrong else hosts:  # looked at last: it takes longest
        wrong += [f"left on {host.name}: {what}" for what in inspect_host.leftovers(host)]
    return wrong, found


def judge_debris(host: str, folders: Iterable[str], struck: list[Struck], verdict: Verdict) -> None:
    """What dockerd can't load is counted where an accident has ended it; without one it is a violation as any other."""
    said = [f"dockerd's folder of {one[:12]}, which has no {inspect_host.LOADED}, on {host}" for one in folders]
    ended = any(one.hit and one.host == host and one.fault.accident in ENDS_DOCKERD for one in struck)
    if ended:
        verdict.debris += said
    else:
        verdict.violations += [f"left: {what}" for what in said]


def excused(struck: list[Struck], where: str, verdict: Verdict) -> bool:
    """Whether an accident has taken the memory of what runs there now, as it would have taken any container's."""
    return verdict.lost or any(one.hit and one.host == where and one.fault.accident in TAKES_MEMORY for one in struck)


def judge_content(
    host: Host, container: Listed, running: Running, known: Known, struck: list[Struck], verdict: Verdict
) -> None:
    """Whether it goes on, and all that it has written and answered is there."""
    end = time.monotonic() + PROGRESS_SECONDS
    before = after = None
    while time.monotonic() < end:
        after = _written(host, container, running.load)
        if isinstance(after, Written):
            before = before or after
            if _last(after) >= _last(before) + PROGRESS:
                break
        time.sleep(0.05)
    if before is None or not isinstance(after, Written):
        verdict.violations.append(f"what it has written can't be read: {after}")
        return
    if _last(after) < _last(before) + PROGRESS:
        why = f"its log ends at {after.logged[-1] if after.logged else 'nothing'}, {kernel.waiting(host, container.id)}"
        verdict.violations.append(
            f"it does not go on: {_last(after)} is its last number for {PROGRESS_SECONDS:g} s; {why}"
        )
    _judge_numbers(after, known, verdict)
    verdict.went_on = after.token == known.token or not known.token
    known.token = after.token if verdict.went_on else known.token
    if not verdict.went_on and not excused(struck, host.name, verdict):
        why = endings.of(host, container.id)
        verdict.violations.append(f"another process runs than before: {after.token}, not {known.token}; {why}")
    _judge_log(after, known, struck, verdict)
    if running.load is Load.RECORDS:
        _judge_records(host, container, running, known, verdict)
    known.token, known.numbers = after.token, _last(after)


def _written(host: Host, container: Listed, load: Load) -> Written | str:
    try:
        return loads.read(host, container.id, kernel.first_task(host, container.id), load)
    except (OSError, ValueError, IndexError, LabError) as error:
        return f"{type(error).__name__}: {error}"


def _last(written: Written) -> int:
    return min(numbers[-1] if numbers else 0 for numbers in written.numbers)


def _judge_numbers(written: Written, known: Known, verdict: Verdict) -> None:
    for number, numbers in enumerate(written.numbers):
        if list(numbers) != list(range(1, len(numbers) + 1)):
            odd = [at for at, value in enumerate(numbers, 1) if at != value][:3]
            verdict.violations.append(f"file {number} is not 1, 2, 3...: first at line {odd}, {len(numbers)} lines")
    if _last(written) < known.numbers:
        verdict.violations.append(f"its files end at {_last(written)}, and were at {known.numbers} before")


def _judge_log(written: Written, known: Known, struck: list[Struck], verdict: Verdict) -> None:
    logged = [number for number in written.logged if number >= known.log_from]
    if not verdict.went_on or any(one.hit and one.fault.accident in TAKES_LOG for one in struck):
        known.log_from = (written.logged[-1] if written.logged else _last(written)) + 1
        return
    wanted = list(range(known.log_from, (logged[-1] if logged else known.log_from - 1) + 1))
    if logged != wanted:
        missing, twice = sorted(set(wanted) - set(logged)), len(logged) - len(set(logged))
        verdict.violations.append(f"its log misses {len(missing)} numbers ({missing[:5]}), {twice} came twice")
        known.log_from = _last(written) + 1


def _judge_records(host: Host, container: Listed, running: Running, known: Known, verdict: Verdict) -> None:
    if not verdict.went_on or verdict.may_have_run:
        running.connect()
        known.acknowledged = 0
    end = time.monotonic() + PROGRESS_SECONDS
    state = running.client_state()
    # from now on: what was answered before the accident says nothing of what became of the connection by it
    wanted = max(known.acknowledged, int(str(state.get("acknowledged", 0)))) + PROGRESS
    while time.monotonic() < end:
        state = running.client_state()
        if "wrong" in state or int(str(state.get("acknowledged", 0))) >= wanted:
            break
        time.sleep(0.05)
    if "wrong" in state:
        verdict.violations.append(f"the client's connection: {state}")
        running.connect()
        known.acknowledged = 0
        return
    acknowledged = int(str(state.get("acknowledged", 0)))
    if acknowledged < wanted:
        verdict.violations.append(f"the client gets no answer for {PROGRESS_SECONDS:g} s: {state}")
    elif state.get("token") != known.token and verdict.went_on:
        verdict.violations.append(f"the client is answered by {state.get('token')}, not {known.token}")
    known.acknowledged = acknowledged
