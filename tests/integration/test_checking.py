"""Whole files against what their origin published: right, wrong, mended; one agent and three."""

import asyncio
import json
import os
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path

import pytest

from damselfly.cli import main
from damselfly.errors import DigestMismatchError, OriginNotFoundError
from damselfly.model.digest import Digest
from damselfly.model.manifest import MANIFEST_NAME, Manifest
from damselfly.model.ref import Ref
from damselfly.p2p.hashing import Found, HashReport
from damselfly.p2p.messages import AgentID, SwarmID
from tests.integration.agent_fleet import PublishingOrigin, ServedModel, fleet, sha256

MIB = 1 << 20


def served_model() -> ServedModel:
    model = ServedModel(
        {
            "a.bin": os.urandom(9 * MIB),
            "b.bin": os.urandom(5 * MIB + 7),
            "config.json": b'{"a": 1}\n',
            "empty": b"",
        }
    )
    model.publish()
    return model


async def test_agents_share_the_reading_and_seal_what_was_published(tmp_path: Path) -> None:
    model = served_model()
    async with fleet(model, tmp_path, 3) as agents:
        pulled = await asyncio.gather(*(agent.pull(model.url) for agent in agents))

        assert len({one.artifact for one in pulled}) == 1
        read_by: dict[str, int] = dict.fromkeys(model.files, 0)
        for agent in agents:
            manifest = agent.store.manifest(Digest.parse(pulled[0].artifact))
            assert manifest is not None
            for file in manifest.files:
                assert agent.store.sha256_of(file.id) == sha256(model.files[file.path])
                ours = agent.store.sha256_of(file.id, is_ours=True)
                read_by[file.path] += ours is not None
        assert all(read_by.values()), "every file was read by somebody"
        assert sum(read_by.values()) < 3 * len(model.files), "and not by everybody"


async def test_a_wrong_digest_ends_every_pull_by_name_until_the_origin_is_mended(
    tmp_path: Path,
) -> None:
    model = served_model()
    wrong = model.published["b.bin"] = sha256(b"something else")
    async with fleet(model, tmp_path, 3) as agents:
        ended = await asyncio.gather(
            *(agent.pull(model.url) for agent in agents), return_exceptions=True
        )

        for one in ended:
            assert isinstance(one, DigestMismatchError), one
            told = str(one)
            assert "b.bin" in told
            assert wrong in told
            assert sha256(model.files["b.bin"]) in told
            assert model.url in told
        for agent in agents:
            assert agent.store.artifacts() == []
            for start in range(0, len(model.files["b.bin"]), 4 * MIB):
                chunk = Digest.of(model.files["b.bin"][start : start + 4 * MIB])
                assert agent.store.locate(chunk) is None

        model.publish()
        again = await asyncio.gather(*(agent.pull(model.url) for agent in agents))

        for one in again:
            for path, data in model.files.items():
                assert (Path(one.path) / path).read_bytes() == data


async def test_bytes_that_were_wrong_once_are_read_anew_when_the_origin_is_mended(
    tmp_path: Path,
) -> None:
    model = served_model()
    good = model.files["a.bin"]
    model.files["a.bin"] = good[: 5 * MIB] + os.urandom(16) + good[5 * MIB + 16 :]
    async with fleet(model, tmp_path, 3) as agents:
        ended = await asyncio.gather(
            *(agent.pull(model.url) for agent in agents), return_exceptions=True
        )
        assert all(isinstance(one, DigestMismatchError) for one in ended), ended

        # The same plan, the same swarm: a digest that its home still believed would end this.
        model.files["a.bin"] = good
        again = await asyncio.gather(*(agent.pull(model.url) for agent in agents))

        for one in again:
            assert (Path(one.path) / "a.bin").read_bytes() == good


async def test_a_file_that_is_here_is_adopted_when_its_origin_shows_that_it_has_it(
    tmp_path: Path,
) -> None:
    model = served_model()
    async with fleet(model, tmp_path, 2) as agents:
        await agents[0].pull(model.url)
        before = dict(model.bytes_by_path)
        model.files["b.bin"] = os.urandom(5 * MIB + 7)
        model.publish()

        again = await agents[0].pull(f"{model.url}?revision=2")

        assert (Path(again.path) / "a.bin").read_bytes() == model.files["a.bin"]
        assert (Path(again.path) / "b.bin").read_bytes() == model.files["b.bin"]
        assert again.bytes_from_store >= len(model.files["a.bin"])
        assert model.bytes_by_path["a.bin"] - before["a.bin"] < 100_000


async def test_a_file_that_an_origin_only_names_is_not_adopted(tmp_path: Path) -> None:
    model = served_model()
    async with fleet(model, tmp_path, 1) as (agent,):
        await agent.pull(model.url)
        private = model.files["a.bin"]
        model.files["a.bin"] = os.urandom(len(private))  # And its digest is still published.

        with pytest.raises(DigestMismatchError):
            await agent.pull(f"{model.url}?evil")


