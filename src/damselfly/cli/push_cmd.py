"""Bring a directory and its manifest to where agents read it.

DEST is a directory (a path or file:///path), or a ref: s3://, gs:// or az://bucket/prefix/,
hf://org/name[@branch], oci://registry/repository:tag. It may be DIR itself, and then only the
manifest is written. With the manifest beside the weights, agents need not find out where chunks
begin and what they hash to: the first pull starts at full speed and every byte is checked against
what was pushed. Everything is hashed first, and what DEST has already is not sent again. An
interrupted push leaves no manifest that lies; the same command goes on from there.

With --dry-run nothing is sent or written: it says what would be, and how much is there already.

Where s3://, gs:// and az:// are, flags say, else what the agent's variables say
($DAMSELFLY_ORIGIN_S3_ENDPOINT and so on), else what the clouds' own programs read:
AWS_ENDPOINT_URL, STORAGE_EMULATOR_HOST, AZURE_STORAGE_ACCOUNT. $HF_ENDPOINT says where hf:// is.

Credentials are those of the environment (HF_TOKEN, AWS profiles and variables, Google's and Azure's
defaults), unless files have others: they are not on the command line, where every process of the
machine could read them. With --sign-key the files are signed (OpenSSF Model Signing), and the
signature is pushed beside them as model.sig; the passphrase of a key is read from
$DAMSELFLY_SIGN_PASSPHRASE. A signature that is there already stays if it is of these files and this
key. A push that brings none does not leave an old one: it is refused without --drop-signature.
"""

import os
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from damselfly.agent.settings import SETTINGS
from damselfly.cli.extras import extras_needed
from damselfly.cli.flags import add_json_flag, add_quiet_flag, print_json
from damselfly.cli.progress import Moment, Progress
from damselfly.cli.quantities import bytes_text
from damselfly.cli.token import read_secret, read_token
from damselfly.client.answers import Credentials
from damselfly.errors import ConfigError, UsageError
from damselfly.log import redact

if TYPE_CHECKING:
    from damselfly.origin.parcel import Sign
    from damselfly.origin.push import PushProgress, PushReport

INTERRUPTED = 130
PLACES = (
    "origin.s3_endpoint",
    "origin.s3_region",
    "origin.gs_endpoint",
    "origin.az_account",
    "origin.az_endpoint",
)
"""Settings of the agent that count for a push as well."""


def configure(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("directory", metavar="DIR", type=Path, help="the model's files")
    parser.add_argument("destination", metavar="DEST", help="a path, or a ref")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be sent, and send nothing"
    )
    parser.add_argument(
        "--sign-key",
        metavar="KEY",
        type=Path,
        help="sign the files with this private key (PEM, on P-256, P-384 or P-521)",
    )
    parser.add_argument(
        "--drop-signature",
        action="store_true",
        help="delete the model.sig that DEST has of an earlier push, and sign nothing",
    )
    parser.add_argument(
        "--token-file", metavar="PATH", help="a file with the token that opens DEST ('-': stdin)"
    )
    parser.add_argument("--username", metavar="NAME", help="who pushes; with --password-file")
    parser.add_argument(
        "--password-file", metavar="PATH", help="a file with the password of NAME ('-': stdin)"
    )
    for key in PLACES:
        setting = SETTINGS[key].setting
        parser.add_argument(
            setting.flag,
            dest=key,
            metavar=setting.metavar,
            help=f"as the agent's: {setting.reason}",
        )
    add_json_flag(parser)
    add_quiet_flag(parser)


