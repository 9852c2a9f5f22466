"""What the page reads in the two fields of a range, by its own script in Node; the page itself: test_page."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import tuwen.search

SCRIPT = Path(tuwen.search.__file__).parent / "page" / "filters.js"
BEGIN = """
globalThis.localStorage = { getItem: () => "en" };
const { rangeOf } = await import(process.argv[1]);
console.log(JSON.stringify(JSON.parse(process.argv[2]).map(rangeOf)));
"""
RANGES = [
    (["10", "20"], {"min": 10, "max": 20}),
    (["10..20", ""], {"min": 10, "max": 20}),
    (["3", "10..20"], {"min": 10, "max": 20}),  # what is written last stands for both
    (["10..", ""], {"min": 10}),
    (["", "..20"], {"max": 20}),
    ([" -1.5 .. 2 ", ""], {"min": -1.5, "max": 2}),
    (["..", ""], {}),
    (["", ""], {}),
    (["0", ""], {"min": 0}),
    (["cheap", ""], None),
    (["10..many", ""], None),
    (["Infinity", ""], None),
]


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
def test_ranges():
    texts = json.dumps([texts for texts, _ in RANGES])
    words = ["node", "--input-type=module", "-e", BEGIN, SCRIPT.as_uri(), texts]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [right for _, right in RANGES]
