"""The model's order of effects is the product's: when that changes there, these tests say where to look here.

Of each function that the model mirrors, the calls that matter, in the order of the source text. A change that is
wanted: first mirror it in source.py or target.py and run test_model.py, then write the new order down here.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from agent.migration import creating, held, leaving, moving, restarting, source
from agent.migration.following import Following
from agent.migration.run import Run
from agent.migration.sources import Sources
from agent.migration.target import Target
from agent.migration.targets import Targets
from agent.network import quiet
from agent.strategy.cold import Cold
from agent.strategy.dump import Dump
from agent.strategy.postcopy import PostCopy
from agent.strategy.precopy import PreCopy
from agent.strategy.predump import PreDumps

ORDER: list[tuple[Callable[..., Any], str]] = [
    (
        source.migrate,
        (
            "first(leaving.tell_discard) offer enter(Phase.RESERVED) first(leaving.put_policy_back) "
            "set_restart_policy create stage enter(Phase.COPYING) first first(strategy.release) "
            "copy_while_running note_down first(let_go) hold enter(Phase.FROZEN) dump_and_send prepare "
            "enter(Phase.PREPARED) commit finish"
        ),
    ),
    (
        source.finish,
        (
            "hang_up go_until_answered enter(Phase.RUNNING) until_whole stop_serving drop end_copy release tell_forget "
            "enter(Phase.DONE)"
        ),
    ),
    (source.hold, "hold"),
    (source.hang_up, "hang_up"),
    # It may thaw and begin anew, for connections that come at the last moment or a moment that is not good for a dump;
    # when it returns both are done. The first freeze is that of a container on the host's own network, which nobody may
    # lock.
    (quiet.hold, "freeze thaw shut_gate lock freeze shut_gate lock shut_gate thaw"),
    (quiet.hang_up, "lock_all_but_the_last_word drop lock"),
    (source.let_go, "stop_serving release"),
    (source.release, "unlock thaw"),
    (source.commit, "to_the_end decide detach"),
    (source.go_until_answered, "go"),
    (Run.enter, "move _put"),
    (Run.decide, "enter(Phase.COMMITTED) until_it_works _put"),
    (Run._put, "put to_the_end"),
    (Dump.start, "start"),
    (Dump.images_written, "over over"),
    (Dump.take, "images_written to_the_end"),
    (Dump.turn_away, "shut over scripts_in"),
    (Cold.stop_serving, "turn_away"),
    (leaving.end_copy, "kill_frozen remove"),
    (leaving.tell_forget, "forget"),
    (leaving.wait_for_left_behind_dump, "criu_in criu_in"),
    (leaving.put_policy_back, "set_back start_as_docker_would"),
    # where dockerd has missed its end it is told; what is stopped has ended
    (restarting.set_back, "set_restart_policy stop set_restart_policy"),
    (restarting.start_as_docker_would, "start"),
    (Sources._story, "note_down note_down"),
    (Sources._work, "_story_to_its_end took_back _again forget _until_ended"),
    (Sources._story_to_its_end, "_story may_cancel _until_ended"),
    # a rehearsal that went well, then everything else: the model has one way for both, into the same phase
    (moving.took_back, "may_cancel enter(Phase.ROLLED_BACK) enter"),
    (Sources._changed, "decided decision"),
    (Sources.resolve, "note_down _resolved"),
    (Sources._resolved, "_again _until_ended"),
    (Sources._until_ended, "_again forget"),
    (Sources._again, "until_it_works"),
    (Sources.decision, "decision decision"),
    (
        Sources._take_up,
        "on_restart enter(Phase.REFUSED if run.phase is Phase.PLANNED else Phase.ROLLED_BACK) finish take_back",
    ),
    (
        Sources.take_back,
        "stop_serving wait_for_left_behind_dump release put_policy_back release enter(Phase.ROLLED_BACK) tell_discard",
    ),
    (Targets._take, "record_beginning"),
    (Targets.go, "go _settle"),
    (Targets.forget, "_settle"),
    (Targets.discard, "_throw_away"),
    (Targets._settle, "forget _remove"),
    (Targets._throw_away, "stop_waiting may_run may_expire discard _remove"),
    (Targets._watch, "may_expire _throw_away _ask _settle"),
    (Targets._ask, "answer_to_asking go _settle _throw_away"),
    (Targets.recover, "_take_up"),
    (Targets._take_up, "on_restart _throw_away _settle _ask"),
    (Targets.resolve, "_settle go _settle _throw_away"),
    (Targets.close, "may_expire _throw_away"),
    (Target.create, "create"),
    (creating.create, "note_down _create note_down"),
    (creating._create, "create"),
    (Target.stage, "lay_out start enter(Phase.STAGED)"),
    (Target.prepare, "enter(Phase.RESTORING) say _proved enter(Phase.PREPARED)"),
    (Target._proved, "prove freeze"),
    (Target.go, "_check_copy enter(Phase.RUNNING) _let_run note_down look"),
    (Target._check_copy, "enter(Phase.STRANDED)"),
    (Target._let_run, "_release"),
    (Target._release, "unlock release thaw"),
    (Target.settle, "_clear_hand_over set_back start_as_docker_would"),
    (Target.forget, "go look give_up settle enter(Phase.DONE)"),
    (Following.look, "note_down hold note_down"),
    (Following.give_up, "note_down end"),
    (Following.end, "hold stop kill_frozen"),
    (PostCopy.stop_serving, "shut stop criu_in"),
    (PreCopy.copy_while_running, "start"),
    (PreCopy.dump_and_send, "take_back dump_and_send"),
    (PreCopy.stop_serving, "stop_serving stop_serving"),
    (PreCopy.release, "take_back over release"),
    (PreDumps.round, "to_the_end"),
    (Target.discard, "_end_copy remove _clear_hand_over take_back enter(Phase.DISCARDED)"),
    (Target._end_copy, "stop say end"),
    (held.end, "criu_in kill drop unmount_all kill_frozen"),
]

EFFECTS = frozenset(name for _, order in ORDER for name in re.findall(r"(\w+)(?:\([^)]*\))?", order))
"""Calls that matter in one function matter in all."""


def effects(function: Callable[..., Any]) -> str:
    """The calls of a function that matter, in order; with a phase or a word that they are given."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    calls.sort(key=lambda node: (node.func.end_lineno or 0, node.func.end_col_offset or 0))
    return " ".join(_shown(call) for call in calls if _name(call.func) in EFFECTS)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _shown(call: ast.Call) -> str:
    given = [ast.unparse(argument) for argument in _words(call)]
    return _name(call.func) + (f"({','.join(given)})" if given else "")


def _words(call: ast.Call) -> Iterator[ast.expr]:
    """What is pushed on the undo stack; phases."""
    if _name(call.func) == "first" and len(call.args) > 1:
        yield call.args[1]
    yield from (argument for argument in call.args if ast.unparse(argument).startswith("Phase."))


@pytest.mark.parametrize(("function", "order"), ORDER, ids=lambda one: getattr(one, "__qualname__", ""))
def test_the_product_does_it_in_the_order_that_the_model_mirrors(function: Callable[..., Any], order: str) -> None:
    assert effects(function) == order, "look whether the model still mirrors it, then write the new order down here"
