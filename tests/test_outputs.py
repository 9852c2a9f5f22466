"""No command replaces a file that tuwen did not make; what it made itself it may write again."""

import pytest

from tests.data.test_shards import Memory, rows
from tuwen.data.corpora.fetched import MissingList
from tuwen.data.curate.check import Findings
from tuwen.data.curate.check_page import write_page
from tuwen.data.curate.show import contact_sheet
from tuwen.data.fit import Fit
from tuwen.errors import UserError
from tuwen.outputs import check_free
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
