"""What holds of cuts, plans, manifests and bitmaps, whatever goes in."""

import json

from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from damselfly.model import chunker, safetensors
from damselfly.model.bitmap import Bitmap
from damselfly.model.chunker import CHUNK_BYTES, CHUNK_BYTES_MAX, TENSOR_ALONE_BYTES
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan, PlannedFile

_NEAR = [0, 1, TENSOR_ALONE_BYTES, CHUNK_BYTES, CHUNK_BYTES_MAX, 2 * CHUNK_BYTES]
_SIZES = st.lists(
    st.integers(0, 20 * CHUNK_BYTES)
    | st.integers(0, TENSOR_ALONE_BYTES)
    | st.sampled_from(
        [near + off for near in _NEAR for off in (-2, -1, 0, 1, 2) if near + off >= 0]
    ),
    max_size=40,
)


def _header(sizes: list[int], pad: int = 0) -> tuple[safetensors.Header, int]:
    entries: dict[str, object] = {}
    start = 0
    for number, size in enumerate(sizes):
        offsets = [start, start + size]
        entries[str(number)] = {"dtype": "U8", "shape": [size], "data_offsets": offsets}
        start += size
    text = json.dumps(entries).encode() + b" " * pad
    file_bytes = 8 + len(text) + start
    return safetensors.parse(len(text).to_bytes(8, "little") + text, file_bytes), file_bytes


@given(_SIZES)
def test_cuts_cover_the_file_and_respect_tensors(sizes: list[int]) -> None:
    header, file_bytes = _header(sizes)

    lengths = chunker.cut_safetensors(header)

    assert sum(lengths) == file_bytes
    assert all(1 <= length <= CHUNK_BYTES_MAX for length in lengths)
    cuts = {0, *PlannedFile("a", lengths).stops}
    assert header.length in cuts
    for tensor in header.tensors:
        size = tensor.stop - tensor.start
        inside = {cut for cut in cuts if tensor.start < cut < tensor.stop}
        if size >= TENSOR_ALONE_BYTES:
            assert {tensor.start, tensor.stop} <= cuts
            assert all((cut - tensor.start) % CHUNK_BYTES == 0 for cut in inside)
        else:
            assert not inside


@given(_SIZES, _SIZES, st.integers(TENSOR_ALONE_BYTES, 10 * CHUNK_BYTES), st.integers(0, 99))
def test_a_big_tensor_has_the_same_chunks_wherever_it_lies(
    before: list[int], after: list[int], size: int, pad: int
) -> None:
    alone, _ = _header([size])
    among, _ = _header([*before, size, *after], pad)

    tensor = among.tensors[len(before)]
    planned = PlannedFile("a", chunker.cut_safetensors(among))
    own = [stop - tensor.start for stop in planned.stops if tensor.start < stop <= tensor.stop]

    assert own == [
        stop - alone.length for stop in PlannedFile("a", chunker.cut_safetensors(alone)).stops[1:]
    ]


@given(st.integers(0, 1 << 40))
def test_other_files_are_cut_every_chunk(size: int) -> None:
    lengths = chunker.cut(size)

    assert sum(lengths) == size
    assert all(length == CHUNK_BYTES for length in lengths[:-1])


_PLANS = st.dictionaries(
    st.text("ab/.ü", min_size=1, max_size=6).map(lambda text: "f" + text.replace("/", "-")),
    st.tuples(
        st.lists(st.integers(1, CHUNK_BYTES_MAX) | st.just(CHUNK_BYTES), max_size=8).map(tuple),
        st.text("abc 1:", max_size=5),
    ),
    max_size=6,
).map(lambda files: Plan.of("r", [PlannedFile(path, *rest) for path, rest in files.items()]))


@settings(deadline=None)
@given(_PLANS)
def test_a_plan_is_what_it_is_read_back_as(plan: Plan) -> None:
    again = Plan.parse(plan.canonical())

    assert again == plan
    assert again.id == plan.id
    position = 0
    for index in range(plan.chunk_count):
        span = plan.span(index)
        position = 0 if index == plan.firsts[span.file] else position
        assert span.start == position
        assert index in plan.indexes(span.file)
        position += span.length


@settings(deadline=None)
@given(_PLANS)
def test_a_sealed_manifest_is_what_it_is_read_back_as(plan: Plan) -> None:
    manifest = Manifest.seal(plan, [Digest.of(b"%d" % i) for i in range(plan.chunk_count)])

    again = Manifest.parse(manifest.canonical())

    assert again == manifest
    assert again.digest == manifest.digest
    assert tuple(again.plan("r").lengths) == tuple(plan.lengths)


class BitmapIsASet(RuleBasedStateMachine):
    """A bitmap against a set of integers."""

    @initialize(size=st.integers(1, 200))
    def start(self, size: int) -> None:
        self.bitmap = Bitmap(size)
        self.model: set[int] = set()

    @rule(index=st.integers(0, 199))
    def add(self, index: int) -> None:
        self.bitmap.add(index % self.bitmap.size)
        self.model.add(index % self.bitmap.size)

    @rule(index=st.integers(0, 199))
    def discard(self, index: int) -> None:
        self.bitmap.discard(index % self.bitmap.size)
        self.model.discard(index % self.bitmap.size)

    @rule()
    def fill(self) -> None:
        self.bitmap = Bitmap.full(self.bitmap.size)
        self.model = set(range(self.bitmap.size))

    @rule()
    def travel(self) -> None:
        self.bitmap = Bitmap.parse(self.bitmap.size, self.bitmap.to_bytes())

    @invariant()
    def agrees(self) -> None:
        assert list(self.bitmap) == sorted(self.model)
        assert len(self.bitmap) == len(self.model)
        assert self.bitmap.is_full == (len(self.model) == self.bitmap.size)
        assert all((i in self.bitmap) == (i in self.model) for i in range(self.bitmap.size))
        assert self.bitmap == Bitmap.of(self.bitmap.size, self.model)


TestBitmapIsASet = BitmapIsASet.TestCase
TestBitmapIsASet.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
