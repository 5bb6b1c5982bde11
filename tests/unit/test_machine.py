"""The tables of phases: every move there is, every one there is not, and what each phase means for a decision.

What the two machines do together, under any fault, is explored by tests/model.
"""

import copy
from collections.abc import Iterable
from pathlib import Path

import pytest

from agent.base.errors import IllegalMove
from agent.migration import diagram, machine
from agent.migration.journal import Entry, Journal
from agent.migration.machine import ENDS, FIRST, MOVES, RESOLUTIONS, OnRestart, Role
from agent.migration.run import Run
from protocol.peer import DecisionKind
from protocol.status import ENDED, Phase

LEGAL = [(role, here, there) for role in Role for here, after in MOVES[role].items() for there in sorted(after)]
RESOLVED = [(role, here, there) for (role, here), words in RESOLUTIONS.items() for there in words.values()]
ILLEGAL = [
    (role, here, there) for role in Role for here in Phase for there in Phase if (role, here, there) not in LEGAL
]
OF: dict[Role, list[Phase]] = {role: diagram.phases(role) for role in Role}
EVERY = [(role, phase) for role in Role for phase in OF[role]]


def after(role: Role, start: Iterable[Phase], *, persons: bool = True) -> set[Phase]:
    """The phases that can follow, over any number of moves, `start` itself included."""
    found, todo = set(start), list(start)
    while todo:
        here = todo.pop()
        following = set(MOVES[role].get(here, ()))
        if persons:
            following |= set(RESOLUTIONS.get((role, here), {}).values())
        todo += following - found
        found |= following
    return found


# --- the moves ---


@pytest.mark.parametrize(("role", "here", "there"), LEGAL)
def test_a_move_of_the_table_leads_where_it_says(role: Role, here: Phase, there: Phase) -> None:
    assert machine.move(role, here, there) is there
    assert machine.move(role, here, there, resolved=True) is there


def test_any_other_move_raises_and_changes_nothing() -> None:
    before = copy.deepcopy((MOVES, RESOLUTIONS, ENDS, FIRST))
    for role, here, there in ILLEGAL:
        with pytest.raises(IllegalMove, match=f"{role}: {here} -> {there}"):
            machine.move(role, here, there)
    assert before == (MOVES, RESOLUTIONS, ENDS, FIRST)


def test_a_persons_word_allows_its_own_moves_and_no_others() -> None:
    for role, here, there in ILLEGAL:
        if (role, here, there) in RESOLVED:
            assert machine.move(role, here, there, resolved=True) is there
        else:
            with pytest.raises(IllegalMove):
                machine.move(role, here, there, resolved=True)


def test_no_phase_is_a_move_to_itself() -> None:
    assert not [move for move in (*LEGAL, *RESOLVED) if move[1] is move[2]]


