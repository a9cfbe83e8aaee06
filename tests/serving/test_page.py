"""The page, driven in headless Chromium: needs the extra `browser` and a Chromium on the machine."""

import os
import re
import shutil

import pytest

pytestmark = pytest.mark.slow
SHOTS = os.environ.get("GPT_NEO_SCREENSHOTS")  # a folder to look at


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as p:
        found = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


def open_page(browser, server, **options):
    """The page, and the addresses that it asked for; a script's error fails the test."""
    page = browser.new_page(**options)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(server.url + "/")
    until(page, "document.querySelector('#layer').options.length > 0")
    return page, asked, errors


def until(page, condition):
    """Wait for a JavaScript condition; Playwright's own waiting evaluates strings, which the page's policy forbids."""
    for _ in range(1500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never came true: {condition}")


def shoot(page, name):
    if SHOTS:
        page.screenshot(path=os.path.join(SHOTS, name + ".png"), full_page=True)


def generate(page, prompt, **fields):
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        page.fill("#" + name, str(value))
    page.click("#generate")
    until(page, "!document.querySelector('#generate').disabled")


def test_generate_hover_and_switch_layers(browser, server):
    page, asked, errors = open_page(browser, server, viewport={"width": 1100, "height": 900})
    generate(page, "The reindeer of the far — naïve", max_tokens=60, seed=4)
    assert re.match(r"\d+ tokens in [\d.]+ s", page.inner_text("#status"))
    expected = server.fetch(
        "/v1/completions",
        {
            "prompt": "The reindeer of the far — naïve",
            "max_tokens": 60,
            "seed": 4,
            "temperature": 0.8,
            "top_p": 0.95,
            "echo": True,
        },
    )[2]["choices"][0]["text"]
    assert page.text_content("#text") == expected
    token = page.locator("#text .token:not(.prompt):not(:empty)").nth(1)
    token.hover()
    assert "probability" in page.inner_text("#detail") and page.locator("#detail tr").count() >= 8
    assert page.locator("#detail tr.taken").count() == 1
    assert not re.search(r"e-\d %", page.inner_text("#detail").replace("e-7 %", "").replace("e-8 %", "")), "0.02 %"
    colours = page.eval_on_selector_all("#text .token", "found => found.map(x => getComputedStyle(x).backgroundColor)")
    assert len(set(colours)) > 5
    page.focus("#text")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    pictures = set()
    for value, kind in (("0", "global"), ("1", "local, window 24"), ("2", "gla")):
        page.select_option("#layer", value)
        until(page, f"document.querySelector('#kind').textContent === '{kind}'")
        pictures.add(page.eval_on_selector("#picture", "canvas => canvas.toDataURL()"))
        assert "looks at" in page.inner_text("#cell")
        shoot(page, f"wide_{kind.split(',')[0]}")
    assert len(pictures) == 3 and page.locator("#head option").count() == 4
    page.uncheck("#colour")
    assert page.eval_on_selector("#text .token:last-child", "x => x.style.backgroundColor") == ""
    assert not errors and all(url.startswith((server.url, "data:")) for url in asked)


def test_the_server_alone_says_which_numbers_are_right(browser, server):
    """A browser's own check would refuse 0.75 where arrows go by 0.1."""
    page, _, _ = open_page(browser, server)
    generate(page, "The ice", max_tokens=4, temperature=0.75, top_p=0.995, frequency_penalty=0.25, seed=1)
    assert re.match(r"\d+ tokens in [\d.]+ s", page.inner_text("#status"))
    generate(page, "The ice", temperature=-1)
    assert "temperature is -1" in page.inner_text("#status")


def stopped(page, seed, halt):
    """Whether an answer was stopped on its way."""
    for name, value in (("prompt", "ice"), ("max_tokens", "150"), ("temperature", "3"), ("seed", str(seed))):
        page.fill("#" + name, value)
    page.keyboard.press("Control+Enter")
    until(page, "document.querySelector('#text .token:not(.prompt)') || !document.querySelector('#generate').disabled")
    halt()
    until(page, "!document.querySelector('#generate').disabled")
    return page.inner_text("#status").startswith("stopped after")


def test_stop_by_button_and_by_key(browser, server):
    page, _, errors = open_page(browser, server)
    press = "document.querySelector('#halt').click()"
    for halt in (lambda: page.evaluate(press), lambda: page.keyboard.press("Escape")):
        assert any(stopped(page, seed, halt) for seed in range(8))  # some answers end by themselves before that
    assert not errors
    for _ in range(200):
        if not server.engine.rows:
            break
        page.wait_for_timeout(10)
    assert not server.engine.rows


def test_phone_dark_and_errors(browser, server):
    page, _, _ = open_page(
        browser,
        server,
        viewport={"width": 390, "height": 844},
        color_scheme="dark",
        has_touch=True,
        is_mobile=True,  # no keyboard, no mouse
        device_scale_factor=2,
    )
    assert "Ctrl" not in page.inner_text("body")
    generate(page, "The ice", max_tokens=40, seed=1)
    page.locator("#text .token").nth(3).tap()
    assert "token 4" in page.inner_text("#detail")
    page.wait_for_selector("#picture:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", ground)[:3])) < 60
    shoot(page, "phone_dark")
    page.fill("#stop", "")
    page.evaluate("document.querySelector('#form').noValidate = true")
    generate(page, "The ice", max_tokens=4000)
    assert "the model's length is 160" in page.inner_text("#status")
    assert page.get_attribute("#status", "class") == "error"
    assert page.text_content("#text") == "" and page.is_hidden("#picture") and page.is_hidden("#kind")
    assert page.inner_text("#explain").startswith("Generate a text")


