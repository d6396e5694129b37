"""Tests, in Chromium, the page that the server shows at `/`: a history can be built by clicks or with the keyboard
alone, and hostile titles are shown as text.

`make test-page` runs these tests. They write pictures to `build/page`, which a person should look at.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from tests.conftest import make_model
from tests.serving.browser import Browser
from tests.serving.servers import Running, make_service, running
from trl_rec import ItemCatalog, PromptFormat, Recommender, TokenTrie
from trl_rec.models import make_tokenizer
from trl_rec.serving.model_engine import ModelEngine


pytestmark = pytest.mark.long

PICTURES = Path(__file__).parents[2] / "build/page"
HOSTILE = [
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "</script></style><script>alert(1)</script>",
    "\u202egnirts desrever \x1b[31m\x00 zero\u200bwidth",
    "A" * 300,
]
SHAPES = {
    "wide-light": (1280, 900, "light"),
    "wide-dark": (1280, 900, "dark"),
    "narrow-light": (390, 844, "light"),
    "narrow-dark": (390, 844, "dark"),
}
FIRST = ["Amber", "Silver", "Hidden", "Distant", "Iron", "Quiet", "Broken", "Winter", "Crimson", "Paper"]
SECOND = ["River", "Tower", "Garden", "Mirror", "Journey", "Harbor", "Letters", "Crown", "Station", "Bridge"]
GENRES = ["Adventure", "Comedy", "Crime", "Drama", "Fantasy", "Mystery", "Romance", "Western"]


def make_catalog() -> ItemCatalog:
    """Returns a catalogue of titles with genres. It also contains hostile titles, which a search for "zzz" finds."""
    rng = random.Random(4)
    titles = [f"{first} {second}" for first in FIRST for second in SECOND]
    genres = [sorted(rng.sample(GENRES, rng.choice([1, 2, 2, 3]))) for _ in titles]
    titles += [f"zzz {title}" for title in HOSTILE]
    genres += [["<b>Bold</b>", "\u202eturned"]] * len(HOSTILE)
    ids = [str(number) for number in range(len(titles))]
    return ItemCatalog(pa.table({"item_id": ids, "title": titles, "genres": genres}), "item_token", "genres")


@pytest.fixture(scope="module")
def engine() -> ModelEngine:
    catalog = make_catalog()
    tokenizer = make_tokenizer(catalog)
    settings = {"renormalize": True, "length_penalty": 0.0, "max_length": 200, "num_beams": 10}
    torch.manual_seed(0)
    model = make_model(vocab_size=len(tokenizer))
    prompt_format = PromptFormat.for_catalog(catalog, tokenizer)
    trie = TokenTrie.from_catalog(catalog, tokenizer)
    return ModelEngine(Recommender(model, tokenizer, catalog, prompt_format, trie, settings), "films-1a2b3c4d")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture
def server(engine: ModelEngine) -> Iterator[Running]:
    with running(make_service(engine)) as one:
        yield one


def titles(browser: Browser, place: str) -> list[str]:
    return browser.texts(f"#{place} > li .row .title")


def open_page(browser: Browser, server: Running) -> str:
    address = f"http://127.0.0.1:{server.port}/"
    browser.events.clear()
    browser.show(1280, 900, "light")
    browser.open(address)
    browser.wait("document.querySelectorAll('#list > li').length === 10")
    return address


def search(browser: Browser, text: str) -> None:
    browser.click("#query")
    browser.type(text)
    browser.wait("!document.querySelector('#results').hidden")
    is_found = f"one.textContent.toLowerCase().includes({text.lower()!r})"
    browser.wait(f"[...document.querySelectorAll('#results .title')].every((one) => {is_found})")


def test_a_history_is_built_by_clicks(browser: Browser, server: Running) -> None:
    address = open_page(browser, server)
    recommender = server.service.engine._recommender
    assert titles(browser, "list") == [one.title for one in recommender.recommend([])]

    # 1. Add two titles from the search, and one from the list.
    chosen = []
    for word in ("amber", "river"):
        search(browser, word)
        chosen.append(browser.run("document.querySelector('#results .title').textContent"))
        browser.click("#results li")
        browser.wait(f"document.querySelectorAll('#history > li').length === {len(chosen)}")
    browser.wait("document.querySelector('#list').getAttribute('aria-busy') === 'false'")
    chosen.append(titles(browser, "list")[0])
    browser.click("#list > li .acts button:last-child")
    browser.wait("document.querySelectorAll('#history > li').length === 3")
    assert titles(browser, "history") == chosen

    # 2. The page shows the list that the model gives after this history.
    history = recommender.catalog.ids_of(chosen)
    expected = [one.title for one in recommender.recommend(history)]
    browser.wait("document.querySelector('#list').getAttribute('aria-busy') === 'false'")
    browser.wait(f"document.querySelector('#list .title').textContent === {expected[0]!r}")
    assert titles(browser, "list") == expected

    # 3. Open an explanation, and filter by a group.
    browser.click("#list .acts button")
    browser.wait("document.querySelectorAll('.why li').length === 3")
    moved = {one.title for one in recommender.explain(history, recommender.recommend(history)[0].item_id)}
    assert set(browser.texts(".why .title")) == moved
    browser.select("#group", browser.texts("#group option").index("Drama"))
    browser.wait("[...document.querySelectorAll('#list .groups')].every((one) => one.textContent.includes('Drama'))")
    assert titles(browser, "list") == [
        one.title for one in recommender.recommend(history, where=[["genres", "==", "Drama"]])
    ]

    # 4. Remove one item of the history, then all.
    browser.click("#history button")
    browser.wait("document.querySelectorAll('#history > li').length === 2")
    browser.click("#clear")
    browser.wait("document.querySelectorAll('#history > li').length === 0")
    assert browser.problems() == []
    assert all(one.startswith((address, "about:")) for one in browser.addresses())


def test_the_keyboard_alone_is_enough(browser: Browser, server: Running) -> None:
    open_page(browser, server)
    browser.press("Tab")
    assert browser.run("document.activeElement.id") == "query"
    browser.type("amber")
    browser.wait("document.querySelectorAll('#results .title').length > 1")
    browser.press("ArrowDown")
    second = browser.run("document.querySelectorAll('#results .title')[1].textContent")
    active = "document.getElementById(document.activeElement.getAttribute('aria-activedescendant'))"
    assert browser.run(f"{active}.querySelector('.title').textContent") == second
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#history > li').length === 1")
    assert titles(browser, "history") == [second]
    assert browser.run("document.activeElement.id") == "query"

    browser.press("ArrowDown")
    browser.wait("!document.querySelector('#results').hidden")
    browser.press("Escape")
    assert browser.run("document.querySelector('#results').hidden")

    # Four presses of Tab lead from the search box to the button "Why" of the first item in the list. In between are
    # the history, the choice of a group, and the number of items.
    browser.wait("document.querySelector('#list .acts button')?.textContent === 'Why'")
    for _ in range(4):
        browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == "Why"
    browser.press("Enter")
    browser.wait("document.querySelectorAll('.why li').length === 1")
    assert browser.run("document.activeElement.getAttribute('aria-expanded')") == "true"
    browser.press(" ")
    browser.wait("document.querySelectorAll('.why').length === 0")
    for _ in range(3):
        browser.press("Tab", shift=True)
    browser.press("Enter")  # this button removes the item from the history
    browser.wait("document.querySelectorAll('#history > li').length === 0")
    assert browser.run("document.activeElement.id") == "query"


def test_hostile_titles_are_shown_as_text(browser: Browser, server: Running) -> None:
    address = open_page(browser, server)
    for number in range(len(HOSTILE)):
        search(browser, "zzz")
        browser.click(f"#results li:nth-child({number + 1})")
        browser.wait(f"document.querySelectorAll('#history > li').length === {number + 1}")
    shown = " ".join(titles(browser, "history"))
    assert "<script>document.title='owned'</script>" in shown and "onerror" in shown
    assert not {"\u202e", "\x1b", "\x00", "\u200b"} & set(shown) and "\ufffd" in shown
    browser.select("#group", 1)
    # All five items of this group are in the history, and recommendations leave out the history, so the list is empty.
    browser.wait("document.querySelectorAll('#list > li').length === 0")
    browser.picture(PICTURES / "hostile.png")
    assert browser.run("document.title") == "Recommendations" and browser.problems() == []
    assert all(one.startswith((address, "about:")) for one in browser.addresses())
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")


def test_the_content_security_policy_stops_other_scripts(browser: Browser, server: Running) -> None:
    """The content security policy stops a script that is added to the page, and the browser reports this. So if a
    title were not shown as text, `test_hostile_titles_are_shown_as_text` would notice its script."""
    open_page(browser, server)
    script = "Object.assign(document.createElement('script'), {textContent: 'document.title = 1'})"
    browser.run(f"document.body.append({script})")
    assert browser.run("document.title") == "Recommendations"
    assert any("Content Security Policy" in str(one) for one in browser.problems())


def test_the_page_asks_for_a_token(browser: Browser, engine: ModelEngine) -> None:
    with running(make_service(engine), token=b"s3cret") as server:
        browser.open(f"http://127.0.0.1:{server.port}/")
        browser.wait("!document.querySelector('#token-form').hidden && document.activeElement.id === 'token'")
        for token, is_right in (("wrong", False), ("s3cret", True)):
            browser.run("document.querySelector('#token').value = ''")
            browser.type(token)
            browser.press("Enter")
            browser.wait(
                "document.querySelectorAll('#list > li').length === 10"
                if is_right
                else "document.querySelector('#facts').textContent === 'This token is wrong.'"
            )

        # If the token is outdated, the page asks for a token again. After the right token is entered, the page shows
        # the same groups as before, and the same group is selected.
        groups = browser.texts("#group option")
        assert len(set(groups)) == len(groups) > 1
        browser.run("document.querySelector('#group').selectedIndex = 2")
        browser.run("sessionStorage.setItem('token', 'outdated')")
        browser.run("document.querySelector('#number').dispatchEvent(new Event('change'))")
        browser.wait("!document.querySelector('#token-form').hidden")
        browser.run("document.querySelector('#token').value = ''")
        browser.type("s3cret")
        browser.press("Enter")
        browser.wait("!document.querySelector('#main').hidden")
        assert browser.texts("#group option") == groups
        assert browser.run("document.querySelector('#group').selectedIndex") == 2


@pytest.mark.parametrize("shape", SHAPES)
def test_pictures(browser: Browser, server: Running, shape: str) -> None:
    open_page(browser, server)
    browser.show(*SHAPES[shape])
    for word in ("amber", "iron", "tower"):
        search(browser, word)
        browser.press("Enter")
        browser.wait("document.querySelector('#results').hidden")
    browser.wait("document.querySelectorAll('#history > li').length === 3")
    browser.wait("document.querySelector('#list').getAttribute('aria-busy') === 'false'")
    browser.click("#list .acts button")
    browser.wait("document.querySelectorAll('.why li').length === 3")
    browser.run("scrollTo(0, 0)")
    browser.picture(PICTURES / f"{shape}.png")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    search(browser, "br")
    browser.run("scrollTo(0, 0)")
    browser.picture(PICTURES / f"{shape}-search.png")
