"""The page in headless Chromium: both languages, a dropped picture, words, filters, keyboard, phone, dark, keys.

About a minute on one idle core; needs Debian's `chromium` and `chromium-driver`.
"""

import base64
import contextlib
import json
import shutil
import subprocess

import pytest

from tests.search.common import make_run
from tests.search.service.conftest import pictures
from tests.search.service.live import serving
from tuwen.search.build import build_index
from tuwen.search.pictures import Picture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="no chromium or chromedriver here: apt-get install chromium chromium-driver",
    ),
]
WAIT = 20
SCRIPT = "<img src=x onerror=\"document.title='broken in'\">"


def browser(language="en-US"):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    words = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--lang={language}")
    for word in (*words, "--window-size=1280,900", f"--accept-lang={language}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


class Page:
    """A page in a browser, spoken to by selectors."""

    def __init__(self, driver):
        self.driver = driver

    def all(self, selector):
        from selenium.webdriver.common.by import By

        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector):
        return self.all(selector)[0]

    def until(self, what):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.wait import WebDriverWait

        wait = WebDriverWait(self.driver, WAIT, 0.05, [StaleElementReferenceException, IndexError])
        return wait.until(lambda driver: what())

    def script(self, text, *arguments):
        return self.driver.execute_script(text, *arguments)

    def search(self, text):
        box = self.one("#text")
        box.clear()
        box.send_keys(text + "\n")
        self.settled()

    def settled(self):
        """Until results are there, with their pictures."""
        pictures_loaded = (
            "return [...document.querySelectorAll('.picture img')].every(i => i.complete && i.naturalWidth)"
        )
        said = ("results in", "result in", "个结果")
        self.until(lambda: any(one in self.one("#status").text for one in said) and self.script(pictures_loaded))

    def hover(self, element):
        from selenium.webdriver import ActionChains

        self.script("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver).move_to_element(element).perform()

    def keys(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def painted(self):
        """How many pixels of the first picture's heat map are not clear."""
        return self.script(
            "const c = document.querySelector('canvas');"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
            "return d.filter((v, k) => k % 4 === 3 && v > 0).length"
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "index"
    evil = Picture(pictures(1, seed=9)[0].image, "evil", {"en": [SCRIPT]}, {"shelf": SCRIPT})
    build_index(make_run(path.parent / "wukong", "wukong"), [*pictures(30), evil], path)
    return path


@pytest.fixture(scope="module")
def url(folder):
    with serving(folder, "--no-keys") as live:
        yield live.url


@pytest.fixture
def page(url):
    with opened(url) as page:
        yield page


@contextlib.contextmanager
def opened(url, language="en-US"):
    driver = browser(language)
    try:
        driver.get(url)
        page = Page(driver)
        yield page
        wrong = [
            line for line in driver.get_log("browser") if line["level"] == "SEVERE" and " 401 " not in line["message"]
        ]
        assert wrong == []
        asked = page.script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert all(one.startswith((url, "blob:" + url)) for one in asked), asked
        assert driver.title == "图文 tuwen"
    finally:
        driver.quit()


@pytest.mark.parametrize(
    ("language", "query", "placeholder", "ready", "first"),
    [
        ("zh-CN", "一只红色的鸟", "描述要找的图片", "共 31 张图片；只用初排", "初排"),
        ("en-US", "a red bird", "Describe what you look for", "31 pictures; first stage alone", "first"),
    ],
)
def test_search_in_the_browser_s_language(url, language, query, placeholder, ready, first):
    with opened(url, language) as page:
        page.until(lambda: page.one("#status").text == ready)
        assert page.script("return document.documentElement.lang").startswith(language[:2])
        assert page.one("#text").get_attribute("placeholder").startswith(placeholder)
        page.search(query)
        assert len(page.all(".card")) == 20
        assert page.one(".card dl").text.split()[0] == first
        scores = [float(one.text) for one in page.all(".card .first dd")]
        assert scores == sorted(scores, reverse=True)
        page.one("#more").click()
        page.until(lambda: len(page.all(".card")) == 31)
        both = page.one(".card .caption").get_attribute("title").splitlines()[1:]
        assert page.one(".card .caption").text == next(text for text in both if text.isascii() == (language == "en-US"))
        page.one("#language").click()
        assert page.script("return document.documentElement.lang")[:2] == {"zh": "en", "en": "zh"}[language[:2]]
        assert len(page.all(".card")) == 31
        page.driver.refresh()
        page.settled()  # the query stands in the address
        assert page.one("#text").get_attribute("value") == query


def drop(page, data):
    page.script(
        "const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));"
        "const held = new DataTransfer();"
        "held.items.add(new File([bytes], \"it's mine.jpg\", {type: 'image/jpeg'}));"
        "for (const kind of ['dragover', 'drop'])"
        "  document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: held, bubbles: true, cancelable: true}));",
        base64.b64encode(data).decode(),
    )


def test_a_dropped_picture_finds_itself(page):
    page.until(lambda: "31" in page.one("#status").text)
    right = pictures(30)[7]
    drop(page, right.image)
    page.settled()
    assert page.one(".card .caption").get_attribute("title").splitlines()[0] == right.id
    assert page.one("#chosen").is_displayed()
    assert "picture=@\"it'\\''s mine.jpg\"" in page.one("#curl").get_attribute("textContent")
    page.search("a cat")  # both together
    assert page.one("#chosen").is_displayed()
    page.one("#forget").click()
    page.settled()
    assert not page.one("#chosen").is_displayed()


def test_a_hovered_word_shows_where_it_matched(page):
    page.search("a red bird")
    assert page.painted() == 0
    page.hover(page.one(".picture"))
    word = page.until(lambda: page.one(".words button"))
    page.hover(word)
    page.until(lambda: page.painted() > 0)
    assert "shown" in word.get_attribute("class")
    page.hover(page.one("#text"))
    page.until(lambda: page.painted() == 0)


def test_filters_and_similar_pictures(page):
    from selenium.webdriver.support.ui import Select

    page.until(lambda: len(page.all("#filters select")) == 3)
    page.search("a cat")
    Select(page.one("#filters select[name=shelf]")).select_by_visible_text("b")
    page.until(lambda: len(page.all(".card")) == 10)
    rows = {int(one.get_attribute("title").splitlines()[0].split("-")[1][:-4]) for one in page.all(".caption")}
    assert rows == set(range(1, 30, 3))
    Select(page.one("#filters select[name=shelf]")).select_by_visible_text("any")
    page.until(lambda: len(page.all(".card")) == 20)
    for end, value in (("min", "3"), ("max", "5")):
        page.one(f"#filters input[name='price {end}']").send_keys(value + "\n")
    page.until(lambda: len(page.all(".card")) == 3)
    for end in ("min", "max"):
        page.one(f"#filters input[name='price {end}']").clear()
    page.until(lambda: len(page.all(".card")) == 20)
    page.one("#filters input[name='price min']").send_keys("3..6\n")
    page.until(lambda: len(page.all(".card")) == 4)
    assert page.one("#filters input[name='price max']").get_attribute("value") == "6"
    for end in ("min", "max"):
        page.one(f"#filters input[name='price {end}']").clear()
    page.until(lambda: len(page.all(".card")) == 20)
    before = page.one(".caption").get_attribute("title")
    page.one(".similar").click()
    page.until(lambda: "Pictures like" in page.one("#status").text and page.all(".card"))
    assert before not in [one.get_attribute("title") for one in page.all(".caption")]
    page.driver.back()
    page.until(lambda: page.all(".card") and page.one(".caption").get_attribute("title") == before)


def test_the_command_shown_gives_the_same(page):
    if not shutil.which("curl"):
        pytest.skip("no curl here")
    page.search('it\'s a "red" bird $HOME `ls`')
    ids = [one.get_attribute("title").splitlines()[0] for one in page.all(".caption")]
    page.one("#command summary").click()
    command = page.one("#curl").text
    found = json.loads(subprocess.run(command, shell=True, capture_output=True, check=True).stdout)
    assert [one["id"] for one in found["results"]] == ids
    page.one("#copy").click()
    page.until(lambda: page.one("#copy").text == "Copied")


def test_keys_alone_are_enough(page):
    from selenium.webdriver import Keys

    page.until(lambda: "31" in page.one("#status").text)
    page.script("document.activeElement.blur()")
    page.keys("/", "a cat", Keys.ENTER)
    page.settled()
    page.script("document.querySelector('.picture').focus()")
    focused = "return [...document.querySelectorAll('.picture')].indexOf(document.activeElement)"
    page.keys(Keys.ARROW_RIGHT)
    assert page.script(focused) == 1
    columns = len(
        page.script("return getComputedStyle(document.querySelector('#results')).gridTemplateColumns").split()
    )
    page.keys(Keys.ARROW_DOWN)
    assert page.script(focused) == 1 + columns
    page.keys(Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert page.script(focused) == 0
    page.until(lambda: page.one(".words button"))
    page.keys(Keys.TAB)
    page.until(lambda: page.painted() > 0)
    page.keys(Keys.ESCAPE)
    assert page.painted() == 0


def test_a_phone(page):
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    page.search("a cat")
    assert page.script("return document.documentElement.scrollWidth <= innerWidth")
    columns = page.script("return getComputedStyle(document.querySelector('#results')).gridTemplateColumns").split()
    assert len(columns) == 2
    page.script("document.querySelector('.picture').click()")  # a tap
    page.until(lambda: page.one(".words button"))
    page.script("document.querySelector('.words button').click()")
    page.until(lambda: page.painted() > 0)


def test_light_and_dark(page):
    def ground(scheme):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        colour = page.script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(int, colour[4:-1].split(","))) / 3

    assert ground("light") > 200
    assert ground("dark") < 60


def test_texts_are_never_markup(page):
    page.until(lambda: "31" in page.one("#status").text)
    page.driver.get(page.driver.current_url.split("#")[0] + "#like=evil")
    page.driver.refresh()
    page.settled()
    drop(page, pictures(1, seed=9)[0].image)
    page.until(lambda: page.all(".caption") and page.one(".caption").text.startswith("<img"))
    assert page.all(".caption img, select img") == []


def test_a_service_with_keys_asks_for_one(folder, key_file):
    with serving(folder, "--keys", str(key_file[0])) as live, opened(live.url) as page:
        page.until(lambda: page.one("#key").is_displayed())
        page.one("#key-text").send_keys("wrong\n")
        page.until(lambda: page.one("#status").text == "there is no such key")
        page.one("#key-text").send_keys(key_file[1] + "\n")
        page.until(lambda: "31" in page.one("#status").text)
        page.search("a cat")
        assert '-H "Authorization: Bearer $TUWEN_KEY"' in page.one("#curl").get_attribute("textContent")
        assert key_file[1] not in page.driver.page_source


@pytest.fixture(scope="module")
def dated(tmp_path_factory):
    """An index of `albef`, whose pictures have a day each."""
    path = tmp_path_factory.mktemp("dated") / "index"
    rows = [
        Picture(one.image, one.id, one.texts, one.columns | {"day": f"2024-05-{k + 1:02d}"})
        for k, one in enumerate(pictures(24))
    ]
    build_index(make_run(path.parent / "albef", "albef"), rows, path)
    return path


def test_the_home_page_shows_the_collection_days_are_a_range_and_a_card_says_all(dated):
    with serving(dated, "--no-keys") as live, opened(live.url) as page:
        page.until(lambda: len(page.all(".card")) == 20)
        assert page.one("#status").text.startswith("24 pictures")
        assert page.one(".card .id").text == pictures(1)[0].id
        assert "price: 0" in page.one(".card .columns").text
        assert not page.one(".card dl").is_displayed(), "nothing is ranked yet"
        day = "#filters input[name='day min']"
        page.script(
            f'const i = document.querySelector("{day}"); i.value = "2024-05-20"; i.dispatchEvent(new Event("change"))'
        )
        page.until(lambda: len(page.all(".card")) == 5)
        page.search("a red bird")
        assert len(page.all(".card")) == 5
        assert all(one.is_displayed() for one in page.all(".card .score"))
        page.one(".larger").click()
        lines = page.until(lambda: [one.text for one in page.all("#larger li")])
        assert any(line.startswith("day: 2024-05-2") for line in lines)
        page.script("document.querySelector('dialog').close()")
        page.one(".similar").click()
        page.until(lambda: "Pictures like" in page.one("#status").text and page.all(".card"))
        assert not any(one.is_displayed() for one in page.all(".card .score")), "none of these was re-ranked"
        price = page.one("#filters input[name='price min']")
        price.send_keys("900\n")
        page.until(lambda: not page.all(".card"))
        assert page.one("#status").text.endswith("no picture passes the filters (day, price); take one away")


def test_the_columns_on_cards_are_chosen_and_remembered(dated):
    def columns():
        return [one.text for one in page.all(".card .columns")]

    def tick(name):
        page.script("arguments[0].click()", page.one(f"#columns input[name='{name}']"))

    with serving(dated, "--no-keys") as live, opened(live.url, "zh-CN") as page:
        page.until(lambda: len(page.all(".card")) == 20)
        assert page.one("#columns summary").text == "卡片上的列"
        names = [one.get_attribute("name") for one in page.all("#columns input")]
        assert {"price", "day"} <= set(names)
        assert all("price: " in text and "day: " not in text for text in columns()), "the first four"
        page.one("#columns summary").click()
        for name in names:
            if name != "price" and page.one(f"#columns input[name='{name}']").is_selected():
                tick(name)
        assert all(text == f"price: {text.split()[-1]}" for text in columns())
        tick("day")
        assert page.script("return document.activeElement !== document.body"), "the box keeps the focus"
        page.driver.refresh()
        page.until(lambda: len(page.all(".card")) == 20)
        assert all("day: 2024-05" in text and "shelf" not in text for text in columns())
        tick("day")
        tick("price")
        assert columns() == [""] * 20


def test_the_requests_are_described_from_local_files(url):
    with opened(url) as page:
        page.driver.get(url + "/docs")
        page.until(lambda: len(page.all(".route")) == 12)
        assert any("curl -sS" in one.text for one in page.all("pre"))
        page.driver.get(url)
