"""The page of a run in a real browser: no error, no request, and what can be done with it works."""

import os
import shutil

import pytest
from support.runs import make_run

from dh2l_jax.__main__ import main
from dh2l_jax.hierarchy import Hierarchy

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = os.getenv("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "</script><script>window.hit = 1</script>", '"><img src=x onerror="window.hit = 1">'


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("page") / "run"
    paths = {
        f"{HOSTILE[i % 2]} {i}": (f"branch {i % 3}", f"{HOSTILE[0]} {i % 6}") for i in range(18)
    }
    make_run(workdir, Hierarchy.from_paths(paths), images=200, name=lambda row: HOSTILE[row % 2])
    assert main(["report", str(workdir)]) == 0
    return workdir / "report.html"


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium: set CHROMIUM to one")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=["light", "dark", "narrow"])
def page(browser, report, request):
    """The page, opened; what it asks for and complains of is empty at the end."""
    narrow = request.param == "narrow"
    context = browser.new_context(
        viewport={"width": 390 if narrow else 1280, "height": 800},
        color_scheme="dark" if request.param == "dark" else "light",
    )
    page, told = context.new_page(), []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda asked: told.append(asked.url))
    page.goto(report.as_uri())
    yield page
    assert page.evaluate("window.hit") is None
    assert [line for line in told if not line.startswith("data:")] == [report.as_uri()]
    context.close()


def column(page, number):
    cells = f"#classes tbody tr:not([hidden]) > :nth-child({number})"
    return [text.strip() for text in page.locator(cells).all_text_contents()]


def test_nothing_is_wider_than_the_screen(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_classes_are_sorted_and_filtered_by_keyboard(page):
    recall = page.locator("#classes thead button").nth(3)
    recall.focus()
    for order, reverse in (("descending", True), ("ascending", False)):
        page.keyboard.press("Enter")
        found = [float(text) for text in column(page, 4)]
        assert found == sorted(found, reverse=reverse)
        assert page.locator("#classes th[aria-sort]").get_attribute("aria-sort") == order
    page.locator("#classes thead button").nth(0).click()
    assert len(column(page, 1)) == 18
    page.get_by_label("Filter").first.fill("BRANCH 1")
    assert column(page, 2)
    assert all(text.startswith("branch 1") for text in column(page, 2))
    assert page.locator("#classes output").text_content() == "6 of 18 rows"


def test_the_confusion_is_zoomed_and_left_again(page):
    shown = page.locator(".branch:not([hidden])")
    assert shown.count() == 1
    shown.locator("tbody a").first.click()
    assert shown.locator("h3").text_content().replace("\n", "") == "all classes › branch 0"
    shown.locator("tbody a").first.focus()
    page.keyboard.press("Enter")
    assert shown.locator("h3 a").count() == 2
    for left in (1, 0):
        page.keyboard.press("Escape")
        assert shown.locator("h3 a").count() == left
    page.locator("svg.matrix a").nth(2).click()
    assert "branch 2" in shown.locator("h3").text_content()
    page.go_back()
    assert shown.locator("h3 a").count() == 0


def test_a_printed_page_shows_whole_tables(page):
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    assert page.locator("#classes .scroll").evaluate("e => e.scrollHeight <= e.clientHeight")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.get_by_text("In % of the images.").is_visible()


def test_without_its_program_the_page_shows_everything(browser, report):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator(".branch").count() == 10
    assert all(branch.is_visible() for branch in page.locator(".branch").all())
    context.close()
