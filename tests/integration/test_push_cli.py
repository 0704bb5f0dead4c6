"""`damselfly push` as somebody types it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from damselfly import cli
from damselfly.model.manifest import MANIFEST_NAME
from damselfly.origin import push as pushing
from damselfly.origin.access import Access
from damselfly.origin.clouds import Clouds
from damselfly.origin.destination import PushProgress
from damselfly.origin.s3_place import S3Place
from tests.integration.signing_keys import private_key, public_of, stranger


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/config.json").write_bytes(b"{}")
    (tmp_path / "source/weights.bin").write_bytes(bytes(2048))
    return tmp_path / "source"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("pa55 word\n")
    return tmp_path / "secret"


def test_a_push_tells_what_it_did(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target/config.json").write_bytes(b"{}")

    assert cli.main(["push", str(source), str(tmp_path / "target")]) == 0

    out, err = capsys.readouterr()
    assert out.startswith("blake3:")
    assert f"pushed 2 files, 2.0 KiB, to {tmp_path}/target: 2.0 KiB sent (1 file)" in err
    assert "2 B there already (1 file)" in err


def test_a_dry_run_tells_what_it_would_do(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "target")

    assert cli.main(["push", str(source), target, "--dry-run", "--json"]) == 0

    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert answer == {
        "artifact": answer["artifact"],
        "destination": target,
        "files": 2,
        "bytes": 2050,
        "files_sent": 2,
        "files_kept": 0,
        "bytes_sent": 2050,
        "bytes_kept": 0,
        "was_whole": False,
        "signed": False,
        "dry_run": True,
    }
    assert "would push 2 files" in err
    assert "the manifest would be written" in err
    assert not (tmp_path / "target").exists()
    assert cli.main(["push", str(source), target]) == 0
    assert capsys.readouterr().out.strip() == answer["artifact"]
    assert (tmp_path / "target" / MANIFEST_NAME).exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--username", "me"], "go together"),
        (["--password-file", "SECRET"], "go together"),
        (["--token-file", "SECRET", "--username", "me"], "not both"),
        (["--token-file", "/none"], "reading the token"),
        (["--token-file", "SECRET"], "not one word"),
        (["--username", "me", "--password-file", "SECRET"], "takes no credentials"),
    ],
)
def test_credentials_that_make_no_sense_are_refused_and_not_told(
    source: Path,
    tmp_path: Path,
    secret: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    reason: str,
) -> None:
    given = [str(secret) if flag == "SECRET" else flag for flag in flags]

    assert cli.main(["push", str(source), str(tmp_path / "target"), *given]) == 2

    out, err = capsys.readouterr()
    assert reason in err
    assert "pa55" not in out + err
    assert not (tmp_path / "target").exists()


def test_a_name_and_a_password_from_a_file_reach_the_push(
    source: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Access] = []

    def push(*_: object, access: Access, **__: object) -> None:
        seen.append(access)
        raise KeyboardInterrupt

    monkeypatch.setattr(pushing, "push", push)
    flags = ["--username", "me", "--password-file", str(secret)]

    assert cli.main(["push", str(source), "oci://host/x:1", *flags]) == 130

    assert seen == [Access.of(username="me", password="pa55 word")]


@pytest.mark.parametrize(
    ("doing", "told"),
    [("hashing", "nothing was changed"), ("sending", "1.5 KiB of 2.0 KiB left to send")],
)
def test_an_interrupted_push_tells_what_is_left(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    doing: str,
    told: str,
) -> None:
    def push(*args: Callable[[PushProgress], None], **_: object) -> None:
        args[2](PushProgress(doing, "weights.bin", 512, 2048))
        raise KeyboardInterrupt

    monkeypatch.setattr(pushing, "push", push)

    assert cli.main(["push", str(source), "s3://bucket/x/"]) == 130

    assert told in capsys.readouterr().err


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What a push is asked for; it is not done."""
    seen: list[dict[str, object]] = []

    def push(*_: object, **asked: object) -> None:
        seen.append(asked)
        raise KeyboardInterrupt

    monkeypatch.setattr(pushing, "push", push)
    return seen


