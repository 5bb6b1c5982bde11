"""What a peer answers, read by an agent of another version."""

import json

import pytest

from agent.base.errors import TransferFailed
from agent.doors import peer_client
from protocol.errors import ErrorCode, ErrorInfo
from protocol.peer import Running
from protocol.status import Phase

NEWER = {
    "phases": [{"phase": "running", "at_ms": 12.5, "of_a_newer_one": True}],
    "notes": ["done"],
    "of_a_newer_one": {"any": "thing"},
}


def test_an_answer_of_a_newer_peer_is_taken_by_what_is_known_of_it() -> None:
    """After the decision nothing else will come: the source would ask for ever, beside a container that runs."""
    running = peer_client._parse(Running, json.dumps(NEWER).encode())
    assert running.notes == ("done",)
    assert [(one.phase, one.at_ms) for one in running.phases] == [(Phase.RUNNING, 12.5)]


@pytest.mark.parametrize("body", [b'{"notes": []}', b'{"phases": "soon"}', b"[]", b"{", b""])
def test_an_answer_that_lacks_what_is_needed_is_none(body: bytes) -> None:
    with pytest.raises(TransferFailed, match="not understood"):
        peer_client._parse(Running, body)


def test_a_newer_peer_s_refusal_keeps_its_code() -> None:
    info = ErrorInfo(code=ErrorCode.BUSY, message="four at a time")
    body = json.dumps(info.model_dump(mode="json") | {"of_a_newer_one": 1}).encode()
    error = peer_client._error(409, body, "b")
    assert getattr(error, "code", None) is ErrorCode.BUSY