def test_numbers_that_are_none_are_told(browser, server):
    """The value of such a field is empty, which would ask for the server's default without a word."""
    page, _, errors = open_page(browser, server)
    for name, typed, told in (
        ("temperature", "0.5-", "temperature is no number"),
        ("max_tokens", "--5", "max_tokens is no number"),
        ("seed", "9007199254740993", "seed is 9007199254740993; this page sends whole numbers of at most 9007199254"),
    ):
        page.focus("#" + name)
        page.keyboard.press("Control+A")
        page.keyboard.type(typed)
        generate(page, "The ice")
        assert page.inner_text("#status").startswith(told) and page.get_attribute("#status", "class") == "error"
        page.fill("#" + name, "1")
    generate(page, "The ice")
    assert page.inner_text("#status").startswith("1 token in ")
    page.evaluate("document.querySelector('#key-field').hidden = false")
    page.fill("#key", "schlüssel\u20ac")
    generate(page, "The ice")
    assert "other characters than those of ASCII" in page.inner_text("#status") and not errors


def test_a_lost_connection_is_told_in_words(browser, server):
    """Also where it ends as if all were well, as behind a proxy: an answer without its end is not a short one."""
    page, _, _ = open_page(browser, server)
    generate(page, "The ice", max_tokens=4)
    page.route("**/v1/completions", lambda route: route.abort("connectionrefused"))
    generate(page, "The ice")
    assert page.inner_text("#status") == "the server does not answer"
    page.unroute("**/v1/completions")

    def cut(route):
        whole = route.fetch().body()
        route.fulfill(body=whole[: whole.index(b"data: [DONE]")], content_type="text/event-stream")

    page.route("**/v1/completions", cut)
    generate(page, "The ice")
    assert page.inner_text("#status") == "the connection to the server broke off before the text's end"
    assert page.get_attribute("#status", "class") == "error" and "The ice" in page.text_content("#text")


def test_a_token_past_the_picture_has_no_words_of_another(browser, server):
    page, _, _ = open_page(browser, server)
    page.evaluate("page.model.picture_tokens = 4")
    generate(page, "The ice of the far", max_tokens=8, seed=1)
    page.wait_for_selector("#picture:not([hidden])")
    assert "tokens are left out" in page.inner_text("#explain")
    page.focus("#text")
    page.keyboard.press("Home")
    assert page.inner_text("#cell").startswith("token 1 ")
    page.keyboard.press("End")
    assert page.inner_text("#cell") == "The picture ends before this token."
