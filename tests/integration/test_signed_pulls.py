"""What must be signed is not shown unless it is: pulls, volumes, selections, and rules that change.

The keys are real, the signatures are made by the package's own command line, and verified by the
process that an agent asks.
"""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from damselfly.agent.holdings import Shown
from damselfly.agent.signature_rules import Rules
from damselfly.agent.signatures import Signatures
from damselfly.errors import DamselflyError, SignatureError
from damselfly.model.digest import Digest
from damselfly.model.ref import Ref
from damselfly.origin import signature
from tests.integration.signed_node import SignedNode, signed_node
from tests.integration.signing_keys import (
    certificate,
    private_key,
    public_of,
    stranger,
    stranger_signs,
    write_public,
)

FILES = {
    "config.json": b"{}",
    "weights/a.bin": bytes(range(256)) * 20_000,
    "weights/b.bin": b"b" * 1000,
}


class Site:
    """A model that is signed, and the rules about it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "models/llama"
        for path, data in FILES.items():
            (self.model / path).parent.mkdir(parents=True, exist_ok=True)
            (self.model / path).write_bytes(data)
        self.key = private_key(folder / "owner.pem")
        self.config = folder / "damselfly.toml"
        self.rule()

    @property
    def ref(self) -> str:
        return f"file://{self.model}/"

    def rule(self, require: str = "required", **changes: object) -> None:
        """Write the one rule there is."""
        row: dict[str, object] = {"prefix": f"file://{self.folder}/models/", "require": require}
        if require != "ignore":
            row["key"] = str(public_of(self.key))
        row |= changes
        lines = [f"{key} = {json.dumps(value)}" for key, value in row.items() if value is not None]
        text = "\n".join(["[[signatures]]", *lines]) + "\n"
        fresh = self.config.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.config)

    def no_rules(self) -> None:
        self.config.write_text("")


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the stranger signed, with the key in `owner.pem`; made once, for it takes seconds."""
    folder = tmp_path_factory.mktemp("signed")
    site = Site(folder)
    return stranger_signs(site.model, site.key) + b"\0" + site.key.read_bytes()


@pytest.fixture
def site(tmp_path: Path, signed: bytes) -> Site:
    site = Site(tmp_path)
    bundle, key = signed.split(b"\0")
    (site.model / "model.sig").write_bytes(bundle)
    write_public(site.key, key)
    return site


async def _refused(node: SignedNode, ref: str, reason: str, *include: str) -> None:
    """Neither pulled nor listed; and whoever asks is told which and why."""
    with pytest.raises(SignatureError, match=reason) as pulled:
        await node.pull(ref, *include)
    assert ref.partition("#")[0] in str(pulled.value)
    assert await node.node.artifacts() == []


async def test_what_is_refused_to_a_pull_is_refused_to_a_volume(site: Site) -> None:
    (site.model / "config.json").write_bytes(b"[]")
    async with signed_node(site.folder, site.config) as node:
        for ask in (node.open, node.pull, node.open):
            with pytest.raises(SignatureError, match="'config.json' is not what was signed"):
                await ask(site.ref)
        assert await node.node.artifacts() == []
        assert not [path for path in (node.store.path / "views").rglob("*") if path.is_file()]


async def test_what_is_signed_is_pulled_and_the_signature_is_told(site: Site) -> None:
    async with signed_node(site.folder, site.config) as node:
        pulled = await node.pull(site.ref)
        opened = await node.open(site.ref)
        (held,) = await node.node.artifacts()

    assert pulled.signature is not None
    assert pulled.signature.by.startswith("key sha256:")
    assert (pulled.signature.method, pulled.signature.files) == ("key", 4)
    assert opened.artifact == pulled.artifact
    assert held.signature == pulled.signature


async def test_a_signature_is_verified_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async with signed_node(site.folder, site.config) as node:
        first = await node.pull(site.ref)
        monkeypatch.setattr(signature, "verify", _never)
        again = await node.pull(site.ref)
        await node.open(site.ref)

    assert again.signature == first.signature


def _never(*_: object, **__: object) -> str:
    raise AssertionError("verified twice")


async def test_what_is_not_signed_is_refused_before_it_is_fetched(site: Site) -> None:
    (site.model / "model.sig").unlink()
    async with signed_node(site.folder, site.config) as node:
        await _refused(node, site.ref, "there is no model.sig, and the rule for")
        assert node.store.usage().bytes == 0


