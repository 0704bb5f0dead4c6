"""Agents as processes that pull from a bucket, and a server that checks every signature."""

import importlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.agents import Agent, Fleet, free_addresses, same_tree
from damselfly.client.answers import Credentials, Pulled, PullRequest
from damselfly.errors import OriginDeniedError
from damselfly.model.ref import Ref
from damselfly.origin.access import Access
from damselfly.origin.port import Origin, OriginLimits
from damselfly.origin.registry import Origins
from damselfly.origin.s3_place import S3Place
from damselfly.origin.s3_push import S3Destination
from damselfly.origin.web import Web
from tests.integration.bucket_servers import (
    KEY_ID,
    SECRET,
    Bucket,
    Front,
    front_in_a_thread,
    s3_server,
    stranger,
)
from tests.integration.push_parcels import ignore, parcel_of

MIB = 1 << 20
DAMSELFLY = (sys.executable, "-m", "damselfly")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log") as address:
        yield address


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.bin").write_bytes(os.urandom(12 * MIB))
    (folder / "b.bin").write_bytes(os.urandom(5_000_001))
    (folder / "sub" / "config.json").write_bytes(b'{"a": 1}\n')
    (folder / "empty").touch()
    return folder


def filled(bucket: Bucket, model: Path) -> str:
    """A stock client puts a model there; returns its ref."""
    for path in model.rglob("*"):
        if path.is_file():
            bucket.put(f"llama/v1/{path.relative_to(model)}", path.read_bytes())
    return f"s3://{bucket.name}/llama/v1/"


def started(fleet: Fleet, count: int, address: str) -> list[Agent]:
    addresses = free_addresses(count)
    options = ("--store-keep-free", "1MiB", "--s3-endpoint", address)
    agents = [
        fleet.start_agent(f"n{number}", listen, addresses, *options)
        for number, listen in enumerate(addresses)
    ]
    fleet.wait_until_met()
    return agents


def damselfly(agent: Agent, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DAMSELFLY, *words, "--socket", agent.client.socket_path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def pulled(agent: Agent, ref: str, credentials: Credentials) -> Pulled:
    for item in agent.client.pull(PullRequest(ref=ref, credentials=credentials)):
        if isinstance(item, Pulled):
            return item
    raise AssertionError("no answer")


def test_agents_pull_a_public_prefix_and_read_every_object_once(
    server: str, model: Path, tmp_path: Path
) -> None:
    bucket = Bucket(server, is_public=True)
    ref = filled(bucket, model)
    with front_in_a_thread(Front(server)) as front, Fleet(tmp_path / "fleet") as fleet:
        one, two = started(fleet, 2, front.address)

        first = damselfly(one, "pull", ref, "--json")
        second = damselfly(two, "pull", ref.rstrip("/"), "--json")
        told = damselfly(one, "explain", ref)

    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file())
    assert json.loads(first.stdout)["bytes_from_origin"] == size
    assert json.loads(second.stdout)["bytes_from_origin"] == 0
    assert f"from the origin {ref[:-10]} at {front.address.partition('//')[2]}:" in told.stdout
    assert same_tree(Path(json.loads(first.stdout)["path"]), model)
    assert all("authorization" not in headers for headers in front.headers)


def test_only_the_object_that_was_replaced_is_read_again(
    server: str, model: Path, tmp_path: Path
) -> None:
    bucket = Bucket(server, is_public=True)
    ref = filled(bucket, model)
    with Fleet(tmp_path / "fleet") as fleet:
        one, two = started(fleet, 2, server)
        assert damselfly(one, "pull", ref).returncode == 0
        changed = b'{"a": 2, "b": 3}\n'
        (model / "sub" / "config.json").write_bytes(changed)
        bucket.put("llama/v1/sub/config.json", changed)

        again = damselfly(one, "pull", ref, "--fresh", "--json")
        other = damselfly(two, "pull", ref, "--fresh", "--json")

    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["bytes_from_origin"] == len(changed)
    assert same_tree(Path(json.loads(again.stdout)["path"]), model)
    assert other.returncode == 0, other.stderr
    assert json.loads(other.stdout)["bytes_from_origin"] == 0
    assert same_tree(Path(json.loads(other.stdout)["path"]), model)


