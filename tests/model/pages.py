"""Post-copy: the memory that follows, as both sides see it. strategy/postcopy.py, following.py, source.until_whole.

The page channel is not in it: its ends outlive the agents, and links that break lose nothing. What is here is who may
let go of what, and when: rule 7 of handover.md.
"""

from collections.abc import Iterator

from protocol.peer import DecisionKind
from protocol.status import Phase
from tests.model.rules import Broken, Rules, Slip
from tests.model.state import At, Between, Call, Does, Dump, Kind, Pages, Source, Step, Target, Tasks

Steps = Iterator[Step]


class Serving:
    """The source's part: it waits for the last page, and its frozen copy lives until then."""

    _rules: Rules

    def after_go(self, s: Source) -> At:
        """The line after RUNNING, in a story and after a restart."""
        early = Slip.KILLS_WITH_PAGES_MISSING in self._rules.slips
        return At.PAGES if self._rules.lazy and not s.pages_given_up and not early else At.KILL

    def _pages(self, s: Source, between: Between) -> Steps:
        """source.until_whole"""
        yield Step(Kind.STEP, "asks for the last page", s._replace(at=At.PAGING), between.ask(Call.ARRIVED))

    def _paging(self, s: Source, between: Between) -> Steps:
        if between.reply:
            yield Step(Kind.STEP, "hears that all is there", s._replace(at=At.KILL), between.hang_up())
        else:
            why = "hears that more is to come" if between.reply is False else "times out, and asks again"
            yield Step(Kind.STEP, why, s._replace(at=At.PAGES), between.hang_up())

    def _given_up(self, s: Source, between: Between) -> Steps:
        """sources.Sources.resolve, of memory that can't get across or whose target does not answer"""
        if s.at in (At.PAGES, At.PAGING) and s.memory is Phase.RUNNING:
            told = s._replace(at=At.KILL, pages_given_up=True)
            yield Step(Kind.PERSON, "is told by a person: commit", told, between.hang_up()._replace(may_be_lost=True))

    def check_kill(self, s: Source, theirs: Pages, between: Between) -> None:
        """Whether what the running copy lacks may be thrown away."""
        if theirs is Pages.COMING and s.dump is Dump.SERVES and not between.may_be_lost:
            raise Broken("ends the frozen copy, whose memory has not got across")


class Following:
    """The target's part: it knows what has come, and holds a copy whose memory can't."""

    _rules: Rules

    def _pages_come(self, t: Target, between: Between, serves: bool) -> Steps:
        """runtime/pages.py and CRIU's daemon, whether or not there is an agent"""
        if t.pages is not Pages.COMING:
            return
        if serves:
            yield Step(Kind.STEP, "the last page comes", t._replace(pages=Pages.CAME), between)
        held = t.tasks
        if t.tasks is Tasks.RUN and Slip.RUNS_ON_ZEROS not in self._rules.slips:
            held = Tasks.STOPPED
        yield Step(Kind.FAIL, "its daemon dies", t._replace(pages=Pages.LOST, lacked=True, tasks=held), between)

    def _asked_whether_all_is_there(self, t: Target, between: Between) -> Steps:
        """targets.Targets.arrived; following.Following.look notes what can't change any more"""
        if t.slot and t.journal is Phase.RUNNING and t.pages is Pages.CAME:
            t = t._replace(pages=Pages.HERE)
        there = t.pages is Pages.HERE and (t.slot or t.journal is Phase.DONE)
        yield Step(Kind.STEP, "all is there" if there else "not all", t, between.answered(Call.ARRIVED, reply=there))

    def _ends_what_is_lost(self, t: Target, between: Between) -> Steps:
        """target.Target.forget, asked: its restart policy starts it anew"""
        ended = t._replace(does=Does.SETTLE, tasks=Tasks.DEAD, locked=False, pages=Pages.HERE)
        yield Step(Kind.STEP, "ends what lacks its memory, settles", ended, between)

    def _person_ends(self, t: Target, between: Between, word: DecisionKind) -> Steps:
        """targets.Targets.resolve, of a copy that runs and whose memory does not come"""
        if t.journal is Phase.RUNNING and t.released and t.pages not in (Pages.HERE, Pages.CAME):
            for step in self._ends_what_is_lost(t, between._replace(may_be_lost=True)):
                yield step._replace(kind=Kind.PERSON, label=f"is told by a person: {word}; {step.label}")


def after_reboot(t: Target) -> Target:
    """What was not noted is not known any more."""
    pages = t.pages if t.pages is Pages.HERE else Pages.LOST
    return t._replace(pages=pages, lacked=t.lacked or t.pages is Pages.COMING)