async def _changed(site: Site, node: SignedNode, path: str, data: bytes, reason: str) -> None:
    (site.model / path).parent.mkdir(parents=True, exist_ok=True)
    (site.model / path).write_bytes(data)
    await _refused(node, site.ref, reason)


@pytest.mark.parametrize(
    ("path", "data", "reason"),
    [
        ("weights/b.bin", b"c" * 1000, "'weights/b.bin' is not what was signed"),
        ("weights/evil.py", b"import os", "'weights/evil.py' was not signed"),
        ("model.sig", b"", "model.sig is not by whom is trusted"),
        ("model.sig", b"{}", "model.sig is not by whom is trusted"),
        ("model.sig", b"[" * 100_000, "model.sig is not by whom is trusted"),
        ("model.sig", b"\xff\xfe not text", "model.sig is not by whom is trusted"),
        ("weights/model.sig", b"{}", "'weights/model.sig' was not signed"),
    ],
)
async def test_what_is_not_what_was_signed_is_refused(
    site: Site, path: str, data: bytes, reason: str
) -> None:
    async with signed_node(site.folder, site.config) as node:
        await _changed(site, node, path, data, reason)


async def test_a_file_that_is_missing_is_named(site: Site) -> None:
    (site.model / "weights/b.bin").unlink()
    async with signed_node(site.folder, site.config) as node:
        await _refused(node, site.ref, "'weights/b.bin' was signed and is missing")


async def test_a_file_is_missed_too_when_another_ref_brought_the_others(site: Site) -> None:
    (site.model / "weights/b.bin").unlink()
    elsewhere = site.folder / "elsewhere"
    shutil.copytree(site.model, elsewhere)
    async with signed_node(site.folder, site.config) as node:
        artifact = Digest.parse((await node.pull(f"file://{elsewhere}/")).artifact)
        manifest = node.store.manifest(artifact)
        assert manifest is not None
        asked = Ref.parse(site.ref), Shown(artifact, None)
        with ThreadPoolExecutor(1) as workers:
            genuine = partial(Signatures(Rules.of(site.config)).are_genuine, node.store, workers)
            with pytest.raises(SignatureError, match=r"'weights/b\.bin' was signed and is missing"):
                await genuine(*asked, manifest.plan(site.ref))
            assert not await genuine(*asked)  # Nobody knows what else is there.


async def test_what_a_ref_with_a_query_brought_is_known_as_whole(site: Site) -> None:
    (site.model / "weights/b.bin").unlink()
    site.rule(prefix="https://host/")
    ref = Ref.parse("https://host/m/?token=1")
    async with signed_node(site.folder, site.config) as node:
        artifact = Digest.parse((await node.pull(site.ref)).artifact)
        manifest = node.store.manifest(artifact)
        assert manifest is not None
        plan = manifest.plan(str(ref.named))
        node.store.remember(str(ref.named), str(plan.id), artifact)
        with ThreadPoolExecutor(1) as workers:
            genuine = partial(Signatures(Rules.of(site.config)).are_genuine, node.store, workers)
            with pytest.raises(SignatureError, match=r"'weights/b\.bin' was signed and is missing"):
                await genuine(ref, Shown(artifact, None))


async def test_a_huge_signature_is_refused_before_it_is_fetched(site: Site) -> None:
    os.truncate(site.model / "model.sig", (16 << 20) + 1)
    async with signed_node(site.folder, site.config) as node:
        await _refused(node, site.ref, "model.sig has 16777217 bytes")
        assert node.store.usage().bytes == 0


async def test_a_signature_of_another_model_is_refused(site: Site) -> None:
    other = Site(site.folder / "other")
    (other.model / "config.json").write_bytes(b'{"other": 1}')
    (site.model / "model.sig").write_bytes(stranger_signs(other.model, site.key))

    async with signed_node(site.folder, site.config) as node:
        await _refused(node, site.ref, "'config.json' is not what was signed")


async def test_a_signature_by_somebody_else_is_refused(site: Site) -> None:
    stranger_signs(site.model, private_key(site.folder / "thief.pem"))

    async with signed_node(site.folder, site.config) as node:
        await _refused(node, site.ref, "not by whom is trusted: another key made it")