def test_a_private_prefix_is_pulled_with_the_callers_keys_which_nobody_is_told(
    server: str, model: Path, tmp_path: Path
) -> None:
    bucket = Bucket(server)
    ref = filled(bucket, model)
    with Fleet(tmp_path / "fleet") as fleet:
        (agent,) = started(fleet, 1, server)
        with pytest.raises(OriginDeniedError):
            agent.pull(ref)

        answer = pulled(agent, ref, Credentials(username=KEY_ID, password=SECRET))

        assert same_tree(Path(answer.path), model)
        log = agent.process.log.read_text()
        assert KEY_ID not in log
        assert SECRET not in log


def test_what_the_command_line_pushes_with_keys_of_the_environment_an_agent_pulls(
    server: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    ref = f"s3://{Bucket(server).name}/llama/"
    words = [*DAMSELFLY, "push", str(model), ref, "--json"]
    pushed = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert pushed.returncode == 0, pushed.stderr

    with Fleet(tmp_path / "fleet") as fleet:
        (agent,) = started(fleet, 1, server)
        answer = damselfly(agent, "pull", ref, "--json")

        assert answer.returncode == 0, answer.stderr
        found = json.loads(answer.stdout)
        assert found["artifact"] == json.loads(pushed.stdout)["artifact"]
        assert same_tree(Path(found["path"]), model)
        told = agent.process.log.read_text() + pushed.stderr + answer.stderr
        assert SECRET not in told
        assert KEY_ID not in told


# --- a server that checks signatures --------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str, str]]:
    """A server that refuses what is not signed rightly: its address, a bucket, a key."""
    with s3_server(tmp_path_factory.mktemp("strict") / "log") as address:
        session: Any = importlib.import_module("botocore.session").Session()
        iam = session.create_client(
            "iam",
            region_name="us-east-1",
            endpoint_url=address,
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
        )
        iam.create_user(UserName="u")
        key = iam.create_access_key(UserName="u")["AccessKey"]
        allowed = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName="u", PolicyName="p", PolicyDocument=policy)
        iam.close()
        client = stranger(address)
        client.create_bucket(Bucket="strict")
        client.close()
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{address}/moto-api/reset-auth", b"0", plain)
        urllib.request.urlopen(request).close()
        yield address, "strict", key["AccessKeyId"], key["SecretAccessKey"]


@pytest.fixture
async def origin(strict: tuple[str, str, str, str]) -> AsyncGenerator[Origin]:
    origins = Origins(s3=S3Place(strict[0]))
    yield origins.for_ref(Ref.parse("s3://strict/"))
    await origins.close()


async def test_a_server_that_checks_signatures_takes_a_push_and_gives_it_back(
    strict: tuple[str, str, str, str], origin: Origin, model: Path
) -> None:
    address, bucket, key_id, secret = strict
    (model / "größe & <x>+%41 ~'()*!.txt").write_bytes(b"awkward")
    keys, limits = Access.of(None, key_id, secret), OriginLimits()
    ref, web = Ref.parse(f"s3://{bucket}/a b/m+1/"), Web(limits)
    destination = S3Destination(ref, web, keys, limits, S3Place(address), part_bytes=5 * MIB)
    parcel = parcel_of(model)

    await destination.push(parcel, await destination.standing(parcel), ignore)
    resolved = await origin.resolve(ref, keys)

    assert resolved.manifest == parcel.manifest
    for number, file in enumerate(resolved.plan.files):
        await origin.prove(Ref.parse(resolved.plan.ref), file, keys)
        assert file.bytes == parcel.files[number].size
    await destination.close()
    await web.close()


@pytest.mark.parametrize("who", ["wrong secret", "unknown key"])
async def test_a_server_that_checks_signatures_refuses_whoever_has_none(
    strict: tuple[str, str, str, str], origin: Origin, who: str
) -> None:
    access = {
        "wrong secret": Access.of(None, strict[2], "not the secret"),
        "unknown key": Access.of(None, "AKIANOBODYS", "not the secret"),
    }[who]

    with pytest.raises(OriginDeniedError):
        await origin.resolve(Ref.parse("s3://strict/m/"), access)
