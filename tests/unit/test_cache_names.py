"""Names in the store's directories: none leads anywhere else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from damselfly.cache.directory import Directory
from damselfly.cache.tree import hub_tree
from damselfly.errors import IntegrityError
from damselfly.model.hub import HubName


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0b"])
def test_a_name_that_leads_elsewhere_is_refused_wherever_it_would_be_made(
    name: str, tmp_path: Path
) -> None:
    with Directory.open(str(tmp_path)) as folder:
        makers: list[Callable[[], object]] = [
            lambda: folder.make_folder(name),
            lambda: folder.create(name),
            lambda: folder.make_link(name, "x"),
            lambda: folder.write(name, b"x"),
            lambda: folder.move("x", folder, name),
            lambda: folder.link("x", folder, name),
            lambda: folder.remove(name),
        ]
        for make in makers:
            with pytest.raises(IntegrityError, match="cannot be a name"):
                make()

    assert list(tmp_path.iterdir()) == []


def test_a_tree_has_no_names_that_lead_out_of_it() -> None:
    name = HubName("org", "name", "0" * 40, ("main", "../../x"))

    with pytest.raises(IntegrityError, match="cannot be a name"):
        hub_tree([], name)