def run(args: Namespace) -> int:
    """Push in this process: it needs no agent."""
    credentials = _credentials(args)
    with extras_needed("damselfly push"):
        from damselfly.origin.access import OWN, Access  # noqa: PLC0415 - blake3 with them
        from damselfly.origin.clouds import Clouds  # noqa: PLC0415
        from damselfly.origin.push import push  # noqa: PLC0415
        from damselfly.origin.s3_place import S3Place  # noqa: PLC0415

    said = _places(args)
    clouds = Clouds(
        said["origin.gs_endpoint"], said["origin.az_account"], said["origin.az_endpoint"]
    )
    sign = _signer(args.sign_key) if args.sign_key is not None else None
    access = OWN
    if credentials is not None:
        access = Access.of(credentials.token, credentials.username, credentials.password)
    at: PushProgress | None = None
    with Progress(sys.stderr, is_quiet=args.quiet) as progress:

        def show(now: "PushProgress") -> None:
            nonlocal at
            at = now
            progress.show(
                Moment(
                    doing=now.doing,
                    bytes_done=now.bytes_done,
                    bytes_total=now.bytes_total,
                    note=now.path,
                )
            )

        try:
            report = push(
                args.directory,
                args.destination,
                show,
                access=access,
                sign=sign,
                drops_signature=args.drop_signature,
                is_dry=args.dry_run,
                s3=S3Place.of(said["origin.s3_endpoint"], said["origin.s3_region"]),
                clouds=clouds,
            )
        except KeyboardInterrupt:
            progress.clear()
            print(f"damselfly push: {_farewell(at, is_dry=args.dry_run)}", file=sys.stderr)
            return INTERRUPTED
        progress.say(_told(report, is_dry=args.dry_run))
    if args.json:
        print_json(
            {
                "artifact": str(report.artifact),
                "destination": report.destination,
                "files": len(report.manifest.files),
                "bytes": report.manifest.bytes,
                "files_sent": report.files_sent,
                "files_kept": report.files_kept,
                "bytes_sent": report.bytes_sent,
                "bytes_kept": report.manifest.bytes - report.bytes_sent,
                "was_whole": report.is_whole,
                "signed": sign is not None,
                "dry_run": args.dry_run,
            }
        )
    else:
        print(report.artifact)
    return 0


def _signer(key: Path) -> "Sign":
    from damselfly.origin.signature import signer  # noqa: PLC0415

    return signer(key, os.environ.get("DAMSELFLY_SIGN_PASSPHRASE"))


def _places(args: Namespace) -> dict[str, str | None]:
    """Where clouds are, by setting: as a flag says, else as the agent's variable."""
    found: dict[str, str | None] = {}
    for key in PLACES:
        declared = SETTINGS[key]
        text, source = getattr(args, key), f"flag {declared.setting.flag}"
        if text is None:
            text, source = os.environ.get(declared.variable), f"variable {declared.variable}"
        try:
            found[key] = str(declared.setting.parse(text)) if text else None
        except ValueError as exc:
            raise ConfigError(f"{key} ({source}) cannot be {redact(repr(text))}") from exc
    return found


def _credentials(args: Namespace) -> Credentials | None:
    if args.token_file is not None:
        if args.username is not None or args.password_file is not None:
            raise UsageError("--token-file, or --username and --password-file: not both")
        return read_token(args.token_file)
    if args.username is None and args.password_file is None:
        return None
    if args.username is None or args.password_file is None:
        raise UsageError("--username and --password-file go together")
    password = read_secret(args.password_file, "password")
    return Credentials(username=args.username, password=password)


def _farewell(at: "PushProgress | None", *, is_dry: bool) -> str:
    if at is None or at.doing in {"hashing", "comparing", "looking"} or is_dry:
        return "interrupted; nothing was changed"
    left = at.bytes_total - at.bytes_done
    return (
        f"interrupted with {bytes_text(left)} of {bytes_text(at.bytes_total)} left to send;"
        " there is no manifest of it, the same command goes on"
    )


def _told(report: "PushReport", *, is_dry: bool) -> str:
    files, total = len(report.manifest.files), report.manifest.bytes
    sent, kept = report.bytes_sent, total - report.bytes_sent
    if is_dry:
        manifest = ", and the manifest" if report.is_whole else "; the manifest would be written"
        return (
            f"would push {_files(files)}, {bytes_text(total)}, to {report.destination}:"
            f" {bytes_text(sent)} to send ({_files(report.files_sent)}),"
            f" {bytes_text(kept)} there already ({_files(report.files_kept)}){manifest}"
        )
    return (
        f"pushed {_files(files)}, {bytes_text(total)}, to {report.destination}:"
        f" {bytes_text(sent)} sent ({_files(report.files_sent)}),"
        f" {bytes_text(kept)} there already ({_files(report.files_kept)})"
    )


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
