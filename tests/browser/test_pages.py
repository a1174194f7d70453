"""A run's two pages as a reader opens them: from the disk, in Chromium (``make test-browser``)."""

import json
from itertools import product

import pytest

axe = pytest.importorskip("axe_playwright_python.sync_playwright")

WIDTHS = {"phone": 390, "desk": 1280}
RULES = ["color-contrast", "link-name", "button-name", "select-name", "label", "image-alt", "svg-img-alt", "list"]
RULES += ["document-title", "html-has-lang", "scrollable-region-focusable", "duplicate-id-aria", "heading-order"]


@pytest.fixture
def visit(browser, smallest_report):
    """Opens a page of the smallest report; whatever it asks for, or complains of, is noted beside it."""
    folder, _ = smallest_report
    contexts = []

    def opened(name: str, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.noted = []
        page.on("console", lambda message: page.noted.append(message.text))
        page.on("pageerror", lambda error: page.noted.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or page.noted.append(request.url))
        page.goto(f"{folder.as_uri()}/{name}")
        if name.startswith("episodes"):
            page.wait_for_selector("#pair h2")
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["report.html", "episodes.html"])
def test_a_page_opens_without_complaint_and_asks_for_nothing(visit, name):
    assert visit(name).noted == []


def test_a_contents_link_leads_to_its_heading(visit):
    page = visit("report.html")
    link = page.locator("nav a").last
    link.click()
    page.wait_for_timeout(1500)  # it scrolls smoothly
    heading = page.locator(f"[id='{link.get_attribute('href')[1:]}']")
    assert heading.bounding_box()["y"] < page.viewport_size["height"]


def test_from_the_report_to_a_failed_episode_it_takes_three_clicks(visit):
    page = visit("report.html", viewport={"width": 1280, "height": 900})
    page.get_by_role("link", name="How episodes fail").click()
    page.get_by_role("link", name="beside another cell").first.click()
    page.wait_for_selector("#pair h2")
    assert page.locator("#pair .head").count() == 2 and page.locator("#pair .cause").count() >= 1
    assert page.noted == []


def test_a_dot_of_a_figure_leads_to_its_task(visit):
    page = visit("report.html", viewport={"width": 1280, "height": 900})
    dot = page.locator("svg a").first
    task = dot.get_attribute("xlink:href").partition("/")[2].partition("?")[0]
    dot.dispatch_event("click")  # others may lie over it
    page.wait_for_selector("#pair h2")
    assert page.locator("#task").input_value() == task


def test_a_cause_keeps_the_tasks_that_failed_like_it(visit):
    page = visit("episodes.html#/?cause=malformed+reply")
    kept = page.locator("#task option").count()
    assert page.locator("#cause").input_value() == "malformed reply"
    page.locator("#cause").select_option("")
    assert page.locator("#cause option").first.text_content() == f"all ({page.locator('#task option').count()})"
    assert f"malformed reply ({kept})" in page.locator("#cause").text_content()


def test_an_address_opens_the_same_episodes_again(visit):
    page = visit("episodes.html")
    page.locator("#next").click()
    page.locator("#second").select_option(index=0)
    shown, place = page.locator("#pair").inner_text(), page.url.partition("#")[2]
    assert visit(f"episodes.html#{place}").locator("#pair").inner_text() == shown


def test_what_a_model_wrote_is_shown_letter_by_letter(visit, smallest_report):
    folder, _ = smallest_report
    page = visit("episodes.html")
    cell, task = page.locator("#first").input_value(), page.locator("#task").input_value()
    trace = json.loads((folder / "evaluations" / cell / "knapsack" / f"knapsack-{task}.trace.json").read_text())
    steps = [event["data"] for event in trace["events"] if event["type"] == "StepEvent"]
    for turn, step in enumerate(steps, start=1):
        assert (step["code"] or step["assistant_text"]).strip() in page.locator(f"#first-{turn}").inner_text()


@pytest.mark.parametrize(("name", "width"), [*product(["report.html", "episodes.html"], WIDTHS)])
def test_no_page_scrolls_sideways(visit, name, width):
    page = visit(name, viewport={"width": WIDTHS[width], "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]


@pytest.mark.parametrize(("name", "scheme"), [*product(["report.html", "episodes.html"], ["light", "dark"])])
def test_everyone_can_read_it(visit, name, scheme):
    page = visit(name, color_scheme=scheme, bypass_csp=True)
    found = axe.Axe().run(page, options={"runOnly": {"type": "rule", "values": RULES}}).response["violations"]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found] == []
