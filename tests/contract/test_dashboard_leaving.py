"""The dashboard's buttons for many containers at once: the plan first, then the command, and how far it is."""

from typing import Any

import pytest
from playwright.async_api import Browser, expect

from tests.contract.conftest import Mosquitto
from tests.contract.dashboard_support import for_everybody, needs_chromium, opened, served
from tests.contract.dashboard_words import (
    MOVE,
    NOW,
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

EVACUATION = "e-0123456789abcdef"


def evacuee(number: int, name: str, state: str, **more: Any) -> dict[str, Any]:
    row = {"container": name, "container_id": container_id(number), "state": state, "to": "node-b"}
    return {**row, "memory_bytes": 64 << 20, "predicted_s": 3.2, "why": "the most room", **more}


def evacuation(state: str, sequence: int, *rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    known = {"id": EVACUATION, "kind": "evacuate", "host": "node-a", "state": state, "sequence": sequence}
    return {**known, "started_at": NOW, "at": NOW, "parallel": 2, "containers": rows, **more}


async def test_an_evacuation_is_planned_first_then_begun_and_followed(
    web: tuple[Mosquitto, str], stranger: Connect, browser: Browser
) -> None:
    mosquitto, url = web
    async with served(url) as address, stranger(mosquitto) as client, opened(browser, address) as page:
        await client.subscribe("transship/v1/hosts/+/command")
        for name in ("node-a", "node-b"):
            await say_host(client, name, migrations_limit=4)
        for number, name in enumerate(("db", "web", "tty")):
            await say_container(client, "node-a", number, name)
        await signed_in(page)
        button = page.get_by_role("button", name="Evacuate node-a")
        go = page.get_by_role("button", name="Evacuate", exact=True)
        await button.press("Enter")
        await expect(page.get_by_role("button", name="Show the plan")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(button).to_be_focused()
        await button.press("Enter")
        await expect(go).to_be_disabled()
        await page.get_by_label("Deadline, minutes").fill("5")
        await page.get_by_label("At once").fill("2")
        await page.get_by_role("checkbox", name="node-b").check()
        await page.get_by_role("button", name="Show the plan").press("Enter")
        said, back = await asked(client)
        wish = {"kind": "evacuate", "plan": True, "to": ["node-b"], "deadline_s": 300, "parallel": 2}
        assert said == {"id": said["id"], **wish}
        no = {"host": "node-b", "reasons": [{"code": "not-migratable", "message": "it has a terminal"}]}
        stays = evacuee(2, "tty", "left", to=None, why="", not_there=[no], error={"message": "nobody can take it"})
        planned = [evacuee(0, "db", "waiting"), evacuee(1, "web", "waiting"), stays]
        await answer(client, back, kind="finished", evacuation=evacuation("planned", 0, *planned))
        await expect(page.locator("#leave-said")).to_have_text(
            "2 containers would move, 1 would stay; there after about 4 s."
        )
        await expect(page.locator("#leave-table tbody tr.stays")).to_contain_text("not on node-b: it has a terminal")
        await expect(go).to_be_focused()
        await for_everybody(page)
        await page.get_by_label("At once").fill("3")
        await expect(go).to_be_disabled()  # that was another plan
        await page.get_by_role("button", name="Show the plan").press("Enter")
        said, back = await asked(client)
        await answer(client, back, kind="finished", evacuation=evacuation("planned", 0, *planned))
        await go.press("Enter")
        said, back = await asked(client)
        assert said == {"id": said["id"], **wish, "plan": False, "parallel": 3}
        await answer(client, back, kind="accepted")

        topic = "transship/v1/hosts/node-a/evacuation"
        rows = [evacuee(0, "db", "moved", blackout_ms=210), evacuee(1, "web", "moving", migration=MOVE), stays]
        await client.send(topic, evacuation("running", 1, *rows), retain=True)
        await say_move(client, "copying", 1, bytes_sent=250, bytes_total=1000, rate=500, eta_s=1.5)
        room = page.locator('[data-evacuation="node-a"]')
        await expect(room.locator("summary")).to_contain_text("2 of 3 containers")
        await expect(room.locator(".is-moved .about")).to_have_text("is on node-b · blackout 210 ms")
        await expect(room.locator(".is-moving .about")).to_have_text("to node-b · copying · 500 B/s · 1.50 s left")
        await expect(button).to_be_hidden()
        await for_everybody(page)
        await room.get_by_role("button", name="Cancel the evacuation of node-a").click()
        said, _ = await asked(client)
        assert said == {"id": said["id"], "kind": "cancel-evacuation", "evacuation": EVACUATION}
        await client.send(topic, evacuation("cancelled", 2, rows[0], stays), retain=True)
        await expect(room.locator("summary")).to_contain_text("cancelled · 1 moved · 1 left behind")
        await answer(client, back, kind="finished", evacuation=evacuation("cancelled", 2, rows[0], stays))
        await expect(page.locator("#said")).to_have_text("Evacuating node-a: 1 container left behind")


async def test_containers_are_brought_home_from_where_they_are_and_a_cordon_is_lifted(
    web: tuple[Mosquitto, str], stranger: Connect, browser: Browser
) -> None:
    mosquitto, url = web
    async with served(url) as address, stranger(mosquitto) as client, opened(browser, address) as page:
        await client.subscribe("transship/v1/hosts/+/command")
        await say_host(client, "node-a", cordoned=True, cpu_busy=0.25)
        await say_host(client, "node-b")
        await say_container(client, "node-b", 1, "web", home="node-a")
        await signed_in(page)
        home = page.locator('[data-host="node-a"]')
        await expect(home.locator(".meter").first).to_contain_text("25 % of 4")
        await expect(page.get_by_role("button", name="Bring back 1")).to_be_hidden()
        await page.get_by_role("button", name="Uncordon node-a").press("Enter")
        said, back = await asked(client)
        assert (said["kind"], said["cordoned"]) == ("cordon", False)
        await answer(client, back, kind="finished")
        await say_host(client, "node-a")
        await page.get_by_role("button", name="Bring back 1").press("Enter")
        await page.get_by_role("button", name="Show the plan").press("Enter")
        said, back = await asked(client)
        assert (said["kind"], said["to"], said["plan"]) == ("return", "node-a", True)
        refused = {"code": "internal", "message": "no plan today", "hint": ""}
        await answer(client, back, kind="failed", error=refused)
        await expect(page.locator("#leave-said")).to_have_text("no plan today")
        await expect(page.get_by_role("button", name="Bring back", exact=True)).to_be_disabled()
