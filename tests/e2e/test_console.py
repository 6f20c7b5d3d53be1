"""The console in a real Chromium: what people do with it, by mouse, by keyboard and on a phone."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from peterrec.patches.bundle.described import describe_bundle
from tests.e2e.browsing import DESKTOP, PHONE, Visit, chromium, visit
from tests.e2e.conftest import KINDS, push
from tests.e2e.running import RunningServer, running_server
from tests.service.random_bundles import ITEMS
from tests.waiting import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FILMS = tuple(ITEMS[:30])
PLACES = {
    "Tasks": "#/tasks",
    "films": "#/tasks/films",
    "Playground": "#/playground",
    "Upload a bundle": "#/upload",
    "Registry": "#/registry",
    "Tenants": "#/tenants",
    "default": "#/tenants/default",
}
"""Every page of the console by its title."""


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def films(workshop) -> list[bytes]:
    """Two versions of a ranking task whose items have titles."""
    return [
        describe_bundle(
            workshop.bundle("ranking", seed=seed, outputs=len(FILMS), names=FILMS),
            {item: f"The film {item}" for item in FILMS},
            {},
        )
        for seed in (21, 22)
    ]


@pytest.fixture(scope="module", autouse=True)
def cinema(server, films) -> None:
    with server.client() as client:
        push(client, "films", films[0])


@contextmanager
def signed_in(
    browser: "Browser", server: RunningServer, key: str | None = None, **options: object
) -> Iterator[Visit]:
    """A tab whose user is signed in. At its end, nothing of it may have left the server."""
    with visit(browser, server.url, "/console", **options) as seen:
        seen.page.get_by_label("API key").fill(server.key if key is None else key)
        seen.page.get_by_role("button", name="Sign in").click()
        seen.page.get_by_role("heading", name="Tasks", exact=True).wait_for()
        yield seen
        seen.require_own_requests_only()


@pytest.fixture
def tab(browser, server) -> Iterator[Visit]:
    with signed_in(browser, server) as seen:
        yield seen


def go(tab: Visit, title: str, place: str | None = None) -> None:
    tab.show(place or PLACES[title])
    tab.page.get_by_role("heading", name=title, exact=True, level=1).wait_for()
    tab.page.get_by_text("Loading …").first.wait_for(state="hidden")


def button(tab: Visit, name: str) -> None:
    tab.page.get_by_role("button", name=name, exact=True).click()


def in_dialog(tab: Visit, name: str) -> None:
    tab.page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()


def test_a_wrong_key_is_refused_and_the_right_one_is_kept_nowhere(browser, server):
    with visit(browser, server.url, "/console") as tab:
        tab.page.get_by_label("API key").fill("prk_wrong")
        button(tab, "Sign in")
        tab.page.get_by_role("alert").get_by_text("is not valid").wait_for()
        tab.picture("console-sign-in")
        tab.require_accessible()
        tab.page.get_by_label("API key").fill(server.key)
        button(tab, "Sign in")
        tab.page.get_by_role("heading", name="Tasks").wait_for()
        kept = "[localStorage.length, sessionStorage.length, document.cookie]"
        assert tab.page.evaluate(kept) == [0, 0, ""]
        tab.page.reload()
        tab.page.get_by_label("API key").wait_for()
        tab.require_own_requests_only()


@pytest.mark.slow
def test_a_server_that_asks_for_no_key_shows_its_tasks_at_once(browser, workshop, tmp_path):
    with (
        running_server(workshop.folder, tmp_path, workers=1, auth="off") as server,
        visit(browser, server.url, "/console") as tab,
    ):
        tab.page.get_by_text("There are no tasks yet.").wait_for()
        assert tab.page.get_by_role("link", name="Tenants").is_visible()


def test_a_key_that_is_revoked_ends_the_session_and_says_why(browser, server, api):
    made = api.post("/keys", json={"name": "short", "scopes": ["admin"]}).json()
    with signed_in(browser, server, made["api_key"]) as tab:
        api.delete(f"/keys/{made['key_id']}").raise_for_status()
        tab.show(PLACES["Registry"])  # the list of tasks may have noticed already
        tab.page.get_by_role("alert").get_by_text("is not valid (any more)").wait_for()
        assert tab.page.get_by_label("API key").is_visible()


def test_what_a_task_is_called_is_never_read_as_markup(tab, api, films):
    evil = "<img src=x onerror=\"document.title='taken'\"><b>bold</b>"
    titled = describe_bundle(films[0], {FILMS[0]: evil}, {})
    push(api, "evil", titled)
    api.put("/tasks/evil", json={"description": evil}).raise_for_status()
    go(tab, "evil", "#/tasks/evil")
    tab.page.get_by_text(evil).first.wait_for()
    go(tab, "Playground")
    button(tab, "None")
    tab.page.get_by_role("checkbox", name="evil").check()
    tab.page.get_by_label("Items in a ranking").fill("1000")
    button(tab, "Ask")
    tab.page.locator("article.card").get_by_text(evil).wait_for()
    assert tab.page.locator("b, img").count() == 0
    assert tab.page.title().startswith("Playground")
    api.delete("/tasks/evil").raise_for_status()


def test_a_proxy_may_put_a_path_before_the_servers(browser, server):
    with visit(browser, server.url, "/livez") as tab:

        def pass_on(route):
            url = route.request.url.replace("/behind/a/proxy", "", 1)
            route.fulfill(response=route.fetch(url=url))

        tab.page.route("**/behind/a/proxy/**", pass_on)
        tab.page.route("**/registry/events", lambda route: route.abort())
        for path in ("console", "console/"):
            tab.page.goto(f"{server.url}/behind/a/proxy/{path}")
            tab.page.get_by_label("API key").fill(server.key)
            button(tab, "Sign in")
            tab.page.get_by_role("heading", name="Tasks", exact=True).wait_for()
            tab.page.get_by_role("link", name="films").wait_for()
        tab.page.unroute_all(behavior="ignoreErrors")
        elsewhere = [url for url in tab.asked if "/behind/a/proxy/" not in url]
        assert elsewhere == [f"{server.url}/livez"]


def test_the_list_of_tasks_shows_what_each_is_asked(tab, api):
    row = tab.page.get_by_role("row").filter(has_text="classification")
    assert "active" in row.inner_text()
    assert "v1" in row.inner_text()
    tab.page.get_by_label("Find a task").fill("classif")
    tab.page.get_by_text("1 of").wait_for()

    def is_drawn() -> bool:
        api.post("/tasks/classification/predict", json={"history": ["item-1"]}).raise_for_status()
        return row.locator("polyline").count() == 1 and " ms" in row.inner_text()

    eventually(is_drawn, 60)
    tab.picture("console-tasks")


def test_the_list_shows_what_tasks_were_asked_before_it_was_opened(browser, server, api):
    api.post("/tasks/value/predict", json={"history": ["item-1"]}).raise_for_status()

    def is_known() -> bool:
        return sum(api.get("/activity").json()["tasks"].get("value", {"recent": []})["recent"]) > 0

    eventually(is_known, 15)
    with signed_in(browser, server) as tab:
        curve = tab.page.get_by_role("img", name="Requests to value per second").locator("polyline")
        curve.wait_for(state="attached")
        assert len((curve.get_attribute("points") or "").split()) == 40


def test_versions_are_compared_activated_and_rolled_back_with_a_trail(tab, api, workshop):
    push(api, "moved", workshop.bundle("value", seed=1))
    push(api, "moved", workshop.bundle("value", seed=2), alias="")
    go(tab, "moved", "#/tasks/moved")
    for version in (1, 2):
        tab.page.get_by_label(f"Compare version {version}").check()
    assert "accuracy" in tab.page.get_by_label("Difference of two versions").inner_text()
    button(tab, "Activate version 2")
    tab.page.get_by_role("dialog").get_by_text("Roll back to undo it").wait_for()
    tab.require_accessible()
    in_dialog(tab, "Activate")
    tab.page.get_by_text("prod names v2 now, and this replica answers by it.").wait_for()
    assert api.get("/tasks/moved").json()["served"] == {"prod": 2}
    tab.page.get_by_text("set_alias").first.wait_for()
    tab.picture("console-task")
    button(tab, "Roll back …")
    in_dialog(tab, "Roll back")
    tab.page.get_by_text("prod names v1 again.").wait_for()
    assert api.get("/tasks/moved").json()["aliases"]["prod"]["version"] == 1


def test_a_change_by_somebody_else_is_seen_before_it_is_overwritten(tab, api, workshop):
    push(api, "raced", workshop.bundle("value", seed=1))
    push(api, "raced", workshop.bundle("value", seed=2), alias="")
    go(tab, "raced", "#/tasks/raced")
    button(tab, "Activate version 2")
    api.put("/tasks/raced", json={"description": "changed meanwhile"}).raise_for_status()
    tab.page.get_by_text("changed meanwhile").wait_for()
    in_dialog(tab, "Activate")
    tab.page.get_by_role("dialog").get_by_text("revision_mismatch").wait_for()
    assert api.get("/tasks/raced").json()["aliases"]["prod"]["version"] == 1


def test_probes_of_a_version_are_run_again(tab):
    go(tab, "films")
    button(tab, "Probe version 1")
    tab.page.get_by_text("Verified, and all probes pass").wait_for()
    assert re.search(r"4 histories; the largest error is \S+ of", tab.page.inner_text("dialog"))
    in_dialog(tab, "Done")


def test_a_canary_is_begun_compared_with_prod_and_ended(tab, api, films):
    push(api, "films", films[1], alias="")
    go(tab, "films")
    button(tab, "Canary … version 2")
    tab.page.get_by_label("Percent of the users").fill("30")
    in_dialog(tab, "Begin")
    tab.page.get_by_text("The traffic is as you asked.").wait_for()
    traffic = api.get("/tasks/films").json()["traffic"]
    assert (traffic["prod_weight"], traffic["canary"][0]["weight"]) == (70, 30)
    assert traffic["guard"]["max_error_share"] == 0.01
    go(tab, "Playground")
    button(tab, "None")
    tab.page.get_by_role("checkbox", name="films").check()
    button(tab, "Ask")
    beside = tab.page.locator("article.card")
    beside.get_by_text(re.compile("of the best 10 items are the same")).wait_for()
    assert [each.split()[0] for each in beside.locator("h4").all_inner_texts()] == [
        "prod",
        "canary",
    ]
    tab.picture("console-canary")
    go(tab, "films")
    button(tab, "End it …")
    in_dialog(tab, "End them")
    tab.page.get_by_text("prod answers all requests now.").wait_for()
    assert api.get("/tasks/films").json()["traffic"] is None


def test_a_history_is_pasted_picked_and_named_and_answers_are_explained(tab):
    go(tab, "Playground")
    tab.page.get_by_text("Pick from a catalog").click()
    tab.page.get_by_label("Find an item").fill("film item-7")
    tab.page.get_by_role("button", name="+ The film item-7").click()
    tab.page.get_by_label("Add item ids").fill('["item-3", "nowhere"]')
    button(tab, "Add")
    chips = tab.page.get_by_role("list", name="Items of the history")
    chips.get_by_text("The film item-3").wait_for()
    assert chips.get_by_role("listitem").count() == 3
    tab.page.get_by_label("Explain the answers").check()
    button(tab, "None")
    for task in ("films", *KINDS):
        tab.page.get_by_role("checkbox", name=task, exact=True).check()
    button(tab, "Ask")
    cards = tab.page.locator("article.card")
    eventually(lambda: cards.count() == 5)
    films = cards.filter(has=tab.page.get_by_role("heading", name="films"))
    assert "Why? (score)" in films.inner_text()
    assert "1 unknown" in films.inner_text()
    assert tab.page.get_by_text("as this browser saw it").is_visible()
    told = tab.page.locator("ul.steps li").all_inner_texts()
    spent = dict(re.findall(r"(\w+) ([\d.]+) ms", "\n".join(told)))
    total = float(spent.pop("total"))
    assert {"receive", "prepare", "queue", "batch", "answer"} <= set(spent)
    assert sum(map(float, spent.values())) == pytest.approx(total, rel=0.02, abs=0.05)
    tab.picture("console-playground")
    tab.require_accessible()


def test_a_bundle_is_verified_and_then_registered(tab, api, workshop, tmp_path):
    path = tmp_path / "dropped.bundle"
    path.write_bytes(workshop.bundle("tags", seed=5))
    go(tab, "Upload a bundle")
    tab.page.get_by_label("Bundle file").set_input_files(path)
    assert tab.page.get_by_label("Task", exact=True).input_value() == "dropped"
    button(tab, "Verify")
    tab.page.get_by_text("Verified, and all probes pass").wait_for()
    assert api.get("/tasks/dropped").status_code == 404
    tab.picture("console-upload")
    tab.require_accessible()
    button(tab, "Register for dropped as prod")
    tab.page.get_by_text("Registered as v1").wait_for()
    assert api.get("/tasks/dropped").json()["served"] == {"prod": 1}


def test_a_damaged_bundle_that_is_dropped_is_refused_with_its_reasons(tab, api, workshop):
    damaged = bytearray(workshop.bundle("tags", seed=6))
    damaged[-1] ^= 1
    go(tab, "Upload a bundle")
    drop = """(area, bytes) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], "damaged.bundle"));
      const how = {dataTransfer: data, bubbles: true, cancelable: true};
      area.dispatchEvent(new DragEvent("drop", how));
    }"""
    tab.page.locator(".drop").evaluate(drop, [*damaged])
    tab.page.get_by_text("damaged.bundle").wait_for()
    button(tab, "Verify")
    refusal = tab.page.get_by_role("alert")
    refusal.get_by_text("The bundle is refused", exact=True).wait_for()
    assert "bundle_rejected" in refusal.inner_text()
    assert refusal.get_by_role("listitem").count() >= 1
    assert api.get("/tasks/damaged").status_code == 404


def test_an_operator_makes_a_tenant_with_quotas_and_its_first_key(tab, browser, server):
    go(tab, "Tenants")
    button(tab, "New tenant …")
    tab.page.get_by_label("Name", exact=True).fill("acme")
    tab.page.get_by_label("Tasks", exact=True).fill("7")
    in_dialog(tab, "Save")
    tab.page.get_by_role("heading", name="acme", level=1).wait_for()
    tab.page.get_by_text("0 of 7").wait_for()
    button(tab, "New key …")
    tab.page.get_by_label("Name").fill("shop")
    tab.page.get_by_label("Scopes").fill("predict, admin:cold-*")
    in_dialog(tab, "Make it")
    secret = tab.page.locator(".done code").inner_text()
    tab.picture("console-tenant")
    with signed_in(browser, server, secret) as shop:
        pages = shop.page.get_by_role("navigation").get_by_role("link").all_inner_texts()
        assert pages == ["Tasks", "Playground", "Upload", "Registry"]
        shop.page.get_by_text("There are no tasks yet.").wait_for()
    button(tab, "I have kept it")
    assert secret not in tab.page.content()
    button(tab, "Revoke … shop")
    in_dialog(tab, "Revoke")
    eventually(lambda: tab.page.get_by_text("shop", exact=True).count() == 0)
    button(tab, "Erase the tenant …")
    tab.page.get_by_label("Type acme to go on").fill("acme")
    in_dialog(tab, "Erase everything")
    tab.page.get_by_role("heading", name="Tenants").wait_for()


def test_a_key_that_may_only_predict_sees_nothing_that_it_may_not_do(browser, server, api):
    scopes = ["predict:class*"]
    key = api.post("/keys", json={"name": "one", "scopes": scopes}).json()["api_key"]
    with signed_in(browser, server, key) as tab:
        pages = tab.page.get_by_role("navigation").get_by_role("link").all_inner_texts()
        assert pages == ["Tasks", "Playground"]
        rows = tab.page.get_by_role("rowheader")
        rows.first.wait_for()
        assert rows.all_inner_texts() == ["classification"]
        tab.show("#/tenants")  # as somebody else's link
        tab.page.get_by_role("heading", name="Tasks", exact=True).wait_for()
        assert not [url for url in tab.asked if url.endswith(("/tenants", "/registry/events"))]


def test_the_registry_shows_replicas_and_changes_as_they_happen(tab, api):
    go(tab, "Registry")
    tab.page.get_by_text("as they happen").wait_for()
    tab.page.get_by_text("1 replica follows it.").wait_for()
    api.put("/tasks/announced", json={}).raise_for_status()
    entry = tab.page.get_by_role("listitem").filter(has_text="announced")
    entry.first.wait_for()
    assert "put_task" in entry.first.inner_text()
    tab.page.get_by_text("up to date").wait_for()
    tab.picture("console-registry")


def test_everything_can_be_done_by_keyboard(browser, server, api, workshop):
    push(api, "typed", workshop.bundle("value", seed=1))
    push(api, "typed", workshop.bundle("value", seed=2), alias="")
    with visit(browser, server.url, "/console") as tab:
        keyboard = tab.page.keyboard
        tab.page.get_by_label("API key").wait_for()
        eventually(lambda: focused(tab) == "INPUT")  # the field has the focus by itself
        keyboard.type(server.key)
        keyboard.press("Enter")
        tab.page.get_by_role("heading", name="Tasks", exact=True).wait_for()
        eventually(lambda: focused(tab, "id") == "main")
        press_until(tab, "Skip to the content")
        keyboard.press("Enter")
        assert focused(tab, "id") == "main"
        press_until(tab, "typed")
        keyboard.press("Enter")
        tab.page.get_by_role("heading", name="typed", level=1).wait_for()
        eventually(lambda: focused(tab, "id") == "main")
        tab.page.get_by_role("button", name="Activate version 2").wait_for()
        press_until(tab, "Activate version 2")
        keyboard.press("Enter")
        tab.page.get_by_role("dialog").wait_for()
        keyboard.press("Escape")
        tab.page.get_by_role("dialog").wait_for(state="detached")
        eventually(lambda: focused(tab, "innerText") == "Activate version 2")
        keyboard.press("Enter")
        press_until(tab, "Activate")
        keyboard.press("Enter")
        tab.page.get_by_text("prod names v2 now").wait_for()


def focused(tab: Visit, what: str = "tagName") -> str:
    found: str = tab.page.evaluate("what => document.activeElement[what]", what)
    return found.replace("\n", " ")


def press_until(tab: Visit, text: str) -> None:
    """Press Tab until the element with this text has the focus."""
    for _ in range(80):
        tab.page.keyboard.press("Tab")
        if focused(tab, "innerText") == text:
            return
    raise AssertionError(f"no element {text!r} gets the focus")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("form", ["desktop", "phone"])
def test_every_page_is_accessible_and_fits(browser, server, scheme, form):
    size = {"desktop": DESKTOP, "phone": PHONE}[form]
    with signed_in(browser, server, viewport=size, color_scheme=scheme) as tab:
        for title, place in PLACES.items():
            go(tab, title, place)
            tab.require_accessible()
            widths = "[document.documentElement.scrollWidth, innerWidth]"
            wide, room = tab.page.evaluate(widths)
            assert wide <= room, title
            tab.picture(f"console-{title.split()[0].lower()}-{form}-{scheme}")


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_documentation_of_the_api_needs_no_other_server(browser, server, path):
    with visit(browser, server.url, path) as tab:
        tab.page.get_by_text("/users/predict").first.wait_for()
        tab.picture(path.strip("/"), whole=False)
        tab.require_own_requests_only()


def test_the_console_works_below_a_slash_too(browser, server):
    with visit(browser, server.url, "/console/") as tab:
        tab.page.get_by_label("API key").wait_for()
        tab.require_own_requests_only()
