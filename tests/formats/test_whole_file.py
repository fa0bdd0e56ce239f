"""Files that appear whole: what must not be replaced by one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from qconv.errors import OutputExistsError
from qconv.formats.whole_file import refuse_existing, refuse_foreign, whole_file


def test_a_pipe_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputExistsError, match="a device, a pipe or a socket"), whole_file(pipe) as file:
        file.write(b"x")
    for force in (False, True):
        with pytest.raises(OutputExistsError, match="a device, a pipe or a socket"):
            refuse_existing(pipe, force)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [pipe]


def test_a_link_that_leads_nowhere_is_there(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(OutputExistsError, match="the output exists"):
        refuse_existing(link, force=False)
    refuse_existing(link, force=True)


def test_only_an_older_one_of_its_kind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    refuse_foreign(path, b"# recipe")
    path.write_bytes(b"# recipe of yesterday")
    refuse_foreign(path, b"# recipe")
    path.write_bytes(b"GGUF")
    with pytest.raises(OutputExistsError, match="another kind of file"):
        refuse_foreign(path, b"# recipe")
