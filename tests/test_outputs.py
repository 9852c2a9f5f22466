"""No command replaces a file that tuwen did not make; what it made itself it may write again."""

import pytest

from tests.data.test_shards import Memory, rows
from tuwen import cli
from tuwen.benchmark.budget import read_budget
from tuwen.benchmark.ladder import ladder
from tuwen.data.corpora.fetched import MissingList
from tuwen.data.curate.check import Findings
from tuwen.data.curate.check_page import write_page
from tuwen.data.curate.show import contact_sheet
from tuwen.data.fit import Fit
from tuwen.errors import UserError
from tuwen.outputs import check_folder, check_free
from tuwen.search.embed import _settle


def page(path):
    write_page(Findings("x"), path)


def sheet(path):
    contact_sheet(Memory(rows(2)), path)


def missing(path):
    with MissingList(path):
        pass


@pytest.mark.parametrize("command", [page, sheet, missing])
def test_a_users_file_stays_and_ones_own_is_written_again(command, tmp_path):
    path = tmp_path / "out"
    path.write_text("my own")
    with pytest.raises(UserError, match="is there already and was not made by this command"):
        command(path)
    assert path.read_text() == "my own"
    path.unlink()
    command(path)
    first = path.read_bytes()
    command(path)
    assert path.read_bytes() == first


def test_what_may_be_written_to(tmp_path):
    assert check_free(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "empty").touch()
    check_free(tmp_path / "empty")
    check_free("/dev/null", "mark")
    with pytest.raises(UserError, match="a folder"):
        check_free(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(UserError, match="a link to nothing"):
        check_free(tmp_path / "link")


def test_a_folder_of_something_else_takes_no_vectors(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="holds something else than vectors"):
        _settle(tmp_path, {"weights": "a"}, Fit(8), None)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    _settle(tmp_path / "new", {"weights": "a"}, Fit(8), None)
    _settle(tmp_path / "new", {"weights": "a"}, Fit(8), None)


def test_a_folder_of_something_else_takes_no_report(tmp_path):
    assert check_folder(tmp_path / "new", "judged.json") == tmp_path / "new"
    check_folder(tmp_path, "judged.json")
    (tmp_path / "report.html").write_text("my own")
    with pytest.raises(UserError, match=r"holds something else \('report.html'\) and no judged.json"):
        check_folder(tmp_path, "judged.json")
    with pytest.raises(UserError, match="is a file"):
        check_folder(tmp_path / "report.html", "judged.json")
    check_folder(tmp_path, "judged.json", ["report.html"])
    (tmp_path / "judged.json").touch()
    check_folder(tmp_path, "judged.json")


def test_commands_that_would_write_over_something_say_so_before_any_work(tmp_path, capsys):
    """No run is read before: there is none."""
    (tmp_path / "report.html").write_text("my own")
    (tmp_path / "mine.json").write_text("[]")
    runs = ["--runs", "none", "none", "--corpus", "x", "--out", str(tmp_path)]
    for words in (["compare", *runs], ["compare", *runs, "--task", "vqa"]):
        assert cli.main(words) == 1
        assert "holds something else" in capsys.readouterr().err
    words = ["eval", "none", "--corpus", "x", "--task", "vqa", "--predictions", str(tmp_path / "mine.json")]
    assert cli.main(words) == 1
    assert "mine.json: is there already" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds something else"):
        ladder(["clip"], "x", tmp_path, [1, 2], budget=read_budget("steps=1"))
