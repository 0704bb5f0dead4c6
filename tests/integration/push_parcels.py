"""Parcels as a push makes them; as a program, a push to S3 that a test may kill."""

import asyncio
import hashlib
import sys
from itertools import pairwise
from pathlib import Path

from damselfly.model.digest import Digest
from damselfly.model.manifest import Manifest
from damselfly.model.plan import Plan
from damselfly.model.ref import Ref
from damselfly.origin import tree
from damselfly.origin.access import Access
from damselfly.origin.bucket_push import MIB
from damselfly.origin.destination import Parcel
from damselfly.origin.port import OriginLimits
from damselfly.origin.s3_place import S3Place
from damselfly.origin.s3_push import S3Destination
from damselfly.origin.web import Web
from tests.integration.bucket_servers import KEY_ID, SECRET


def parcel_of(directory: Path) -> Parcel:
    files = tree.walk(directory)
    plan = Plan.of("-", [tree.plan_file(file) for file in files])
    digests: list[Digest] = []
    sha256: list[str] = []
    for file, planned in zip(files, plan.files, strict=True):
        data = file.location.read_bytes()
        sha256.append(hashlib.sha256(data).hexdigest())
        spans = pairwise((0, *planned.stops))
        digests += [Digest.of(data[start:stop]) for start, stop in spans]
    return Parcel(directory, tuple(files), tuple(sha256), Manifest.seal(plan, digests))


def ignore(path: str, count: int) -> None:
    """How far it is matters to nobody."""


async def main(address: str, ref: str, directory: str) -> None:
    limits = OriginLimits()
    web = Web(limits)
    keys = Access.of(None, KEY_ID, SECRET)
    place = S3Place(address)
    destination = S3Destination(Ref.parse(ref), web, keys, limits, place, part_bytes=5 * MIB)
    parcel = parcel_of(Path(directory))
    await destination.push(parcel, await destination.standing(parcel), ignore)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