async def test_a_file_of_the_same_version_is_adopted_unless_the_origin_shows_others(
    tmp_path: Path,
) -> None:
    model = served_model()
    model.published = {}
    async with fleet(model, tmp_path, 1) as (agent,):
        await agent.pull(model.url)
        before = dict(model.bytes_by_path)
        model.files["c.txt"] = b"new"

        again = await agent.pull(model.url, age_s_max=0)

        assert model.bytes_by_path["a.bin"] - before["a.bin"] < 100_000
        assert (Path(again.path) / "a.bin").read_bytes() == model.files["a.bin"]

        model.files["a.bin"] = os.urandom(len(model.files["a.bin"]))  # With the ETag of before.
        model.files["c.txt"] = b"newer"
        last = await agent.pull(model.url, age_s_max=0)
        assert (Path(last.path) / "a.bin").read_bytes() == model.files["a.bin"]


async def test_a_file_of_the_same_version_at_another_ref_is_not_adopted(tmp_path: Path) -> None:
    model = served_model()
    model.published = {}
    async with fleet(model, tmp_path, 1) as (agent,):
        await agent.pull(model.url)
        before = model.bytes_by_path["a.bin"]

        await agent.pull(f"{model.url}?other")

        assert model.bytes_by_path["a.bin"] - before >= len(model.files["a.bin"])


async def test_what_another_revision_has_is_copied_as_soon_as_its_digest_is_told(
    tmp_path: Path,
) -> None:
    model = served_model()
    model.published = {}
    async with fleet(model, tmp_path, 2) as agents:
        await asyncio.gather(*(agent.pull(model.url) for agent in agents))
        data = model.files["a.bin"]
        model.files["a.bin"] = data[: 4 * MIB] + os.urandom(4 * MIB) + data[8 * MIB :]

        before = model.bytes_sent
        first, second = await asyncio.gather(
            *(agent.pull(f"{model.url}?revision=2") for agent in agents)
        )

        size = sum(map(len, model.files.values()))
        assert first.artifact == second.artifact
        assert model.bytes_sent - before < size + 100_000
        # Each read a part of it for both; only what is new came from the other.
        assert first.bytes_from_peers + second.bytes_from_peers <= 4 * MIB
        assert first.bytes_from_store + second.bytes_from_store >= size - 4 * MIB


async def test_who_lies_about_a_mismatch_ends_nobodys_pull(tmp_path: Path) -> None:
    model = served_model()
    async with fleet(model, tmp_path, 2) as agents:
        origin = PublishingOrigin(model)
        plan = (await origin.resolve(Ref.parse(model.url))).plan
        await origin.close()
        bounds = [0, *accumulate(plan.lengths)]
        data = b"".join(model.files[file.path] for file in plan.files)
        chunks = [Digest.of(data[start:stop]) for start, stop in pairwise(bounds)]
        manifest = Manifest.seal(plan, chunks)
        lies = tuple(
            Found(number, file.id, sha256(b"a lie")) for number, file in enumerate(manifest.files)
        )
        liar = HashReport(AgentID("10.9.9.9:1"), "boot", len(plan.files), 0, found=lies)
        for agent in agents:
            agent.homes.hashed(SwarmID(str(plan.id)), plan.chunk_count, liar)

        pulled = await asyncio.gather(*(agent.pull(model.url) for agent in agents))

        assert {one.artifact for one in pulled} == {str(manifest.digest)}
        for agent in agents:  # Nobody's word was enough.
            ours = [agent.store.sha256_of(file.id, is_ours=True) for file in manifest.files]
            assert all(ours)


async def test_whole_file_digests_of_a_pushed_manifest_are_words_that_nobody_believes(
    tmp_path: Path,
) -> None:
    model = served_model()
    model.published = {}
    async with fleet(model, tmp_path, 1) as (agent,):
        pulled = await agent.pull(model.url)
        manifest = agent.store.manifest(Digest.parse(pulled.artifact))
        assert manifest is not None
        said = (sha256(b"what the pusher says"),)
        files = tuple(replace(file, digests=said) for file in manifest.files)
        model.files[MANIFEST_NAME] = Manifest(files).canonical()

        again = await agent.pull(f"{model.url}?pushed")

        assert again.artifact == str(Manifest(files).digest)
        assert all(agent.store.sha256_of(file.id) is None for file in files)


async def test_a_pull_that_failed_is_explained_by_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = served_model()
    async with fleet(model, tmp_path, 1) as (agent,):
        ref = f"{model.url}nothing/"
        with pytest.raises(OriginNotFoundError):
            await agent.pull(ref)

        words = ["explain", ref, "--socket", agent.client.socket_path]
        codes = [await asyncio.to_thread(main, [*words, *more]) for more in ([], ["--json"])]

    told, _, answer = capsys.readouterr().out.partition("{")
    assert codes == [0, 0]
    assert "failed" in told
    assert "names its files" in told
    assert "FILE" not in told
    assert ref in json.loads("{" + answer)["error"]
