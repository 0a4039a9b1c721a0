"""The page at `/`: who gets it, what comes with it, and that its files are what is served. The browser's side is in
tests/browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from served import Served, error_of

from modelhost.api import page

FOLDER = Path(page.FOLDER)
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "is_wanted"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML;Q=1.0 , application/json;q=0.9", True),
        ("text/*, application/json;q=0.5", True),
        (None, False),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/html", False),
        ("application/json, text/html;q=0.9", False),
        ("text/html;q=0", False),
        ("text/html;q=none", False),
        ("text/html;q=nan", False),
        ("text/*;q=0.1, */*", False),
        (",;,;q=", False),
    ],
)
def test_the_page_is_for_who_prefers_html(accept: str | None, is_wanted: bool) -> None:
    assert page.prefers_page(accept) is is_wanted


def test_the_root_answers_programs_as_before_and_browsers_with_the_page(ort: Served) -> None:
    plain = ort.get("/")
    assert plain.json() == {"status": "alive"}
    shown = ort.http.get("/", headers={"Accept": BROWSER})
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert shown.text == (FOLDER / "index.html").read_text()
    assert plain.headers["vary"] == shown.headers["vary"] == "Accept"
    head = ort.http.head("/", headers={"Accept": BROWSER})
    assert (head.content, head.headers["content-length"]) == (b"", shown.headers["content-length"])


def test_every_answer_has_the_headers_that_keep_other_peoples_words_from_running(ort: Served) -> None:
    answers = [
        ort.http.get("/", headers={"Accept": BROWSER}),
        *map(ort.get, ("/docs", "/ui/page.js", "/ui/nothing.js")),
    ]
    for answer in answers:
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404]


def test_a_browser_that_has_a_file_is_told_so(ort: Served) -> None:
    first = ort.get("/ui/style.css")
    again = ort.http.get("/ui/style.css", headers={"If-None-Match": f'W/"x", {first.headers["etag"]}'})
    other = ort.http.get("/ui/style.css", headers={"If-None-Match": ort.get("/ui/page.js").headers["etag"]})
    assert (first.status_code, again.status_code, other.status_code) == (200, 304, 200)
    assert (again.content, again.headers["etag"]) == (b"", first.headers["etag"])
    assert first.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["index.html", "page.py", "..page.js", "..%2f..%2f__init__.py", "page.js%00"])
def test_nothing_else_is_served(ort: Served, name: str) -> None:
    assert ort.get(f"/ui/{name}").status_code == 404


def test_files_are_not_for_changing(ort: Served) -> None:
    assert error_of(ort.post("/ui/page.js"), 405)["code"] == "http"


def test_all_files_of_the_folder_are_served_and_no_other_is_asked_for(ort: Served) -> None:
    files = {file.name for file in FOLDER.iterdir()}
    pages = [page.INDEX, page.REFERENCE]
    assert files == {*pages, *page.ASSETS}
    named = {name for one in pages for name in re.findall(r'(?:src|href)="/ui/([^"]+)"', (FOLDER / one).read_text())}
    for name in page.ASSETS:
        answer = ort.get(f"/ui/{name}")
        assert (answer.status_code, answer.text) == (200, (FOLDER / name).read_text())
        named |= set(re.findall(r'from "\./([^"]+)"', answer.text)) if name.endswith(".js") else set()
    assert named == set(page.ASSETS)


def test_nothing_is_inline_and_nothing_makes_markup_of_words() -> None:
    markup = "".join(file.read_text() for file in FOLDER.glob("*.html"))
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", markup)
    words = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|https?://(?!www\.w3\.org)"
    for file in FOLDER.glob("*.js"):
        assert not re.search(words, file.read_text()), file