def test_the_agents_variables_say_where_clouds_are_and_flags_say_it_louder(
    source: Path, seen: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("DAMSELFLY_ORIGIN_S3_ENDPOINT", "http://127.0.0.1:2")
    monkeypatch.setenv("DAMSELFLY_ORIGIN_AZ_ACCOUNT", "first")
    flags = ["--s3-region", "eu-west-1", "--gs-endpoint", "http://127.0.0.1:3"]
    flags += ["--az-account", "second", "--az-endpoint", "http://127.0.0.1:4/second"]

    assert cli.main(["push", str(source), "s3://bucket/x/", *flags]) == 130

    assert seen[0]["s3"] == S3Place("http://127.0.0.1:2", "eu-west-1")
    assert seen[0]["clouds"] == Clouds("http://127.0.0.1:3", "second", "http://127.0.0.1:4/second")


@pytest.mark.parametrize(
    ("flags", "variable", "said"),
    [
        (["--s3-endpoint", "nowhere"], "", "flag --s3-endpoint"),
        ([], "nowhere", "variable DAMSELFLY_ORIGIN_S3_ENDPOINT"),
    ],
)
def test_a_place_that_is_none_is_told_with_who_said_it(
    source: Path,
    seen: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    variable: str,
    said: str,
) -> None:
    monkeypatch.setenv("DAMSELFLY_ORIGIN_S3_ENDPOINT", variable)

    assert cli.main(["push", str(source), "s3://bucket/x/", *flags]) != 0

    assert said in capsys.readouterr().err
    assert seen == []


class TestSigning:
    def test_the_stranger_accepts_what_is_pushed_and_refuses_what_was_changed(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        key = private_key(tmp_path / "key.pem")
        target = tmp_path / "target"
        (source / ".gitattributes").write_bytes(b"*.bin filter=lfs\n")

        assert cli.main(["push", str(source), str(target), "--sign-key", str(key), "--json"]) == 0

        assert json.loads(capsys.readouterr().out)["files"] == 4
        assert not (source / "model.sig").exists()
        assert (target / MANIFEST_NAME).exists()
        flags = ("--signature", target / "model.sig", "--public_key", public_of(key))
        accepted = stranger("verify", "key", target, *flags)
        assert accepted.returncode == 0, accepted.stdout + accepted.stderr
        (target / "weights.bin").write_bytes(b"other")
        assert stranger("verify", "key", target, *flags).returncode != 0

    def test_signing_the_same_files_again_makes_no_other_artifact(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        key, other = private_key(tmp_path / "key.pem"), private_key(tmp_path / "other.pem")
        target = tmp_path / "target"

        def pushed(by: Path) -> tuple[str, bytes]:
            args = ["push", str(source), str(target), "--sign-key", str(by)]
            assert cli.main(args) == 0
            return capsys.readouterr().out, (target / "model.sig").read_bytes()

        first = pushed(key)
        assert pushed(key) == first
        by_other = pushed(other)
        assert by_other != first
        assert pushed(other) == by_other
        (source / "weights.bin").write_bytes(b"changed")
        changed = pushed(other)
        assert changed[1] != by_other[1]
        accepted = stranger(
            "verify",
            "key",
            target,
            "--signature",
            target / "model.sig",
            "--public_key",
            public_of(other),
        )
        assert accepted.returncode == 0, accepted.stdout + accepted.stderr

    @pytest.mark.parametrize("old", [b"", b"[]", b'{"dsseEnvelope": {"payload": "e30="}}'])
    def test_what_is_no_signature_is_replaced(
        self, source: Path, tmp_path: Path, old: bytes
    ) -> None:
        key = private_key(tmp_path / "key.pem")
        (tmp_path / "target").mkdir()
        (tmp_path / "target/model.sig").write_bytes(old)

        args = ["push", str(source), str(tmp_path / "target"), "--sign-key", str(key)]
        assert cli.main(args) == 0

        assert b"payload" in (tmp_path / "target/model.sig").read_bytes()
        assert (tmp_path / "target/model.sig").read_bytes() != old

    def test_a_signature_whose_bytes_were_changed_is_not_kept(
        self, source: Path, tmp_path: Path
    ) -> None:
        key = private_key(tmp_path / "key.pem")
        target = tmp_path / "target"
        args = ["push", str(source), str(target), "--sign-key", str(key)]
        assert cli.main(args) == 0
        bundle = json.loads((target / "model.sig").read_bytes())
        bundle["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA"
        (target / "model.sig").write_text(json.dumps(bundle))

        assert cli.main(args) == 0

        assert b'AAAA"' not in (target / "model.sig").read_bytes()

    def test_a_key_with_a_passphrase_is_opened_by_the_environment(
        self,
        source: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        key = private_key(tmp_path / "key.pem", "pa55", ec.SECP384R1())
        args = ["push", str(source), str(tmp_path / "target"), "--sign-key", str(key)]

        assert cli.main(args) == 2
        assert "set $DAMSELFLY_SIGN_PASSPHRASE" in capsys.readouterr().err
        monkeypatch.setenv("DAMSELFLY_SIGN_PASSPHRASE", "wr0ng")
        assert cli.main(args) == 2
        monkeypatch.setenv("DAMSELFLY_SIGN_PASSPHRASE", "pa55")
        assert cli.main(args) == 0

        out, err = capsys.readouterr()
        assert "pa55" not in out + err
        assert "wr0ng" not in out + err
        assert (tmp_path / "target/model.sig").exists()

    @pytest.mark.parametrize("content", [b"", b"no key", b"\xff" * 100_000])
    def test_what_is_no_key_is_refused(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
    ) -> None:
        (tmp_path / "key").write_bytes(content)
        args = ["push", str(source), str(tmp_path / "target"), "--sign-key", str(tmp_path / "key")]

        assert cli.main(args) == 2

        assert f"reading the key {tmp_path}/key" in capsys.readouterr().err
        assert not (tmp_path / "target").exists()

    def test_other_kinds_of_keys_are_refused(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        key = ed25519.Ed25519PrivateKey.generate()
        (tmp_path / "key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        args = ["push", str(source), str(tmp_path / "target"), "--sign-key", str(tmp_path / "key")]

        assert cli.main(args) == 2

        assert "no usable key" in capsys.readouterr().err

    def test_an_install_that_is_broken_is_said_to_be(
        self,
        source: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setitem(sys.modules, "model_signing._signing", ModuleType("_signing"))
        key = private_key(tmp_path / "key.pem")

        assert cli.main(["push", str(source), str(tmp_path / "t"), "--sign-key", str(key)]) == 2

        assert "installed and broken" in capsys.readouterr().err

    def test_without_the_extra_it_says_what_to_install(
        self,
        source: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setitem(sys.modules, "model_signing", None)
        monkeypatch.setitem(sys.modules, "model_signing._signing", None)
        key = private_key(tmp_path / "key.pem")

        code = cli.main(["push", str(source), str(tmp_path / "target"), "--sign-key", str(key)])

        assert code == 2
        assert "pip install 'damselfly[sign]'" in capsys.readouterr().err