async def test_an_unreadable_key_refuses(site: Site) -> None:
    public_of(site.key).unlink()

    async with signed_node(site.folder, site.config) as node:
        await _refused(node, site.ref, "which says whom to trust")
        checks = {check.name: check for check in (await node.node.doctor()).checks}

    assert checks["signatures"].verdict == "bad"
    assert "is refused" in checks["signatures"].detail


async def test_a_key_may_be_replaced_by_trusting_two(site: Site) -> None:
    new = private_key(site.folder / "new.pem")
    site.rule(key=[str(public_of(new)), str(public_of(site.key))])

    async with signed_node(site.folder, site.config) as node:
        assert (await node.pull(site.ref)).signature is not None


async def test_a_certificate_is_trusted_by_its_root(site: Site) -> None:
    root = certificate(site.folder, "Root", is_authority=True)
    leaf = certificate(site.folder, "Signer", root, is_authority=False)
    fake = certificate(site.folder, "Fake", is_authority=True)
    (site.model / "model.sig").unlink()
    done = stranger(
        *("sign", "certificate", site.model, "--signature", site.model / "model.sig"),
        *("--private_key", leaf[0], "--signing_certificate", leaf[1]),
        *("--certificate_chain", root[1]),
    )
    assert done.returncode == 0, done.stderr
    site.rule(key=None, certificate_roots=str(fake[1]))

    async with signed_node(site.folder, site.config) as node:
        await _refused(node, site.ref, "not by whom is trusted")
        site.rule(key=None, certificate_roots=str(root[1]))
        pulled = await node.pull(site.ref)

    assert pulled.signature is not None
    assert (pulled.signature.by, pulled.signature.method) == ("CN=Signer", "certificate")


class TestIfPresent:
    async def test_without_a_signature_it_passes(self, site: Site) -> None:
        site.rule("if-present")
        (site.model / "model.sig").unlink()

        async with signed_node(site.folder, site.config) as node:
            assert (await node.pull(site.ref)).signature is None
            await node.open(site.ref)

    async def test_a_wrong_one_is_refused(self, site: Site) -> None:
        site.rule("if-present")
        (site.model / "config.json").write_bytes(b"[]")

        async with signed_node(site.folder, site.config) as node:
            await _refused(node, site.ref, "not what was signed")

    async def test_one_that_was_left_out_before_the_rule_is_not_overlooked(
        self, site: Site
    ) -> None:
        site.no_rules()
        (site.model / "weights/b.bin").write_bytes(b"evil")
        async with signed_node(site.folder, site.config) as node:
            await node.pull(site.ref, "weights/b.bin")
            site.rule("if-present")
            with pytest.raises(SignatureError, match="not what was signed"):
                await node.open(site.ref, "weights/b.bin")


class TestSelections:
    async def test_the_signature_comes_along_and_judges_what_was_chosen(self, site: Site) -> None:
        async with signed_node(site.folder, site.config) as node:
            pulled = await node.pull(site.ref, "weights/b.bin")
            opened = await node.open(site.ref, "weights/b.bin")

        assert pulled.signature is not None
        assert Path(opened.path, "weights/b.bin").exists()

    async def test_what_was_not_chosen_may_differ_but_has_to_be_named(self, site: Site) -> None:
        (site.model / "config.json").write_bytes(b"[]")
        async with signed_node(site.folder, site.config) as node:
            assert (await node.pull(site.ref, "weights/b.bin")).signature is not None
            (site.model / "evil.py").write_bytes(b"import os")
            with pytest.raises(SignatureError, match="'evil.py' was not signed"):
                await node.pull(site.ref, "weights/b.bin")

    async def test_a_wrong_file_that_was_chosen_is_refused(self, site: Site) -> None:
        (site.model / "weights/b.bin").write_bytes(b"evil")
        async with signed_node(site.folder, site.config) as node:
            await _refused(node, site.ref, "not what was signed", "weights/b.bin")

    async def test_excluding_the_signature_does_not_help(self, site: Site) -> None:
        (site.model / "weights/b.bin").write_bytes(b"evil")
        async with signed_node(site.folder, site.config) as node:
            await _refused(node, site.ref, "not what was signed", "weights/*")

    async def test_more_of_it_is_judged_anew(self, site: Site) -> None:
        (site.model / "weights/b.bin").write_bytes(b"evil")
        async with signed_node(site.folder, site.config) as node:
            assert (await node.pull(site.ref, "config.json")).signature is not None
            with pytest.raises(SignatureError, match="not what was signed"):
                await node.pull(site.ref)


