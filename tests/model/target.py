"""The target, one step at a time: agent/migration/targets.py and target.py without their I/O.

What the migration's lock serialises is `does`; a request that needs the lock waits on the link until it is free.
"""

from collections.abc import Callable, Iterator

from agent.migration.machine import ENDS, OnRestart, Role
from protocol.peer import DecisionKind
from protocol.status import Phase
from tests.model.pages import Following, after_reboot
from tests.model.rules import Rules, Slip
from tests.model.state import Between, Call, Does, Kind, Pages, Step, Target, Tasks, Waiting

Steps = Iterator[Step]

AT_ONCE = frozenset({Call.OFFER, Call.DISCARD})
"""Looked at before the lock is had."""
GIVES_UP = frozenset({Does.STAGE, Does.RESTORE})
"""Waits for the runtime, and not when a discard waits for it (target.Target.stop_waiting)."""


class TargetModel(Following):
    """Every step that a target can take."""

    def __init__(self, rules: Rules, persons: bool) -> None:
        self._rules = rules
        self._persons = persons
        self._by_line: dict[Does, Callable[[Target, Between], Steps]] = {
            Does.DOWN: self._restart,
            Does.FRESH: self._recover,
            Does.FREE: self._free,
            Does.CREATE: self._create,
            Does.STAGE: self._stage,
            Does.RESTORE: self._restore,
            Does.GO: self._go,
            Does.UNLOCK: self._unlock,
            Does.CONTINUE: self._continue,
            Does.NOTE: self._note,
            Does.SETTLE: self._settle,
            Does.POLICY: self._set_policy,
            Does.START: self._start_again,
            Does.END: self._end,
            Does.REMOVE: self._remove,
            Does.SWEEP: self._sweep,
            Does.DISCARDED: self._discarded,
        }
        self._by_call: dict[Call, Callable[[Target, Between], Steps]] = {
            Call.OFFER: self._offered,
            Call.STAGE: self._asked_to_stage,
            Call.PREPARE: self._asked_to_prepare,
            Call.GO: self._asked_to_go,
            Call.ARRIVED: self._asked_whether_all_is_there,
            Call.FORGET: self._asked_to_forget,
            Call.DISCARD: self._asked_to_discard,
        }

    def steps(self, t: Target, between: Between, said: DecisionKind | None, serves: bool) -> Steps:
        """All that can happen here next; `said` is what the source would answer now, and whether it has the memory."""
        yield from self._by_line[t.does](t, between)
        if t.up:
            yield from self._requests(t, between)
            yield from self._watch(t, between, said)
        yield from self._by_itself(t, between)
        yield from self._pages_come(t, between, serves)
        yield from self._faults(t, between)

    def _entered(self, t: Target, there: Phase) -> Target:
        """run.Run.enter"""
        assert t.journal is not None
        return t._replace(journal=self._rules.move(Role.TARGET, t.journal, there))

    def _gives_back(self, t: Target, between: Between, call: Call, reply: bool) -> tuple[Target, Between]:
        """The lock is free again, and who asked is answered."""
        answered = between.answered(call, reply) if t.asked else between
        return t._replace(does=Does.FREE, asked=False), answered

    def _fails(self, t: Target, between: Between, call: Call, why: str, kind: Kind = Kind.FAIL) -> Step:
        return Step(kind, why, *self._gives_back(t, between, call, reply=False))

    # --- PeerHandler ---

    def _requests(self, t: Target, between: Between) -> Steps:
        for call in sorted(between.requests):
            if call not in AT_ONCE and t.does not in (Does.FREE, Does.FRESH):
                continue
            taken = between._replace(requests=between.requests - {call})
            for step in self._by_call[call](t, taken):
                yield step._replace(label=f"{call} arrives: {step.label}")
                again = step.between._replace(requests=step.between.requests | {call})
                if (step.side, again) != (t, between) and step.kind is Kind.STEP:
                    yield Step(Kind.DOUBLE, f"{call} arrives, and will again: {step.label}", step.side, again)

    def _offered(self, t: Target, between: Between) -> Steps:
        """targets.Targets._take"""
        if t.slot or t.journal is not None:
            yield Step(Kind.STEP, "is known here already", t, between.answered(Call.OFFER, reply=False))
            return
        taken = t._replace(slot=True, journal=Phase.RESERVED)
        yield Step(Kind.STEP, "enters reserved", taken, between.answered(Call.OFFER, reply=True))
        yield Step(Kind.FAIL, "refused: reasons against it", t, between.answered(Call.OFFER, reply=False))

    def _asked_to_stage(self, t: Target, between: Between) -> Steps:
        if t.slot and t.journal is Phase.RESERVED and t.tasks is Tasks.GONE:
            yield Step(Kind.STEP, "has the lock", t._replace(does=Does.CREATE, asked=True), between)
        else:
            yield Step(Kind.STEP, "can't be staged", t, between.answered(Call.STAGE, reply=False))

    def _asked_to_prepare(self, t: Target, between: Between) -> Steps:
        """target.Target.prepare, up to the word to the runtime"""
        no = between.answered(Call.PREPARE, reply=False)
        if not t.slot or not t.staged or t.journal is not Phase.STAGED or t.tasks is not Tasks.WAITING:
            yield Step(Kind.STEP, "can't be prepared", t, no)
            return
        restoring = self._entered(t, Phase.RESTORING)._replace(does=Does.RESTORE, asked=True, tasks=Tasks.RESTORING)
        yield Step(Kind.STEP, "enters restoring", restoring, between)
        yield Step(Kind.FAIL, "something did not arrive", t, no)

    def _asked_to_go(self, t: Target, between: Between) -> Steps:
        """targets.Targets.go"""
        if t.slot:
            yield Step(Kind.STEP, "has the lock", t._replace(does=Does.GO, asked=True), between)
        else:
            done = t.journal is Phase.DONE
            why = "it runs, and this was said before" if done else "there is none such"
            yield Step(Kind.STEP, why, t, between.answered(Call.GO, reply=done))

    def _asked_to_forget(self, t: Target, between: Between) -> Steps:
        """targets.Targets.forget, _settle"""
        if t.slot and t.journal is Phase.RUNNING:
            yield from self._settles(t, between, asked=True)
        elif t.slot and Slip.FORGET_DROPS_WAITING in self._rules.slips:
            yield Step(Kind.STEP, "is dropped", t._replace(slot=False), between)
        else:
            yield Step(Kind.STEP, "nothing to settle", t, between)

    def _asked_to_discard(self, t: Target, between: Between) -> Steps:
        """targets.Targets.discard"""
        if t.slot:
            yield from self._throw_away(t, between, Waiting.WORD)
        else:
            yield Step(Kind.STEP, "is not here", t, between)

    def _throw_away(self, t: Target, between: Between, whose: Waiting) -> Steps:
        """targets.Targets._throw_away, up to its wait for the lock"""
        assert t.journal is not None
        if self._rules.may_run(t.journal):
            yield Step(Kind.STEP, "too late to discard", t, between)
        elif t.does is Does.FREE:
            yield Step(Kind.STEP, "begins to discard", t._replace(does=Does.REMOVE), between)
        else:
            yield Step(Kind.STEP, "a discard waits for the lock", t._replace(waiting=whose), between)

    # --- target.Target.stage ---

    def _create(self, t: Target, between: Between) -> Steps:
        early = Slip.POLICY_EARLY in self._rules.slips
        created = t._replace(does=Does.STAGE, tasks=Tasks.WAITING, policy=early)
        yield Step(Kind.STEP, "creates the container", created, between)
        yield self._fails(t, between, Call.STAGE, "can't create the container")

    def _stage(self, t: Target, between: Between) -> Steps:
        ready, answered = self._gives_back(self._entered(t, Phase.STAGED), between, Call.STAGE, reply=True)
        ready = ready._replace(hand_over=True, staged=True)
        yield Step(Kind.STEP, "lays out the hand-over, enters staged", ready, answered)
        failed, refused = self._gives_back(t, between, Call.STAGE, reply=False)
        yield Step(Kind.FAIL, "can't stage", failed._replace(hand_over=True), refused)
        if t.waiting is not Waiting.NONE:
            yield Step(Kind.STEP, "gives up for the discard", failed._replace(hand_over=True), refused)

    # --- target.Target.prepare ---

    def _restore(self, t: Target, between: Between) -> Steps:
        if t.tasks is Tasks.STOPPED:
            ready, answered = self._gives_back(self._entered(t, Phase.PREPARED), between, Call.PREPARE, reply=True)
            yield Step(Kind.STEP, "proved: enters prepared", ready, answered)
            yield self._fails(t, between, Call.PREPARE, "there is no proof of a restore")
        elif t.tasks is Tasks.DEAD:
            yield self._fails(t, between, Call.PREPARE, "the restore failed", Kind.STEP)
        if t.waiting is not Waiting.NONE:
            yield self._fails(t, between, Call.PREPARE, "gives up for the discard", Kind.STEP)

    # --- target.Target.go ---

    def _go(self, t: Target, between: Between) -> Steps:
        gone = (not t.alive or t.pages is Pages.LOST) and Slip.RUNS_UNSEEN not in self._rules.slips
        if t.journal is Phase.PREPARED and gone:
            yield self._fails(t, between, Call.GO, "its copy is gone", Kind.STEP)
        elif t.journal is Phase.PREPARED:
            running = self._entered(t, Phase.RUNNING)._replace(does=Does.UNLOCK)
            if Slip.RELEASED_EARLY in self._rules.slips:
                running = running._replace(released=True)
            yield Step(Kind.STEP, "enters running", running, between)
        elif t.released:
            yield Step(Kind.STEP, "runs already", *self._gives_back(t, between, Call.GO, reply=True))
        elif t.journal is Phase.RUNNING and gone:
            yield self._fails(self._entered(t, Phase.STRANDED), between, Call.GO, "its copy is gone", Kind.STEP)
        elif t.journal is Phase.RUNNING:
            yield Step(Kind.STEP, "is to be let run", t._replace(does=Does.UNLOCK), between)
        else:
            yield self._fails(t, between, Call.GO, "there is nothing to run", Kind.STEP)

    def _unlock(self, t: Target, between: Between) -> Steps:
        """target.Target._let_run"""
        if t.alive:
            yield Step(Kind.STEP, "unlocks", t._replace(does=Does.CONTINUE, locked=False), between)
            yield self._fails(t, between, Call.GO, "can't unlock")
        else:
            yield self._fails(t, between, Call.GO, "its copy is gone just now", Kind.STEP)

    def _continue(self, t: Target, between: Between) -> Steps:
        """target.Target._let_run, and following.Following.look right after: its guard may have come before the thaw"""
        tasks = t.tasks if t.pages is Pages.LOST else Tasks.RUN
        yield Step(Kind.STEP, "lets its tasks run", t._replace(does=Does.NOTE, tasks=tasks), between)

    def _note(self, t: Target, between: Between) -> Steps:
        noted, answered = self._gives_back(t._replace(released=True), between, Call.GO, reply=True)
        yield Step(Kind.STEP, "notes that it runs", noted, answered)
        yield self._fails(t, between, Call.GO, "can't note that it runs")

    # --- target.Target.settle, forget ---

    def _settles(self, t: Target, between: Between, *, asked: bool = False) -> Steps:
        """targets.Targets._settle"""
        if t.released and t.pages is Pages.CAME:
            t = t._replace(pages=Pages.HERE)
        if t.released and t.pages is not Pages.HERE:
            if asked:
                yield from self._ends_what_is_lost(t, between)
        elif t.released or Slip.SETTLES_UNRELEASED in self._rules.slips:
            yield Step(Kind.STEP, "begins to settle", t._replace(does=Does.SETTLE), between)
        else:
            yield Step(Kind.STEP, "goes on with letting it run", t._replace(does=Does.GO), between)

    def _settle(self, t: Target, between: Between) -> Steps:
        yield Step(Kind.STEP, "clears the hand-over", t._replace(does=Does.POLICY, hand_over=False), between)
        yield self._fails(t, between, Call.FORGET, "can't clear the hand-over")

    def _set_policy(self, t: Target, between: Between) -> Steps:
        yield Step(Kind.STEP, "sets the policy", t._replace(does=Does.START, policy=True), between)
        yield self._fails(t, between, Call.FORGET, "can't set the policy")

    def _start_again(self, t: Target, between: Between) -> Steps:
        """restarting.start_as_docker_would: its program has ended, or the host, while the policy was `no`"""
        tasks = t.tasks
        if tasks is Tasks.DEAD and Slip.NOT_STARTED_AFTER_REBOOT not in self._rules.slips:
            tasks = Tasks.RUN
        yield Step(Kind.STEP, "runs as it would by its policy", t._replace(does=Does.END, tasks=tasks), between)
        yield self._fails(t, between, Call.FORGET, "can't start it")

    def _end(self, t: Target, between: Between) -> Steps:
        ended = self._entered(t, Phase.DONE)._replace(does=Does.FREE, slot=False, asked=False, staged=False)
        yield Step(Kind.STEP, "enters done", ended, between)

    # --- target.Target.discard: the container goes before its hand-over does ---

    def _remove(self, t: Target, between: Between) -> Steps:
        removed = t._replace(does=Does.SWEEP, tasks=Tasks.GONE, locked=False, policy=False)
        removed = removed._replace(pages=Pages.HERE, lacked=False)
        yield Step(Kind.STEP, "removes the container", removed, between)
        yield self._fails(t, between, Call.DISCARD, "can't remove the container")

    def _sweep(self, t: Target, between: Between) -> Steps:
        yield Step(Kind.STEP, "clears the hand-over", t._replace(does=Does.DISCARDED, hand_over=False), between)
        yield self._fails(t, between, Call.DISCARD, "can't clear the hand-over")

    def _discarded(self, t: Target, between: Between) -> Steps:
        ended = self._entered(t, Phase.DISCARDED)._replace(does=Does.FREE, slot=False, asked=False, staged=False)
        yield Step(Kind.STEP, "enters discarded", ended, between)

    # --- targets.Targets: what it does by itself ---

    def _free(self, t: Target, between: Between) -> Steps:
        """The lock is free: whoever waits for it has it, first what was asked before."""
        if t.waiting is Waiting.NONE or not t.slot:
            return
        assert t.journal is not None
        had = t._replace(waiting=Waiting.NONE)
        checked = Slip.DISCARDS_UNCHECKED not in self._rules.slips
        by_itself = t.waiting is Waiting.OWN and not self._rules.may_expire(t.journal)
        if checked and (self._rules.may_run(t.journal) or by_itself):
            yield Step(Kind.STEP, "too late to discard", had, between)
        else:
            yield Step(Kind.STEP, "begins to discard", had._replace(does=Does.REMOVE), between)

    def _watch(self, t: Target, between: Between, said: DecisionKind | None) -> Steps:
        """targets.Targets._watch, _ask, resolve, close"""
        if not t.slot or t.journal is None:
            return
        if t.does is Does.FREE:
            if self._rules.may_expire(t.journal):
                yield Step(Kind.STEP, "its lease ends: begins to discard", t._replace(does=Does.REMOVE), between)
            if t.journal is Phase.RUNNING:
                yield from self._settles(t, between)
            yield from self._ask(t, between, said)
        if self._rules.may_expire(t.journal) and t.waiting is Waiting.NONE:
            yield Step(Kind.STOP, "its agent is to stop: a discard waits", t._replace(waiting=Waiting.OWN), between)
        if self._persons:
            yield from self._person(t, between)

    def _ask(self, t: Target, between: Between, said: DecisionKind | None) -> Steps:
        """targets.Targets._ask, _learn"""
        assert t.journal is not None
        if t.heard is not None:
            yield from self._hears(t, between, t.heard)
        elif t.journal in (Phase.PREPARED, Phase.STRANDED):
            for where, answer in (("asks the source", said), ("reads at the broker", between.retained)):
                # one that changes nothing now is as good as unheard: what is left to it only gets less
                if answer is not None and self._rules.answer_to_asking(t.journal, answer) is not None:
                    yield Step(Kind.STEP, f"{where}: {answer}", t._replace(heard=answer), between)

    def _hears(self, t: Target, between: Between, answer: DecisionKind) -> Steps:
        assert t.journal is not None
        there = self._rules.answer_to_asking(t.journal, answer)
        heard = t._replace(heard=None)
        if there is Phase.RUNNING:
            yield Step(Kind.STEP, f"hears {answer}, and has the lock", heard._replace(does=Does.GO), between)
        elif there is Phase.DISCARDED:
            for step in self._throw_away(heard, between, Waiting.WORD):
                yield step._replace(label=f"hears {answer}: {step.label}")
        else:
            yield Step(Kind.STEP, f"hears {answer}: nothing to do", heard, between)

    def _person(self, t: Target, between: Between) -> Steps:
        """targets.Targets.resolve"""
        assert t.journal is not None
        if t.does is Does.FREE:
            yield from self._person_ends(t, between, DecisionKind.COMMIT)
        words = self._rules.resolutions.get((Role.TARGET, t.journal), {})
        if DecisionKind.COMMIT in words and t.does is Does.FREE:
            risk = between._replace(may_be_two=True)
            yield Step(Kind.PERSON, "is told by a person: commit", t._replace(does=Does.GO), risk)
        if DecisionKind.ABORT in words:
            risk = between._replace(may_be_lost=between.may_be_lost or t.alive)
            for step in self._throw_away(t, risk, Waiting.WORD):
                yield step._replace(kind=Kind.PERSON, label=f"is told by a person: abort; {step.label}")

    # --- targets.Targets.recover ---

    def _restart(self, t: Target, between: Between) -> Steps:
        yield Step(Kind.STEP, "is started", t._replace(does=Does.FRESH), between)

    def _recover(self, t: Target, between: Between) -> Steps:
        if t.journal is None or t.journal in ENDS[Role.TARGET]:
            yield Step(Kind.STEP, "has nothing to take up", t._replace(does=Does.FREE), between)
            return
        found = t._replace(slot=True, does=Does.FREE)
        what = self._rules.on_restart(Role.TARGET, t.journal)
        if what is OnRestart.TAKE_BACK:
            for step in self._throw_away(found, between, Waiting.WORD):
                yield step._replace(label=f"found {t.journal}: {step.label}")
        elif what is OnRestart.GO_ON:
            yield Step(Kind.STEP, f"found {t.journal}: goes on", found._replace(does=Does.GO), between)
        else:
            yield Step(Kind.STEP, f"found {t.journal}: will ask", found, between)

    # --- what happens around it ---

    def _by_itself(self, t: Target, between: Between) -> Steps:
        """The runtime restores whether or not its agent is there."""
        if t.tasks is Tasks.RESTORING:
            pages = Pages.COMING if self._rules.lazy else Pages.HERE
            restored = t._replace(tasks=Tasks.STOPPED, locked=True, pages=pages)
            yield Step(Kind.STEP, "the runtime has restored", restored, between)
            yield Step(Kind.FAIL, "the runtime fails to restore", t._replace(tasks=Tasks.DEAD), between)

    def _faults(self, t: Target, between: Between) -> Steps:
        down = t._replace(does=Does.DOWN, slot=False, asked=False, staged=False, waiting=Waiting.NONE, heard=None)
        if t.up and t != Target():
            yield Step(Kind.CRASH, "crashes", down, between)
        if t.alive and not t.policy:
            lost = between.may_be_lost or (between.person_gave_up and not t.released)
            needs = Pages.CAME if t.pages is Pages.COMING else t.pages  # none of it any more
            dead = t._replace(tasks=Tasks.DEAD, locked=False, pages=needs)
            yield Step(Kind.DIE, "its container dies", dead, between._replace(may_be_lost=lost))
        if t.tasks is not Tasks.GONE or t.hand_over:
            booted = after_reboot(down._replace(locked=False, hand_over=False))
            if Slip.WHOLE_WITHOUT_CHANNEL in self._rules.slips:
                booted = booted._replace(pages=Pages.HERE)
            if t.tasks is not Tasks.GONE:
                booted = booted._replace(tasks=Tasks.RUN if t.policy else Tasks.DEAD)
            lost = between.person_gave_up and t.alive and not t.released
            after = between._replace(may_be_lost=between.may_be_lost or lost)
            if (booted, after) != (t, between):
                yield Step(Kind.REBOOT, "host reboots", booted, after)
