"""What is planned for a host that goes down: wishes where there is time, and what comes next where there is not."""

from agent.shutdown.host_plan import Going, Rates, plan

RATES = Rates(disk=100e6, link=50e6)


def steps(*going: Going, seconds: float, can_evacuate: bool = True) -> list[tuple[str, str]]:
    return [(one.one.name, one.what) for one in plan(going, seconds, RATES, can_evacuate=can_evacuate)]


def one(name: str, wish: str, mb: int, priority: int = 0) -> Going:
    return Going(name * 64, name, wish, mb * 1_000_000, priority)


def test_all_wishes_are_granted_where_there_is_time() -> None:
    found = steps(one("a", "hibernate", 100), one("b", "evacuate", 100), seconds=60)
    assert found == [("a", "hibernate"), ("b", "evacuate")]


def test_the_smaller_ones_come_first_and_a_priority_before_all() -> None:
    found = steps(one("a", "hibernate", 500), one("b", "hibernate", 10), one("c", "hibernate", 900, 1), seconds=600)
    assert [name for name, _ in found] == ["c", "b", "a"]


def test_what_has_no_time_to_move_is_hibernated_and_what_has_none_for_that_is_stopped() -> None:
    """20 s, 5 of them kept: a move of 500 MB takes 14, the next one would end at 24; writing 1 GB takes 11."""
    found = steps(*(one(name, "evacuate", 500) for name in "ab"), one("c", "hibernate", 1000), seconds=20)
    assert found == [("a", "evacuate"), ("b", "hibernate"), ("c", "stop")]


def test_without_another_host_everything_is_hibernated() -> None:
    assert steps(one("a", "evacuate", 100), seconds=60, can_evacuate=False) == [("a", "hibernate")]


def test_a_plan_says_what_it_does_to_whom_and_why_not_what_was_wished() -> None:
    [step] = plan([one("a", "evacuate", 500)], 11, RATES, can_evacuate=True)
    assert str(step) == "a: hibernate (no time to evacuate) by 6.0 s"
