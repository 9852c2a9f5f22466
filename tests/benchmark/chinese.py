"""What a Chinese reader sees of a page, and the English words left in it."""

import re
from html.parser import HTMLParser

NAMES = {*("clip", "albef", "tuwen", "en", "zh", "test", "val", "tiny", "run", "steps"), *("R", "K", "w", "p", "Holm")}
NAMES |= {"MiB", "MFLOPs"}


class Visible(HTMLParser):
    """What a Chinese reader sees, but for files, settings, and texts of the corpus in English."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag in ("style", "pre", "summary", "code") or dict(attrs).get("lang") == "en")

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        if not any(self.open):
            self.text.append(data)


def english_of(text: str, names) -> set[str]:
    return set(re.findall("[A-Za-z]+", text)) - names
