"""Cut plans: indexes, names, and the compact form that peers exchange."""

import pytest

from damselfly.errors import ManifestError, RemoteProtocolError, explain
from damselfly.model.digest import Digest
from damselfly.model.plan import CHUNKS_MAX, Plan, PlannedFile, Span

SHA = "sha256:" + "0" * 64


def _plan() -> Plan:
    return Plan.of(
        "http://h/x/",
        [
            PlannedFile("b", (4, 4, 1), 'etag:"1"'),
            PlannedFile("a/z", (7,), digests=(SHA,)),
            PlannedFile("empty", ()),
            PlannedFile("c", (2,)),
        ],
    )


def test_files_are_in_path_order_and_chunks_are_counted_through() -> None:
    plan = _plan()

    assert [file.path for file in plan.files] == ["a/z", "b", "c", "empty"]
    assert plan.chunk_count == 5
    assert plan.bytes == 18
    assert tuple(plan.lengths) == (7, 4, 4, 1, 2)
    assert [plan.span(index) for index in range(5)] == [
        Span(0, 0, 7),
        Span(1, 0, 4),
        Span(1, 4, 4),
        Span(1, 8, 1),
        Span(2, 0, 2),
    ]
    assert [list(plan.indexes(file)) for file in range(4)] == [[0], [1, 2, 3], [4], []]


def test_a_plan_is_read_back_from_bytes_and_from_json() -> None:
    plan = _plan()

    assert Plan.parse(plan.canonical()) == plan
    assert Plan.parse(plan.to_json()) == plan


def test_the_order_in_which_files_were_found_does_not_matter() -> None:
    files = [PlannedFile("a", (1,)), PlannedFile("B", (2,)), PlannedFile("a-b", ())]

    assert Plan.of("r", files).id == Plan.of("r", reversed(files)).id


@pytest.mark.parametrize(
    "other",
    [
        Plan.of("http://h/y/", [PlannedFile("a", (2, 2), "v")]),
        Plan.of("http://h/x/", [PlannedFile("b", (2, 2), "v")]),
        Plan.of("http://h/x/", [PlannedFile("a", (4,), "v")]),
        Plan.of("http://h/x/", [PlannedFile("a", (2, 2), "w")]),
        Plan.of("http://h/x/", [PlannedFile("a", (2, 2), "v", (SHA,))]),
        Plan.of("http://h/x/", [PlannedFile("a", (2, 2), "v"), PlannedFile("b", ())]),
    ],
)
def test_whatever_differs_makes_another_plan(other: Plan) -> None:
    assert other.id != Plan.of("http://h/x/", [PlannedFile("a", (2, 2), "v")]).id


def test_an_id_is_the_digest_of_the_bytes() -> None:
    assert _plan().id == Digest.of(_plan().canonical())


def test_a_plan_of_a_terabyte_is_small() -> None:
    files = [PlannedFile(f"model-{i:05}.safetensors", (4 << 20,) * 5000) for i in range(50)]
    plan = Plan.of("http://h/x/", files)

    data = plan.canonical()

    assert len(data) < 5000
    assert Plan.parse(data).chunk_count == 250_000


def test_a_directory_that_makes_no_plan_is_refused() -> None:
    with pytest.raises(ManifestError, match="twice"):
        Plan.of("r", [PlannedFile("a", ()), PlannedFile("a", (1,))])
    with pytest.raises(ManifestError, match="chunks"):
        Plan.of("r", [PlannedFile("a", (1,) * CHUNKS_MAX), PlannedFile("b", (1,))])


def _file(**changes: object) -> dict[str, object]:
    return {"path": "a", "lengths": [[1, 1]], "version": "", "digests": [], **changes}


REFUSED: list[tuple[object, str]] = [
    (None, "expected dict"),
    ([], "expected dict"),
    ({}, "wrong fields"),
    ({"ref": "r", "files": [], "more": 1}, "wrong fields"),
    ({"ref": "", "files": []}, "empty"),
    ({"ref": 1, "files": []}, "expected str"),
    ({"ref": "a\nb", "files": []}, "one line"),
    ({"ref": "r" * 5000, "files": []}, "too long"),
    ({"ref": "r", "files": {}}, "expected list"),
    ({"ref": "r", "files": [1]}, "expected dict"),
    ({"ref": "r", "files": [{}]}, "wrong fields"),
    ({"ref": "r", "files": [_file(path="../a")]}, "component"),
    ({"ref": "r", "files": [_file(path=7)]}, "expected str"),
    ({"ref": "r", "files": [_file(), _file()]}, "twice"),
    ({"ref": "r", "files": [_file(path="b"), _file()]}, "path order"),
    ({"ref": "r", "files": [_file(), _file(path="a/b")]}, "is a file"),
    ({"ref": "r", "files": [_file(version="v" * 600)]}, "too long"),
    ({"ref": "r", "files": [_file(version="\x00")]}, "one line"),
    ({"ref": "r", "files": [_file(digests=["blake3:" + "0" * 64])]}, "sha256"),
    ({"ref": "r", "files": [_file(digests=[SHA, SHA])]}, "repeat"),
    ({"ref": "r", "files": [_file(lengths=[[0, 1]])]}, "0 bytes"),
    ({"ref": "r", "files": [_file(lengths=[[-1, 1]])]}, "-1 bytes"),
    ({"ref": "r", "files": [_file(lengths=[[5 << 20, 1]])]}, "5242880 bytes"),
    ({"ref": "r", "files": [_file(lengths=[[1, 0]])]}, "empty"),
    ({"ref": "r", "files": [_file(lengths=[[1, 1], [1, 1]])]}, "continues"),
    ({"ref": "r", "files": [_file(lengths=[[1, 10**12]])]}, "more than"),
    ({"ref": "r", "files": [_file(lengths=[[1, True]])]}, "not [length, count]"),
    ({"ref": "r", "files": [_file(lengths=[[1.0, 1]])]}, "not [length, count]"),
    ({"ref": "r", "files": [_file(lengths=[1, 1])]}, "not [length, count]"),
    ({"ref": "r", "files": [_file(lengths="11")]}, "expected list"),
]


@pytest.mark.parametrize(("value", "why"), REFUSED)
def test_a_plan_that_breaks_a_rule_is_refused(value: object, why: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        Plan.parse(value)

    assert why in explain(caught.value)


def test_chunks_are_counted_over_all_files_before_they_are_built() -> None:
    files = [_file(path=f"{i:02}", lengths=[[1, CHUNKS_MAX // 4]]) for i in range(5)]

    with pytest.raises(RemoteProtocolError) as caught:
        Plan.parse({"ref": "r", "files": files})

    assert "more than" in explain(caught.value)
