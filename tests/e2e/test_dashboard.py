"""The dashboard against real hosts: a button moves a container, and what it shows of that is what has happened."""

import re
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, expect

from lab.cluster import Cluster
from lab.workloads import run_counter
from tests.contract.dashboard_support import browser as chromium
from tests.contract.dashboard_support import needs_chromium, opened, picture
from tests.e2e.support import clean, counts_on

pytestmark = needs_chromium

A, B = "host-a", "host-b"
NAME = "shop"
MOVE_MS = 60_000


@pytest.fixture(scope="module")
def address(seen: Cluster) -> str:
    return seen.open_dashboard(A)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as found:
        yield found


async def test_a_button_moves_a_container_and_its_card_arrives(seen: Cluster, address: str, browser: Browser) -> None:
    names = (NAME, "search", "queue", "mail", "cache")
    for place, name in enumerate(names):
        run_counter(seen[A if place < 3 else B], name, mib=32)
    await counts_on(seen[A], NAME)
    wide = {"viewport": {"width": 1280, "height": 800}}
    async with opened(browser, address, **wide) as page:
        for source, target, strategy in ((A, B, "auto"), (B, A, "postcopy"), (A, B, "cold")):
            card = page.locator(f'[data-host="{source}"] .card', has_text=NAME)
            arrived = page.locator(f'[data-host="{target}"] .card.is-running', has_text=NAME)
            await expect(card).to_be_visible()
            await page.get_by_role("button", name=f"Move {NAME} from {source}").click()
            await page.get_by_label("To", exact=True).select_option(target)
            await page.get_by_label("Strategy", exact=True).select_option(strategy)
            await page.get_by_role("button", name="Move", exact=True).click()
            await expect(page.locator("#said")).to_have_text(f"Moving {NAME} to {target}: done", timeout=MOVE_MS)
            await expect(arrived).to_have_attribute("data-arrived", re.compile("m-"))
            await expect(card).to_have_count(0)
            await counts_on(seen[target], NAME)
        row = page.locator(".move-row").first
        await expect(row).to_have_attribute("data-phase", "done")
        await expect(row.locator(".timeline")).to_have_attribute(
            "aria-label", re.compile(r"frozen .*; blackout [0-9.]+ m?s")
        )
        await expect(page.locator("#plot canvas")).to_be_visible()
        await expect(page.locator("#events li").first).to_be_visible()
        await picture(page, "dashboard")
        await _evacuated_and_brought_back(page, seen)
        await page.emulate_media(color_scheme="dark")
        await page.set_viewport_size({"width": 360, "height": 740})
        assert await page.evaluate("document.documentElement.scrollWidth") <= 360
        await picture(page, "dashboard-phone-dark")
    await clean(seen, A, B)
    for host in (A, B):
        seen[host].docker("rm", "--force", *names, check=False)


async def _evacuated_and_brought_back(page: Page, seen: Cluster) -> None:
    """Of the five, two run on A: they go, and come home again."""
    gone = ("queue", "search")
    plan = page.get_by_role("button", name="Show the plan")
    await page.get_by_role("button", name=f"Evacuate {A}").click()
    await plan.click()
    await expect(page.locator("#leave-table tbody tr")).to_have_count(len(gone), timeout=MOVE_MS)
    await picture(page, "dashboard-plan", of="#leave")
    await page.get_by_role("button", name="Evacuate", exact=True).click()
    await expect(page.locator("#said")).to_have_text(f"Evacuating {A}: done", timeout=MOVE_MS)
    room = page.locator(f'[data-evacuation="{A}"]')
    await expect(room.locator("summary")).to_contain_text("done · 2 moved · 0 left behind")
    await expect(page.locator(f'[data-host="{A}"] .card')).to_have_count(0)
    for name in gone:
        card = page.locator(f'[data-host="{B}"] .card.is-running', has_text=name)
        await expect(card.locator(".state")).to_have_text(f"running, at home on {A}")
        await counts_on(seen[B], name)
    await page.get_by_role("button", name=f"Uncordon {A}").click()
    await page.get_by_role("button", name="Bring back 2").click()
    await plan.click()
    await page.get_by_role("button", name="Bring back", exact=True).click(timeout=MOVE_MS)
    await expect(page.locator("#said")).to_have_text(f"Bringing containers back to {A}: done", timeout=MOVE_MS)
    for name in gone:
        await expect(page.locator(f'[data-host="{A}"] .card.is-running', has_text=name)).to_be_visible()
        await counts_on(seen[A], name)


async def test_a_host_s_own_account_looks_and_can_not_move(seen: Cluster, address: str, browser: Browser) -> None:
    """What the shipped access list allows a host: its own containers, and to ask nobody for anything."""
    access = seen.lab.broker.local_access(A)
    async with opened(browser, f"{address.partition('#')[0]}#user={access.user}&password={access.password}") as page:
        await expect(page.locator(f'[data-host="{A}"]')).to_have_attribute("data-may", "look")
        await expect(page.get_by_role("button", name=re.compile("^Move "))).to_have_count(0)
    async with opened(browser, f"{address.partition('#')[0]}#user=controller&password=wrong") as page:
        await expect(page.get_by_role("alert")).to_have_text(re.compile("authori[sz]ed|user ?name", re.IGNORECASE))
