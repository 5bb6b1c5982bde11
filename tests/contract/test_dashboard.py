"""The dashboard in Chromium, with a real broker: what hosts say shows, is only text, and the account decides."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.contract.conftest import Mosquitto, free_port
from tests.contract.dashboard_support import for_everybody, needs_chromium, opened, served
from tests.contract.dashboard_words import (
    MOVE,
    Connect,
    answer,
    asked,
    browser,
    container_id,
    say_container,
    say_host,
    say_move,
    signed_in,
    web,
)

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]
__all__ = ["browser", "web"]  # fixtures

HOSTILE = '<img src=x onerror="document.title=`taken`"><script>document.title="taken"</script>'


async def test_what_comes_from_the_broker_is_text_and_never_markup(
    web: tuple[Mosquitto, str], stranger: Connect, browser: Browser
) -> None:
    mosquitto, url = web
    async with served(url) as address, stranger(mosquitto) as client, opened(browser, address) as page:
        await say_host(client, "node-a", engine={"docker": HOSTILE, "criu": HOSTILE})
        await say_host(client, "node-b")
        await say_host(client, HOSTILE.replace("/", "").replace("#", ""))
        await say_container(client, "node-a", 1, HOSTILE, image=HOSTILE, state=HOSTILE, health=HOSTILE)
        error = {"code": "internal", "message": HOSTILE}
        await say_move(client, HOSTILE, 1, HOSTILE, part=HOSTILE, strategy=HOSTILE, error=error)
        await client.send("transship/v1/hosts/node-a/status/x", {"host": 3})
        for nonsense in (b"{", b"[]", b'"text"', b"\xff", b'{"memory_bytes": "many", "engine": 7, "online": "yes"}'):
            await client.send("transship/v1/hosts/node-c/status", nonsense, retain=True)
        await signed_in(page)
        await say_move(client, "done", 2, HOSTILE, report={"phases": [7, {"phase": HOSTILE}], "blackout_ms": HOSTILE})
        await client.send("transship/v1/hosts/node-a/events", {"kind": HOSTILE, "container": HOSTILE, "at": HOSTILE})
        await expect(page.locator(".card strong")).to_have_text(HOSTILE)
        await expect(page.locator("#events .container")).to_have_text(HOSTILE)
        await expect(page.locator(".move-row .title")).to_contain_text(HOSTILE)
        await expect(page.locator(".move-row")).to_have_attribute("data-phase", "done")
        assert await page.locator("img, #main script").count() == 0
        assert await page.title() == "transship"


async def test_the_page_may_load_nothing_from_elsewhere_and_no_markup_from_text(
    web: tuple[Mosquitto, str], browser: Browser
) -> None:
    async with served(web[1]) as address, opened(browser, address, blocked="TrustedHTML") as page:
        await expect(page.get_by_label("Address")).to_have_value(web[1])
        tries = await page.evaluate(
            """async () => {
                let html = "";
                try { document.body.innerHTML = "<b>x</b>" } catch (error) { html = error.name }
                return [html, document.querySelectorAll("[src^=http], link[href^=http]").length]
            }"""
        )
        assert tries == ["TypeError", 0]


async def test_an_account_that_may_not_command_sees_no_buttons_and_one_that_may_moves(
    start_mosquitto: Callable[..., Mosquitto], stranger: Connect, browser: Browser, tmp_path: Path
) -> None:
    acl = tmp_path / "acl"
    acl.write_text(
        "topic readwrite #\nuser viewer\ntopic read transship/v1/#\ntopic readwrite transship/v1/replies/#\n"
        "user mover\ntopic readwrite #\n"
    )
    port = free_port()
    mosquitto = start_mosquitto(
        f"user root\nallow_anonymous true\nacl_file {acl}\nlistener {port} 127.0.0.1\nprotocol websockets\n"
    )
    async with served(f"ws://127.0.0.1:{port}") as address, stranger(mosquitto) as client:
        await client.subscribe("transship/v1/hosts/+/command")
        for name in ("node-a", "node-b"):
            await say_host(client, name)
        await say_container(client, "node-a", 1, "web")

        async with opened(browser, f"{address}#user=viewer&password=x") as page:
            await expect(page.locator(".card strong")).to_have_text("web")
            await expect(page.locator("#state")).to_have_text("connected as viewer")
            for name in ("node-a", "node-b"):
                await expect(page.locator(f'[data-host="{name}"]')).to_have_attribute("data-may", "look")
            for name in ("^Move ", "^Evacuate", "^Cordon"):
                await expect(page.get_by_role("button", name=re.compile(name))).to_have_count(0)
            assert "password" not in page.url, "a password does not stay in the address bar"

        async with opened(browser, f"{address}#user=mover&password=x") as page:
            button = page.get_by_role("button", name="Move web from node-a")
            await expect(button).to_be_visible()
            # by keyboard alone: to the button, into the dialog, out of it, back in, and go
            await button.focus()
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("dialog")).to_be_visible()
            await page.keyboard.press("Escape")
            await expect(page.get_by_role("dialog")).to_be_hidden()
            await expect(button).to_be_focused()
            await page.keyboard.press("Enter")
            await expect(page.get_by_label("To", exact=True)).to_be_focused()
            for key in ("Tab", "Tab", "Tab", "Enter"):
                await page.keyboard.press(key)
            said, back = await asked(client)
            assert (said["kind"], said["container"], said["to"]) == ("migrate", container_id(1), "node-b")
            await answer(client, back, kind="failed", error={"code": "busy", "message": "not now", "hint": "later"})
            await expect(page.locator("#said")).to_have_text("Moving web to node-b: not now. later")


async def test_a_card_travels_with_its_container_and_the_blackout_is_to_scale(
    web: tuple[Mosquitto, str], stranger: Connect, browser: Browser
) -> None:
    mosquitto, url = web
    async with served(url) as address, stranger(mosquitto) as client, opened(browser, address) as page:
        for name in ("node-a", "node-b"):
            await say_host(client, name)
        await say_container(client, "node-a", 1, "web")
        await signed_in(page)
        card = page.locator('[data-host="node-a"] .card')
        await say_move(client, "copying", 1, bytes_sent=250, bytes_total=1000, rate=500, eta_s=1.5)
        await expect(card.locator(".state")).to_have_text("to node-b: copying")
        assert await card.locator("progress").evaluate("(bar) => bar.position") == 0.25
        await expect(page.locator(".move-row .what")).to_contain_text("250 B of 1.0 kB · 500 B/s · 1.50 s left")
        await say_container(client, "node-b", 2, "web", state="created")
        await say_move(client, "frozen", 2)
        await expect(page.locator('[data-host="node-b"] .card.coming')).to_be_visible()
        await expect(page.locator('[data-host="node-a"] .card.frozen')).to_be_visible()
        phases = [{"phase": name, "at_ms": at} for name, at in (("planned", 0), ("frozen", 600), ("running", 900))]
        report = {"phases": phases, "total_ms": 1000, "blackout_ms": 300, "wire_bytes": 1000}
        await client.send(f"transship/v1/hosts/node-a/containers/{container_id(1)}", b"", retain=True)
        await say_container(client, "node-b", 2, "web")
        await say_move(client, "done", 3, report=report)
        await expect(page.locator('[data-host="node-b"] .card')).to_have_attribute("data-arrived", MOVE)
        await expect(page.locator('[data-host="node-a"] .card')).to_have_count(0)
        whole = await page.locator(".timeline").bounding_box()
        black = await page.locator(".bit.blackout").bounding_box()
        assert whole is not None
        assert black is not None
        assert black["width"] / whole["width"] == pytest.approx(0.3, abs=0.03)
        assert (black["x"] - whole["x"]) / whole["width"] == pytest.approx(0.6, abs=0.03)
        await expect(page.locator(".timeline")).to_have_attribute("aria-label", re.compile("blackout 300 ms"))


async def test_what_is_known_of_a_move_beforehand_is_said_on_the_card_and_in_the_dialog(
    web: tuple[Mosquitto, str], stranger: Connect, browser: Browser
) -> None:
    mosquitto, url = web
    async with served(url) as address, stranger(mosquitto) as client, opened(browser, address) as page:
        for name in ("node-a", "node-b", "node-c"):
            await say_host(client, name)
        peers = {
            "node-b": {"verdict": "no", "reasons": ["port-taken"]},
            "node-c": {"verdict": "yes", "blackout_ms": {"cold": 450, "postcopy": 350}},
        }
        await say_container(client, "node-a", 1, "web", outlook={"reasons": [], "peers": peers})
        nowhere = {"reasons": ["tty"], "peers": {"node-b": {"verdict": "no"}}}
        await say_container(client, "node-a", 2, "shell", outlook=nowhere)
        await say_move(client, "rolled-back", 1, "web", rehearsal=True)
        await signed_in(page)
        outlook = page.locator(".card .outlook")
        await expect(outlook).to_have_text(["can't move: tty", "could move to node-c, blackout from about 350 ms"])
        await page.get_by_role("button", name="Move web from node-a").click()
        await expect(page.get_by_label("To", exact=True)).to_have_value("node-c")
        await expect(page.locator("#ask-outlook")).to_have_text("Expected blackout: cold 450 ms, postcopy 350 ms.")
        await page.get_by_label("To", exact=True).select_option("node-b")
        await expect(page.locator("#ask-outlook")).to_have_text("It would be refused: port-taken.")
        row = page.locator(".move-row")
        await expect(row.locator(".title")).to_have_text("web: node-a → node-b (rehearsal)")
        await expect(row).not_to_have_class(re.compile("failed"))


async def test_who_wishes_no_motion_sees_none(web: tuple[Mosquitto, str], stranger: Connect, browser: Browser) -> None:
    mosquitto, url = web
    async with (
        served(url) as address,
        stranger(mosquitto) as client,
        opened(browser, address, reduced_motion="reduce") as page,
    ):
        for name in ("node-a", "node-b"):
            await say_host(client, name)
        await say_container(client, "node-a", 1, "web")
        await signed_in(page)
        await say_move(client, "copying", 1)
        await expect(page.locator('[data-host="node-a"] .card.moving')).to_be_visible()
        await page.evaluate("() => { Element.prototype.animate = () => { window.animated = true } }")
        await say_container(client, "node-b", 2, "web")
        await say_move(client, "running", 2)
        await expect(page.locator('[data-host="node-b"] .card')).to_have_attribute("data-arrived", MOVE)
        moved = "[window.animated === true, document.getAnimations().map((each) => each.animationName ?? each.id)]"
        assert await page.evaluate(moved) == [False, []]


async def test_a_thousand_containers_on_a_phone_in_the_dark(
    web: tuple[Mosquitto, str], stranger: Connect, browser: Browser
) -> None:
    mosquitto, url = web
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}
    async with served(url) as address, stranger(mosquitto) as client, opened(browser, address, **phone) as page:

        async def say(number: int, **more: Any) -> None:
            of, name = f"node-{'abcd'[number % 4]}", f"service-{number:04}-with-a-long-name"
            project = {"com.docker.compose.project": f"shop-{number % 5}"}
            await say_container(client, of, number, name, labels=project, **more)

        for first in range(0, 1000, 10):
            await asyncio.gather(*(say(number) for number in range(first, first + 10)))
        for name in "abcd":
            await say_host(client, f"node-{name}")
        await page.evaluate(LONG_TASKS)
        await signed_in(page)
        await expect(page.locator(".card")).to_have_count(1000)
        await expect(page.locator("#found")).to_have_text("4 hosts, 1000 containers")
        # a change shows at once, and the page stays usable meanwhile; the bounds are for a slow machine that is busy
        assert max(await page.evaluate("window.long"), default=0) < 5000
        await page.evaluate("window.long.length = 0")
        await say(0, state="paused")
        await expect(page.locator(".card.is-paused")).to_have_count(1)
        assert max(await page.evaluate("window.long"), default=0) < 2000
        # one stop of the Tab key a host; the arrow keys go on from there
        assert await page.locator('.card button[tabindex="0"]:visible').count() == 4
        await page.locator('[data-host="node-b"] .card button[tabindex="0"]').focus()
        for key, name in (("ArrowDown", "0005"), ("End", "0997"), ("ArrowUp", "0993"), ("Home", "0001")):
            await page.keyboard.press(key)
            await expect(page.get_by_role("button", name=f"Move service-{name}-")).to_be_focused()
        await page.get_by_label("Group").select_option("project")
        await expect(page.locator('[data-host="node-b"] .group')).to_have_text(
            [f"shop-{each} (50)" for each in range(5)]
        )
        await expect(page.locator('[data-host="node-b"] .group + .card').first).to_contain_text("service-0005")
        await page.get_by_label("Show").select_option("other")
        await expect(page.locator(".card:visible")).to_have_count(1)
        await expect(page.locator(".group:visible")).to_have_text("shop-0 (1)")
        await page.get_by_label("Show").select_option("")
        await page.get_by_label("Find").fill("service-0999")
        await expect(page.locator(".card:visible")).to_have_count(1)
        await expect(page.locator("#found")).to_have_text("1 of 1000 containers")
        await page.get_by_label("Group").select_option("")
        await expect(page.locator(".group")).to_have_count(0)
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, f"it scrolls sideways: {wide} px"
        dark = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert sum(map(int, re.findall(r"\d+", dark)[:3])) < 150, dark
        await for_everybody(page)


LONG_TASKS = """() => {
    window.long = [];
    const note = (list) => window.long.push(...list.getEntries().map((each) => each.duration));
    new PerformanceObserver(note).observe({ type: "longtask" });
}"""


async def test_the_page_comes_back_when_the_broker_does(
    web: tuple[Mosquitto, str], stranger: Connect, browser: Browser
) -> None:
    mosquitto, url = web
    async with served(url) as address, opened(browser, address) as page:
        async with stranger(mosquitto) as client:
            await say_host(client, "node-a")
            for number, name in enumerate(("web", "gone-meanwhile")):
                await say_container(client, "node-a", number, name)
        await signed_in(page)
        await expect(page.locator(".card")).to_have_count(2)
        mosquitto.stop(forget=True)
        await expect(page.locator("#state")).to_contain_text("the broker is away")
        await expect(page.locator(".card")).to_have_count(2)
        mosquitto.start()
        await expect(page.locator("#state")).to_have_text("connected as someone")
        async with stranger(mosquitto) as client:  # as agents do: what is so still is said again
            await say_container(client, "node-a", 0, "web")
            await expect(page.locator(".card strong")).to_have_text("web")


async def test_a_broker_that_is_not_there_is_said_and_can_be_corrected(browser: Browser) -> None:
    async with served(f"ws://127.0.0.1:{free_port()}") as address, opened(browser, address) as page:
        await page.get_by_role("button", name="Connect").click()
        await expect(page.get_by_role("alert")).to_have_text(re.compile("does not answer|failed|error", re.IGNORECASE))
        await expect(page.get_by_label("Address")).to_be_editable()
