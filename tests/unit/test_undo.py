"""What the undo stack promises: every step runs, last-first, whatever fails, hangs or is cancelled."""

import asyncio

import pytest

from agent.base.undo import Undo


class Broken(Exception):
    pass


class Trail:
    """Steps that tell in which order they ran, and what they did."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.entered = asyncio.Event()
        self.go = asyncio.Event()

    async def step(self, name: str) -> None:
        self.ran.append(name)

    async def fails(self, name: str) -> None:
        self.ran.append(name)
        raise RuntimeError("no such container")

    async def waits(self, name: str) -> None:
        self.entered.set()
        await self.go.wait()
        self.ran.append(name)

    async def hangs(self, name: str) -> None:
        self.ran.append(name)
        self.entered.set()
        await asyncio.Event().wait()

    async def clings(self, name: str) -> None:
        """Does not let itself be cancelled until it is told to go."""
        self.ran.append(name)
        self.entered.set()
        while not self.go.is_set():
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                continue


async def test_success_takes_nothing_back() -> None:
    trail = Trail()
    async with Undo() as undo:
        undo.first("a", trail.step, "a")
    assert trail.ran == []
    assert undo.failed == []


async def test_error_takes_steps_back_last_first_and_leaves_unchanged() -> None:
    trail = Trail()
    error = Broken("the story failed")
    with pytest.raises(Broken) as caught:
        async with Undo() as undo:
            undo.first("a", trail.step, "a")
            undo.first("b", trail.step, "b")
            undo.first("c", trail.step, "c")
            raise error
    assert caught.value is error
    assert trail.ran == ["c", "b", "a"]
    assert not hasattr(error, "__notes__")


async def test_detached_steps_are_never_taken() -> None:
    trail = Trail()
    with pytest.raises(Broken):
        async with Undo() as undo:
            undo.first("a", trail.step, "a")
            undo.detach()
            undo.first("b", trail.step, "b")
            raise Broken
    assert trail.ran == ["b"]


async def test_failing_step_does_not_stop_the_others_and_becomes_a_note() -> None:
    trail = Trail()
    with pytest.raises(Broken) as caught:
        async with Undo() as undo:
            undo.first("a", trail.step, "a")
            undo.first("thaw it", trail.fails, "b")
            undo.first("c", trail.step, "c")
            raise Broken
    assert trail.ran == ["c", "b", "a"]
    assert undo.failed == ["thaw it: no such container"]
    assert caught.value.__notes__ == ["undo failed: thaw it: no such container"]


async def test_step_that_fails_before_its_first_await_counts_as_failed() -> None:
    def not_even_a_coroutine() -> None:
        raise OSError("disk gone")

    trail = Trail()
    with pytest.raises(Broken):
        async with Undo() as undo:
            undo.first("a", trail.step, "a")
            undo.first("b", not_even_a_coroutine)  # type: ignore[arg-type]
            raise Broken
    assert trail.ran == ["a"]
    assert undo.failed == ["b: disk gone"]


async def test_hanging_step_is_given_up_at_its_deadline_and_the_others_run() -> None:
    trail = Trail()
    with pytest.raises(Broken):
        async with Undo(step_seconds=0.05) as undo:
            undo.first("a", trail.step, "a")
            undo.first("b", trail.hangs, "b")
            raise Broken
    assert trail.ran == ["b", "a"]
    assert undo.failed == ["b: took longer than 0.05 s"]


async def test_step_that_ignores_its_cancel_is_left_behind_and_the_others_run() -> None:
    trail = Trail()
    with pytest.raises(Broken):
        async with Undo(step_seconds=0.05, grace_seconds=0.05) as undo:
            undo.first("a", trail.step, "a")
            undo.first("b", trail.clings, "b")
            raise Broken
    assert trail.ran == ["b", "a"]
    assert undo.failed == ["b: took longer than 0.05 s, and still goes on"]
    [left] = [task for task in asyncio.all_tasks() if task.get_name() == "undo: b"]
    trail.go.set()
    await asyncio.wait_for(left, 5)


async def test_step_that_is_itself_cancelled_does_not_stop_the_others() -> None:
    """A step may await a task of the story that has been cancelled: its CancelledError is not ours."""
    trail = Trail()
    gone = asyncio.create_task(asyncio.Event().wait())
    gone.cancel()

    async def awaits_a_cancelled_task() -> None:
        await gone

    with pytest.raises(Broken):
        async with Undo() as undo:
            undo.first("a", trail.step, "a")
            undo.first("b", awaits_a_cancelled_task)
            raise Broken
    assert trail.ran == ["a"]
    assert undo.failed == ["b: was cancelled"]


async def story(trail: Trail, started: asyncio.Event) -> None:
    async with Undo() as undo:
        undo.first("a", trail.step, "a")
        undo.first("b", trail.waits, "b")
        started.set()
        await asyncio.Event().wait()


async def test_cancel_takes_steps_back_and_comes_out() -> None:
    trail, started = Trail(), asyncio.Event()
    task = asyncio.create_task(story(trail, started))
    await started.wait()
    task.cancel()
    await trail.entered.wait()
    trail.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert trail.ran == ["b", "a"]


async def test_second_and_third_cancel_wait_for_the_steps() -> None:
    trail, started = Trail(), asyncio.Event()
    task = asyncio.create_task(story(trail, started))
    await started.wait()
    task.cancel()
    await trail.entered.wait()
    for _ in range(2):
        task.cancel()
        done, _pending = await asyncio.wait({task}, timeout=0.02)
        assert not done
    trail.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert trail.ran == ["b", "a"]


async def test_cancel_while_an_error_is_taken_back_comes_out_with_the_error_as_its_cause() -> None:
    trail = Trail()
    error = Broken("first")

    async def fails() -> None:
        async with Undo() as undo:
            undo.first("a", trail.fails, "a")
            undo.first("b", trail.waits, "b")
            raise error

    task = asyncio.create_task(fails())
    await trail.entered.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=0.02)
    trail.go.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.__cause__ is error
    assert error.__notes__ == ["undo failed: a: no such container"]
    assert trail.ran == ["b", "a"]


async def test_timeout_around_the_story_still_becomes_a_timeout() -> None:
    trail, started = Trail(), asyncio.Event()
    trail.go.set()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await story(trail, started)
    assert trail.ran == ["b", "a"]


async def test_timeout_that_fires_during_the_undo_waits_for_it() -> None:
    trail = Trail()
    asyncio.get_running_loop().call_later(0.1, trail.go.set)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.02):
            async with Undo() as undo:
                undo.first("a", trail.step, "a")
                undo.first("b", trail.waits, "b")
                raise Broken
    assert trail.ran == ["b", "a"]
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


async def test_task_group_that_fails_elsewhere_gets_the_steps_run() -> None:
    trail, started = Trail(), asyncio.Event()
    trail.go.set()

    async def fails() -> None:
        await started.wait()
        raise Broken

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(story(trail, started))
            group.create_task(fails())
    assert [type(error) for error in caught.value.exceptions] == [Broken]
    assert trail.ran == ["b", "a"]


def test_closing_the_event_loop_ends_the_undo_and_says_which_steps_were_not_done() -> None:
    """The last resort: asyncio.run cancels every task; the journal has what was not taken back."""
    trails: list[Trail] = []
    undos: list[Undo] = []

    async def abandoned() -> None:
        trails.append(Trail())
        async with Undo() as undo:
            undos.append(undo)
            undo.first("a", trails[0].step, "a")
            undo.first("b", trails[0].hangs, "b")
            raise Broken

    async def main() -> None:
        main.task = asyncio.create_task(abandoned())  # type: ignore[attr-defined]
        await asyncio.wait({main.task}, timeout=0.05)  # type: ignore[attr-defined]

    asyncio.run(main())
    assert trails[0].ran == ["b"]
    assert undos[0].failed == ["b: not done, the agent was ended", "a: not done, the agent was ended"]