class TestRulesThatChange:
    async def test_what_is_held_is_verified_before_it_is_shown(self, site: Site) -> None:
        site.no_rules()
        async with signed_node(site.folder, site.config) as node:
            pulled = await node.pull(site.ref)
            assert pulled.signature is None
            site.rule()
            opened = await node.open(site.ref)
            (held,) = await node.node.artifacts()

        assert opened.artifact == pulled.artifact
        assert held.signature is not None

    async def test_what_is_held_and_not_signed_is_not_shown_any_more(self, site: Site) -> None:
        site.no_rules()
        (site.model / "weights/evil.py").write_bytes(b"import os")
        async with signed_node(site.folder, site.config) as node:
            pulled = await node.pull(site.ref)
            await node.open(site.ref)
            site.rule()
            for ref in (site.ref, f"{site.ref}#{pulled.artifact}"):
                with pytest.raises(SignatureError, match="evil"):
                    await node.open(ref)
                with pytest.raises(SignatureError, match="evil"):
                    await node.pull(ref)

    async def test_whom_to_trust_counts_for_what_was_verified_before(self, site: Site) -> None:
        async with signed_node(site.folder, site.config) as node:
            await node.pull(site.ref)
            thief = private_key(site.folder / "thief.pem")
            site.rule(key=str(public_of(thief)))
            with pytest.raises(SignatureError, match="not by whom is trusted"):
                await node.open(site.ref)
            with pytest.raises(SignatureError, match="not by whom is trusted"):
                await node.pull(site.ref)

    async def test_a_key_file_with_another_key_counts_at_once(self, site: Site) -> None:
        async with signed_node(site.folder, site.config) as node:
            await node.pull(site.ref)
            thief = private_key(site.folder / "thief.pem")
            public_of(site.key).write_bytes(public_of(thief).read_bytes())
            with pytest.raises(SignatureError, match="not by whom is trusted"):
                await node.open(site.ref)

    async def test_a_broken_table_keeps_the_old_rules_and_is_told(self, site: Site) -> None:
        (site.model / "weights/evil.py").write_bytes(b"import os")
        async with signed_node(site.folder, site.config) as node:
            with pytest.raises(SignatureError):
                await node.pull(site.ref)
            site.config.write_text("[[signatures]]\nprefix = 1\n")
            with pytest.raises(SignatureError):
                await node.pull(site.ref)
            checks = {check.name: check for check in (await node.node.doctor()).checks}

        assert checks["signatures"].verdict == "bad"
        assert "lacks prefix" in checks["signatures"].detail

    async def test_an_artifact_of_a_ref_without_a_rule_is_no_way_in(
        self, site: Site, tmp_path: Path
    ) -> None:
        (site.model / "weights/evil.py").write_bytes(b"import os")
        (tmp_path / "free").symlink_to(site.model)
        elsewhere = tmp_path / "elsewhere"
        shutil.copytree(site.model, elsewhere)
        async with signed_node(site.folder, site.config) as node:
            await node.pull(f"file://{elsewhere}/")
            for ref in (site.ref, f"file://{tmp_path}/free/"):
                with pytest.raises(SignatureError, match="evil"):
                    await node.open(ref)
                with pytest.raises(SignatureError, match="evil"):
                    await node.pull(ref)


async def test_what_is_swapped_after_it_was_planned_is_not_taken(site: Site) -> None:
    async with signed_node(site.folder, site.config) as node:
        pulled = await node.pull(site.ref)
        # The manifest stays the same; the bytes at the origin do not.
        (site.model / "weights/b.bin").write_bytes(b"c" * 1000)
        with pytest.raises(DamselflyError):
            await node.pull(site.ref)
        again = await node.pull(f"{site.ref}#{pulled.artifact}")
        shown = Path(again.path, "weights/b.bin").read_bytes()

    assert shown == FILES["weights/b.bin"]
    assert Digest.parse(again.artifact) == Digest.parse(pulled.artifact)