async def test_an_illegal_move_leaves_run_and_journal_as_they_were(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    await journal.open()
    for role, here in EVERY:
        entry = Entry(f"{role}-{here}", role, here, "web", "beta", "2025-01-01T00:00:00", "2025-01-01T00:00:00", {})
        run = Run(journal, entry)
        await run.record_beginning()
        said = await journal.history(entry.id)
        for there in [there for whose, before, there in ILLEGAL if (whose, before) == (role, here)]:
            with pytest.raises(IllegalMove):
                await run.enter(there, note="not to be written")
            assert (run.phase, run.record) == (here, {})
        assert await journal.get(entry.id, role) == entry
        assert await journal.history(entry.id) == said
    await journal.close()


async def test_all_is_on_the_disk_at_once_but_entering_a_phase_that_may_be_with_the_next(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    await journal.open()
    said: list[str] = []
    await journal._call(lambda: journal._open_db.set_trace_callback(said.append))
    for role, here, there in LEGAL:
        entry = Entry(f"{role}-{here}-{there}", role, here, "web", "beta", "2025-01-01", "2025-01-01", {})
        run, said[:] = Run(journal, entry), []
        await run.record_beginning()
        await run.enter(there)
        await run.note_down(also="at once")
        await journal.begin_command(entry.id, "")
        ends = [at for at, word in enumerate(said) if word == "COMMIT"]
        before = [[word for word in said[:at] if "synchronous" in word][-1] for at in ends]
        at_once = "PRAGMA synchronous=FULL"
        entering = "PRAGMA synchronous=NORMAL" if (role, there) in machine.WITH_THE_NEXT else at_once
        assert before == [at_once, entering, at_once]
        assert [word for word in said if "synchronous" in word][-1] == at_once, "also for commands"
    await journal.close()


# --- the shape of the tables ---


@pytest.mark.parametrize("role", Role)
def test_every_phase_of_the_table_is_reached_and_every_phase_is_some_roles(role: Role) -> None:
    assert after(role, [FIRST[role]]) == set(OF[role])
    assert after(role, [FIRST[role]], persons=False) == set(OF[role])
    assert {phase for _, phase in EVERY} == set(Phase)


@pytest.mark.parametrize("role", Role)
def test_ends_have_no_way_out_and_every_other_phase_has_one_to_an_end(role: Role) -> None:
    for phase in OF[role]:
        if phase in ENDS[role]:
            assert after(role, [phase]) == {phase}
        else:
            assert after(role, [phase], persons=False) & ENDS[role]


def test_what_is_told_as_ended_is_an_end_or_waits_for_a_person() -> None:
    assert frozenset().union(*ENDS.values()) | {Phase.STRANDED} == ENDED


def test_nothing_is_called_first_after_it_has_begun() -> None:
    for role in Role:
        assert not [move for move in (*LEGAL, *RESOLVED) if move[0] is role and move[2] is FIRST[role]]


# --- what they mean for the decision ---


def says(word: DecisionKind) -> set[Phase]:
    return {phase for phase in OF[Role.SOURCE] if machine.decision(phase) is word}


def test_there_is_one_decision_and_one_move_that_makes_it() -> None:
    into_commit = [
        (here, there)
        for role, here, there in LEGAL
        if role is Role.SOURCE and machine.decision(here) is not machine.decision(there) is DecisionKind.COMMIT
    ]
    assert into_commit == [(Phase.PREPARED, Phase.COMMITTED)]


def test_a_decision_once_said_is_not_changed_but_by_a_person() -> None:
    for word in (DecisionKind.COMMIT, DecisionKind.ABORT):
        assert after(Role.SOURCE, says(word), persons=False) == says(word)
    for (role, here), words in RESOLUTIONS.items():
        if role is Role.SOURCE:
            assert here in says(DecisionKind.COMMIT)
            assert words[DecisionKind.COMMIT] in says(DecisionKind.COMMIT)
            assert words[DecisionKind.ABORT] not in says(DecisionKind.COMMIT)


def test_what_the_journal_does_not_know_was_never_committed() -> None:
    assert machine.decision(None) is DecisionKind.ABORT


def test_a_source_can_take_back_exactly_what_is_neither_decided_nor_taken_back() -> None:
    for phase in OF[Role.SOURCE]:
        assert machine.may_cancel(phase) is (phase in says(DecisionKind.PENDING) - {Phase.STRANDED})
        if machine.may_cancel(phase):
            assert Phase.ROLLED_BACK in MOVES[Role.SOURCE][phase]
            assert Phase.STRANDED in MOVES[Role.SOURCE][phase]


@pytest.mark.parametrize(("role", "phase"), EVERY)
def test_a_restarted_agent_goes_on_with_what_is_decided_and_takes_back_what_is_not(role: Role, phase: Phase) -> None:
    what = machine.on_restart(role, phase)
    if phase in ENDS[role]:
        assert what is OnRestart.NOTHING
    elif role is Role.SOURCE:
        decided = machine.decision(phase) is DecisionKind.COMMIT
        assert what is (OnRestart.GO_ON if decided else OnRestart.TAKE_BACK)
    elif not machine.may_expire(phase) and not machine.may_run(phase):
        assert what is OnRestart.ASK
    else:
        assert what is (OnRestart.GO_ON if machine.may_run(phase) else OnRestart.TAKE_BACK)


def test_a_target_begins_to_run_only_from_prepared() -> None:
    runs = {phase for phase in OF[Role.TARGET] if machine.may_run(phase)}
    begins = {
        (here, there)
        for role, here, there in (*LEGAL, *RESOLVED)
        if role is Role.TARGET and there in runs and here not in runs
    }
    assert begins == {(Phase.PREPARED, Phase.RUNNING)}
    assert runs - {Phase.RUNNING} <= ENDS[Role.TARGET]


def test_a_target_never_discards_by_itself_what_it_has_reported_as_prepared() -> None:
    by_itself = {phase for phase in OF[Role.TARGET] if machine.may_expire(phase)}
    assert not by_itself & after(Role.TARGET, [Phase.PREPARED])
    assert all(Phase.DISCARDED in MOVES[Role.TARGET][phase] for phase in by_itself)
    not_decided = set(OF[Role.TARGET]) - after(Role.TARGET, [Phase.PREPARED])
    assert by_itself == not_decided, "what can't be decided yet must not wait for its source for ever"


@pytest.mark.parametrize("phase", OF[Role.TARGET])
@pytest.mark.parametrize("answer", DecisionKind)
def test_a_target_that_asks_moves_only_by_a_decision(phase: Phase, answer: DecisionKind) -> None:
    there = machine.answer_to_asking(phase, answer)
    if answer is DecisionKind.PENDING:
        assert there is None
    if there is not None:
        assert there in MOVES[Role.TARGET][phase]
        assert machine.may_run(there) is (answer is DecisionKind.COMMIT)
    if phase is Phase.PREPARED and answer is not DecisionKind.PENDING:
        assert there is not None


def test_a_persons_word_to_a_target_means_what_the_sources_would() -> None:
    for (role, here), words in RESOLUTIONS.items():
        if role is Role.TARGET:
            assert words == {word: machine.answer_to_asking(here, word) for word in words}


def test_a_record_that_a_power_cut_may_take_leads_where_the_one_before_it_leads() -> None:
    for role, phase in machine.WITH_THE_NEXT:
        for before, after in MOVES[role].items():
            if phase in after:
                assert machine.on_restart(role, before) is machine.on_restart(role, phase)
                assert not machine.may_run(phase)
                assert machine.may_run(before) is machine.may_run(phase)
                if role is Role.SOURCE:
                    assert machine.decision(before) is machine.decision(phase)


# --- the pictures ---


def test_the_diagrams_in_the_documentation_are_those_of_the_tables() -> None:
    assert diagram.DOCUMENT.read_text() == diagram.document(), "run `python -m agent.migration.diagram`"


def test_every_move_is_drawn_and_no_other() -> None:
    for role in Role:
        lines = [line.strip() for line in diagram.mermaid(role).splitlines()]
        drawn = {tuple(line.split(":")[0].split(" --> ")) for line in lines if " --> " in line and "[*]" not in line}
        moves = [(here, there) for whose, here, there in (*LEGAL, *RESOLVED) if whose is role]
        assert drawn == {tuple(phase.replace("-", "_").upper() for phase in move) for move in moves}
