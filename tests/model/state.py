"""What there is in the model: a source, a target, and what lies between them. Small, frozen, compared by value."""

from enum import StrEnum
from typing import NamedTuple

from protocol.peer import DecisionKind
from protocol.status import Phase


class Kind(StrEnum):
    """Why a step is taken: by an agent's own progress, by a person, or by a fault of a kind."""

    STEP = "step"  # progress, a message that arrives, a wait that ends, an agent that is started again
    PERSON = "person"
    CRASH = "crash"  # of an agent
    REBOOT = "reboot"  # of a host: tasks, locks and all tmpfs are gone
    DIE = "die"  # the container, by itself or by the kernel: its program ends, memory runs out
    FAIL = "fail"  # of an outside call: Docker, nft, the freezer, CRIU, the journal's disk
    CANCEL = "cancel"
    STOP = "stop"  # of an agent, in good order
    LOSE = "lose"  # a message
    DOUBLE = "double"  # a message: it arrives, and will arrive again
    BROKER = "broker"  # comes back without what it had retained
    PRUNE = "prune"  # of a journal's old ends


FAULTS = frozenset(Kind) - {Kind.STEP}


class Tasks(StrEnum):
    """Of one host's copy of the container."""

    RUN = "running"
    FROZEN = "frozen"
    STOPPED = "stopped"  # restored, each by a SIGSTOP
    WAITING = "staged"  # the runtime waits, nothing is restored
    RESTORING = "being restored"
    DEAD = "none"  # a container without tasks
    GONE = "no container"


class Call(StrEnum):
    """What a source asks of a target."""

    OFFER = "offer"
    STAGE = "stage"
    PREPARE = "prepare"
    GO = "go"
    ARRIVED = "arrived"
    FORGET = "forget"
    DISCARD = "discard"


class At(StrEnum):
    """Where the source's work stands: the line that comes next."""

    NEW = "nothing asked yet"
    DOWN = "agent down"
    FRESH = "started, journal not read yet"
    IDLE = "nobody works on it"
    # source.migrate
    EXAMINE = "preflight"
    OFFER = "offer"
    OFFERED = "waiting for the answer to the offer"
    POLICY = "restart policy"
    STAGE = "stage"
    STAGING = "waiting for staged"
    IMAGES = "room for the images"
    HOLD = "hold"
    DUMP = "dump"
    DUMPING = "dumping"
    PREPARE = "prepare"
    PREPARING = "waiting for prepared"
    DECIDE = "decide"
    MEND = "mend the journal"
    # source.finish
    GO = "go"
    GOING = "waiting for running"
    PAGES = "ask for the last page"
    PAGING = "waiting for the last page"
    KILL = "end the copy"
    REMOVE = "remove the container"
    CLEAN = "remove the images"
    FORGET = "forget"
    END = "enter DONE"
    # the undo stack, last-first; moving.took_back
    UNDO_DUMP = "undo: wait for the dump, hang up on CRIU"
    UNLOCK = "undo: unlock"
    THAW = "undo: thaw"
    UNDO_IMAGES = "undo: images"
    UNDO_POLICY = "undo: policy"
    UNDO_OFFER = "undo: tell discard"
    TOOK_BACK = "enter what became of it"
    # sources.take_back
    BACK_DUMP = "take back: hang up on CRIU, wait for the dump"
    BACK_UNLOCK = "take back: unlock"
    BACK_THAW = "take back: thaw"
    BACK_POLICY = "take back: policy"
    BACK_START = "take back: start"
    BACK_IMAGES = "take back: images"
    BACK_ENTER = "take back: enter ROLLED_BACK"
    BACK_TELL = "take back: tell discard"


class Dump(StrEnum):
    """CRIU at the source; it lives on when the agent crashes."""

    NONE = "none"
    RUNS = "runs"
    SERVES = "serves the memory of the frozen tasks"
    UNSEEN = "runs, and a recovery does not find it"
    ROUND = "takes the memory of running tasks, in a round of pre-copy"


class Pages(StrEnum):
    """The memory of the target's copy, in post-copy."""

    HERE = "all here, and noted; or it came before"
    CAME = "all here"
    COMING = "to come"
    LOST = "can't come any more"


