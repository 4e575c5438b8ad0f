"""Pages in a real browser: nothing is fetched, nothing complained of, nothing cut or overlapping, light and dark."""

import re

import pytest

from lipray.report.write import write_report
from tests.browser import Browser, program
from tests.report.test_pages import EVIL, change, everywhere

pytestmark = pytest.mark.skipif(program() is None, reason="there is no Chromium here")

CUT = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const whole = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < whole.left - 1 || box.right > whole.right + 1 || box.top < whole.top - 1
      || box.bottom > whole.bottom + 1;
  }).map(text => svg.getAttribute('aria-label') + ' | ' + text.textContent);
})
"""
OVERLAPPING = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
  const over = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 2;
  return texts.flatMap(([one, a], index) => texts.slice(index + 1).filter(([_, b]) => over(a, b)
  ).map(([other]) => svg.getAttribute('aria-label') + ' | ' + one + ' | ' + other));
})
"""
WIDE = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
SMALLEST = """
Math.min(...[...document.querySelectorAll('svg text')].map(text => {
  const svg = text.ownerSVGElement;
  return parseFloat(getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
}))
"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(recorded, tmp_path_factory):
    """Pages of a run, a sweep, a run that has left little, and of records with markup in them."""
    import shutil

    store = shutil.copytree(recorded, tmp_path_factory.mktemp("pages") / "store")
    shutil.copytree(store / "run", store / "evil")
    everywhere(store / "evil", "block1", f"{EVIL}1")
    everywhere(store / "evil", "Sequential", EVIL)
    shutil.copytree(store / "run", store / "begun")
    change(store / "begun", state="running", files={})
    return {name: write_report(str(store / name)).report for name in ("run", "sweep", "evil", "begun")}


@pytest.mark.parametrize("name", ["run", "sweep", "evil", "begun"])
def test_a_page_asks_for_nothing_and_runs_nothing(browser, pages, name):
    browser.show(pages[name])
    assert [url.rpartition("/")[2] for url in browser.requests()] == ["report.html"]
    assert browser.complaints() == []
    assert browser.run("document.scripts.length") == 0
    assert browser.run("document.images.length") == 0
    assert browser.run("document.querySelectorAll('svg').length") >= (6 if name == "sweep" else 3)


def test_markup_in_names_is_text(browser, pages):
    browser.show(pages["evil"])
    assert "<script>alert(1)</script>" in browser.run("document.querySelector('h1').textContent")
    labels = browser.run("[...document.querySelectorAll('svg text')].map(text => text.textContent)")
    assert any("<scrip" in label for label in labels)


@pytest.mark.parametrize("name", ["run", "sweep", "evil", "begun"])
@pytest.mark.parametrize("width", [1280, 375])
def test_no_text_of_a_plot_is_cut_or_covers_another(browser, pages, name, width):
    browser.show(pages[name], width=width)
    assert browser.run(CUT) == []
    assert browser.run(OVERLAPPING) == []


@pytest.mark.parametrize("name", ["run", "sweep", "evil"])
def test_a_phone_shows_the_page_without_moving_it_sideways(browser, pages, name):
    browser.show(pages[name], width=375)
    whole, seen = browser.run(WIDE)
    assert whole == seen == 375
    assert browser.run(SMALLEST) >= 7.5
    assert browser.run("[...document.querySelectorAll('.scroll')].every(e => e.clientWidth <= 375)")


def test_colours_follow_the_reader(browser, pages):
    seen = {}
    for dark in (False, True):
        browser.show(pages["run"], dark=dark)
        seen[dark] = browser.run(
            "[document.body, document.querySelector('svg text')].map((e, i) => "
            "getComputedStyle(e)[i ? 'fill' : 'backgroundColor'])"
        )
    light, dark = ([sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in seen[way]] for way in (False, True))
    assert light[0] - light[1] > 300
    assert dark[1] - dark[0] > 300
    browser.show(pages["run"], dark=True, media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_the_browser_would_tell(browser, tmp_path):
    """What the tests above rest on: requests, complaints, cut and overlapping texts are seen."""
    (tmp_path / "bad.html").write_text(
        '<meta charset="utf-8"><img src="http://outside.invalid/x.png"><script>console.error("no")</script>'
        '<svg viewBox="0 0 10 10" width="100" aria-label="a"><text x="9" y="5">long text</text>'
        '<text x="9" y="5">other</text></svg>'
    )
    browser.show(tmp_path / "bad.html")
    assert "http://outside.invalid/x.png" in browser.requests()
    assert browser.complaints()
    assert browser.run(CUT)
    assert browser.run(OVERLAPPING)
