"""From a directory to a parcel: its files are listed, cut, and hashed, in one pass.

The chunks' digests make the manifest; SHA-256 of each whole file is what hubs, registries and
signatures know files by. A signature is made of the latter and is a file of the parcel like any
other, so that it travels with the model; it is not written into the directory.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock

from damselfly.errors import OriginNotFoundError, UsageError
from damselfly.model.chunker import CHUNK_BYTES_MAX
from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan, PlannedFile
from damselfly.origin import tree
from damselfly.origin.destination import SIGNATURE_NAME, Parcel
from damselfly.origin.tree import LocalFile

_THREADS = 4
"""A file each: SHA-256 goes from front to back. More threads than disks like do not help."""

Advance = Callable[[str, int], None]
"""Is told of bytes of a file that are done with, by one thread at a time; may raise to stop it."""
Sign = Callable[[str, Sequence[tuple[str, str]], bytes | None], bytes]
"""Makes a signature over the directory's name and each file's path and SHA-256 (hex), or gives back
the old one if it is as good: a new one would make another artifact of the same files."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The files of a directory in path order, and how they are cut."""

    directory: Path
    files: tuple[LocalFile, ...]
    plan: Plan

    @property
    def has_signature(self) -> bool:
        """Whether a signature is one of the files."""
        return any(file.path == SIGNATURE_NAME for file in self.files)

    @classmethod
    def of(cls, directory: Path, *, is_signed: bool = False) -> "Survey":
        """Look at a directory; a signature in it is left out if a new one `is_signed`.

        Raises:
            UsageError: it is not a directory.
            OriginNotFoundError, HeaderError, ManifestError: it is not an artifact.
        """
        real = Path(os.path.realpath(directory))
        if not tree.is_directory(real):
            raise UsageError(f"pushing {directory}: it is not a directory")
        files = [
            file for file in tree.walk(real) if not (is_signed and file.path == SIGNATURE_NAME)
        ]
        if not files:
            raise OriginNotFoundError(f"the directory {directory} has no files")
        return cls(real, tuple(files), Plan.of("-", [tree.plan_file(file) for file in files]))


@contextmanager
def packed(
    survey: Survey,
    advance: Advance,
    sign: Sign | None = None,
    *,
    signature: bytes | None = None,
    drops: tuple[str, ...] = (),
) -> Generator[Parcel]:
    """Hash the files that were surveyed; the parcel can be sent while the context is entered.

    `signature` is what the destination has of an earlier push.

    Raises:
        OriginChangedError: a file was written to since, or meanwhile.
        OriginUnavailableError: the disk would not.
    """
    hashed = hash_files(survey.files, survey.plan.files, advance)
    if sign is None:
        parcel = _sealed(survey.directory, survey.files, survey.plan.files, hashed)
        yield replace(parcel, drops=drops)
        return
    pairs = zip(survey.files, hashed, strict=True)
    named = [(file.path, each.sha256) for file, each in pairs]
    made = sign(survey.directory.name, named, signature)
    with tempfile.TemporaryDirectory(prefix="damselfly-push-") as scratch:
        place = Path(scratch) / SIGNATURE_NAME
        place.write_bytes(made)
        file = tree.look_at(SIGNATURE_NAME, place)
        planned = tree.plan_file(file)
        hashed += hash_files((file,), (planned,), _not_told)
        yield _sealed(
            survey.directory, (*survey.files, file), (*survey.plan.files, planned), hashed
        )


@dataclass(frozen=True, slots=True)
class Hashed:
    """The digests of one file: of its chunks in order, and of all of it (hex)."""

    chunks: tuple[Digest, ...]
    sha256: str


def hash_files(
    files: Sequence[LocalFile], planned: Sequence[PlannedFile], advance: Advance
) -> list[Hashed]:
    """Read each file once, several at a time; in memory is one chunk of each that is read.

    Raises:
        OriginChangedError: a file is no longer the one that was planned.
        OriginUnavailableError: the disk would not.
    """
    lock, ended = Lock(), Event()

    def advance_alone(path: str, count: int) -> None:
        with lock:
            if ended.is_set():
                raise InterruptedError
            advance(path, count)

    # The largest first: else it begins last, and runs alone.
    order = sorted(range(len(files)), key=lambda number: -files[number].size)
    with ThreadPoolExecutor(_THREADS, "hash") as threads:
        try:
            futures = {
                number: threads.submit(_hashed, files[number], planned[number], advance_alone)
                for number in order
            }
            for future in wait(futures.values(), return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            ended.set()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return [futures[number].result() for number in range(len(files))]


def _not_told(path: str, count: int) -> None:
    """A signature is small: nobody waits for it."""


def _hashed(file: LocalFile, planned: PlannedFile, advance: Advance) -> Hashed:
    whole = hashlib.sha256()
    chunks: list[Digest] = []
    view = memoryview(bytearray(min(CHUNK_BYTES_MAX, file.size)))
    with tree.opened(file) as descriptor:
        for start, stop in pairwise((0, *planned.stops)):
            chunk = view[: stop - start]
            tree.read_exactly(descriptor, chunk, start, file)
            chunks.append(Digest.of(chunk))
            whole.update(chunk)
            advance(file.path, stop - start)
        tree.check_unchanged(descriptor, file)
    return Hashed(tuple(chunks), whole.hexdigest())


def _sealed(
    directory: Path,
    files: Sequence[LocalFile],
    planned: Sequence[PlannedFile],
    hashed: Sequence[Hashed],
) -> Parcel:
    order = sorted(range(len(files)), key=lambda number: files[number].path)
    plan = Plan.of("-", planned)
    digests = [digest for number in order for digest in hashed[number].chunks]
    return Parcel(
        directory,
        tuple(files[number] for number in order),
        tuple(hashed[number].sha256 for number in order),
        Manifest.seal(plan, digests),
    )