class Source(NamedTuple):
    """One host as the source of the migration."""

    at: At = At.NEW
    memory: Phase | None = None
    """The run's phase; None where there is no run."""
    stranded: bool = False
    """An undo step has failed."""
    outbox: DecisionKind | None = None
    """The decision to be retained at the broker, said again after each reconnect."""
    # the journal
    journal: Phase | None = None
    noted: bool = False
    """The record has the offer."""
    given_up: bool = False
    """The record has that a person has said commit."""
    pages_given_up: bool = False
    """The record has that a person has said the same of memory that does not get across."""
    # the host
    tasks: Tasks = Tasks.RUN
    locked: bool = False
    policy: bool = True
    """The container has its own restart policy; dockerd starts it at boot."""
    images: bool = False
    dump: Dump = Dump.NONE

    @property
    def up(self) -> bool:
        return self.at is not At.DOWN

    @property
    def runs(self) -> bool:
        """Its tasks can run and be heard."""
        return self.tasks is Tasks.RUN and not self.locked


class Does(StrEnum):
    """What the target does under the migration's lock."""

    DOWN = "agent down"
    FRESH = "started, journal not read yet"
    FREE = "nothing"
    CREATE = "create"
    STAGE = "stage"
    RESTORE = "restore"
    GO = "go"
    UNLOCK = "unlock"
    CONTINUE = "SIGCONT"
    NOTE = "note that it runs"
    SETTLE = "settle: clear the hand-over"
    POLICY = "settle: restart policy"
    START = "settle: start what has ended"
    END = "enter DONE"
    REMOVE = "discard: the container"
    SWEEP = "discard: the hand-over"
    DISCARDED = "enter DISCARDED"


class Waiting(StrEnum):
    """A discard that waits for the lock, and on whose word."""

    NONE = "none"
    WORD = "the source's or a person's"
    OWN = "its own"


class Target(NamedTuple):
    """One host as the target of the migration."""

    does: Does = Does.FREE
    slot: bool = False
    asked: bool = False
    """What it does was asked for over the link, and is answered there."""
    staged: bool = False
    """This agent has staged it: it holds the hand-over, and awaits dockerd's start."""
    waiting: Waiting = Waiting.NONE
    heard: DecisionKind | None = None
    """The answer to its own question, on its way."""
    # the journal
    journal: Phase | None = None
    released: bool = False
    # the host
    tasks: Tasks = Tasks.GONE
    locked: bool = False
    policy: bool = False
    hand_over: bool = False
    pages: Pages = Pages.HERE
    lacked: bool = False
    """Some of its memory never came, whatever it believes itself; nobody reads this but the invariants."""

    @property
    def up(self) -> bool:
        return self.does is not Does.DOWN

    @property
    def runs(self) -> bool:
        return self.tasks is Tasks.RUN and not self.locked

    @property
    def alive(self) -> bool:
        """There is a restored copy."""
        return self.tasks in (Tasks.STOPPED, Tasks.RUN)


class Between(NamedTuple):
    """The link, the broker, and what persons have said."""

    requests: frozenset[Call] = frozenset()
    """In flight; what is doubled stays here when it arrives."""
    call: Call | None = None
    """The one the source waits on; an answer to any other finds its connection closed."""
    reply: bool | None = None
    """The answer, on its way: done, or an error."""
    retained: DecisionKind | None = None
    person_gave_up: bool = False
    """A person has said commit at the source, which ends its copy unconfirmed."""
    may_be_two: bool = False
    """A person has said what may make the container run on both hosts, and was told so."""
    may_be_lost: bool = False
    """A person has said what may lose it, and was told so."""

    def ask(self, call: Call) -> "Between":
        return self._replace(requests=self.requests | {call}, call=call, reply=None)

    def tell(self, call: Call) -> "Between":
        """Nobody minds the answer."""
        return self._replace(requests=self.requests | {call}, call=None, reply=None)

    def without(self, inert: frozenset[Call], deaf: bool) -> "Between":
        """Leave out what can change nothing any more at the target, but for what its sender still waits on."""
        idle = (self.requests & inert) - {self.call}
        retained = None if deaf else self.retained
        if not idle and retained is self.retained:
            return self
        return self._replace(requests=self.requests - idle, retained=retained)

    def hang_up(self) -> "Between":
        return self._replace(call=None, reply=None)

    def answered(self, call: Call, reply: bool) -> "Between":
        return self._replace(reply=reply) if self.call is call and self.reply is None else self


class Step(NamedTuple):
    """One step of one side, and what it leaves."""

    kind: Kind
    label: str
    side: Source | Target
    between: Between
