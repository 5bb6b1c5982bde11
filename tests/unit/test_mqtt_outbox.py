"""What an agent still has to say: newest word only, in order, and again after each reconnect."""

import time

import pytest

from agent.doors.outbox import Listen, Outbox, Publish


@pytest.fixture
def outbox() -> Outbox:
    return Outbox(limit=100)


def drain(outbox: Outbox) -> list[str]:
    """Everything that waits, sent and acknowledged."""
    sent = []
    while taken := outbox.take():
        key, item = taken
        sent.append(
            f"{item.topic}={item.payload.decode()}" if isinstance(item, Publish) else f"{item.how} {item.pattern}"
        )
        outbox.done(key, item)
    return sent


def test_newest_word_takes_the_place_of_the_older_one(outbox: Outbox) -> None:
    outbox.hold("a", b"1")
    outbox.hold("b", b"1")
    outbox.hold("a", b"2")
    assert drain(outbox) == ["a=2", "b=1"]


def test_word_that_comes_while_the_older_one_is_in_flight_is_sent_after_it(outbox: Outbox) -> None:
    outbox.hold("a", b"1")
    taken = outbox.take()
    assert taken is not None
    outbox.hold("a", b"2")
    assert outbox.take() is None  # never two of one topic under way
    assert not outbox.filled.is_set()
    outbox.done(*taken)
    assert outbox.filled.is_set()
    assert drain(outbox) == ["a=2"]


def test_messages_that_are_not_retained_keep_their_order_and_number(outbox: Outbox) -> None:
    for payload in (b"accepted", b"finished"):
        outbox.say(Publish("replies", payload))
    assert drain(outbox) == ["replies=accepted", "replies=finished"]


def test_after_a_reconnect_it_listens_first_then_says_all_it_holds_then_what_waits(outbox: Outbox) -> None:
    outbox.listen("commands")
    outbox.hold("a", b"1")
    outbox.hold("b", b"1")
    assert len(drain(outbox)) == 3
    outbox.say(Publish("replies", b"finished"))
    outbox.hold("b", b"")
    outbox.disconnected()
    outbox.reconnected()
    assert drain(outbox) == ["on commands", "a=1", "replies=finished", "b="]


def test_what_was_in_flight_when_the_connection_broke_is_sent_again(outbox: Outbox) -> None:
    outbox.say(Publish("replies", b"finished"))
    outbox.take()
    outbox.disconnected()
    outbox.reconnected()
    assert drain(outbox) == ["replies=finished"]


def test_cleared_topic_is_not_held(outbox: Outbox) -> None:
    outbox.hold("a", b"1")
    outbox.hold("a", b"")
    assert drain(outbox) == ["a="]
    assert outbox.held == {}


def test_events_do_not_wait_and_are_counted(outbox: Outbox) -> None:
    outbox.say(Publish("events", b"1", lasting=False))
    outbox.say(Publish("replies", b"1"))
    outbox.disconnected()
    assert outbox.dropped == 1
    assert drain(outbox) == ["replies=1"]


def test_what_exceeds_the_limit_is_dropped_and_counted() -> None:
    outbox = Outbox(limit=2)
    for number in range(5):
        outbox.say(Publish("replies", str(number).encode()))
    outbox.hold("a", b"1")  # never dropped: it is bounded by what there is
    assert outbox.dropped == 3
    assert drain(outbox) == ["replies=0", "replies=1", "a=1"]


def test_word_past_its_expiry_is_not_said_again(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox.hold("short", b"1", expiry=10)
    outbox.hold("long", b"1", expiry=1000)
    outbox.hold("for ever", b"1")
    left = [outbox.held[topic].seconds_left() for topic in ("short", "long", "for ever")]
    assert left == [10, 1000, None]
    drain(outbox)
    now = time.monotonic()
    monkeypatch.setattr("agent.doors.outbox.time.monotonic", lambda: now + 100)
    outbox.reconnected()
    assert drain(outbox) == ["long=1", "for ever=1"]
    assert outbox.held["long"].seconds_left() == 900


def test_listening_can_be_stopped_and_is_then_not_taken_up_again(outbox: Outbox) -> None:
    outbox.listen("a")
    outbox.sweep("b")
    outbox.stop_listening("a")
    outbox.stop_listening("never")
    assert drain(outbox) == ["off a", "sweep b"]
    outbox.reconnected()
    assert drain(outbox) == ["sweep b"]
    assert Listen("a", "on") == Listen("a", "on")


def test_emptied_tells_whether_everything_is_acknowledged(outbox: Outbox) -> None:
    assert outbox.emptied.is_set()
    outbox.hold("a", b"1")
    taken = outbox.take()
    assert taken is not None
    assert not outbox.emptied.is_set()
    outbox.done(*taken)
    assert outbox.emptied.is_set()
