"""Run the node's agent in the foreground until SIGTERM, which drains and stops it.

Every setting may also stand in a TOML file (--config, or $DAMSELFLY_CONFIG), in a table per room,
and in the environment as DAMSELFLY_<ROOM>_<FIELD>; a flag beats the environment, which beats the
file. `damselfly doctor` prints what is in effect, and who said so.

    [agent]
    listen = "0.0.0.0:7460"
    [store]
    path = "/var/lib/damselfly"
    capacity_bytes = "500GiB"
    [swarm]
    peers = "dns:damselfly.models.svc.cluster.local:7460"
"""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from damselfly.agent.settings import SETTINGS
from damselfly.cli.extras import extras_needed


def configure(parser: ArgumentParser) -> None:
    """Add a flag for every setting."""
    parser.add_argument("--config", metavar="FILE.toml", type=Path, help="read settings from here")
    for key, declared in SETTINGS.items():
        setting = declared.setting
        value = declared.default
        default = ""
        if declared.is_required:
            default = " (required)"
        elif not setting.is_derived and value is not None and (shown := declared.show(value)):
            default = f" (default: {shown})"
        parser.add_argument(
            setting.flag,
            dest=key,
            metavar=setting.metavar,
            help=f"{setting.reason}{default}".replace("%", "%%"),
        )


def run(args: Namespace) -> int:
    """Put the configuration together, and run the agent."""
    from damselfly.agent.config import load_config  # noqa: PLC0415 - not needed for --help

    given = {key: value for key in SETTINGS if (value := getattr(args, key)) is not None}
    config = load_config(given, os.environ, args.config)
    with extras_needed("the agent"):
        from damselfly.agent import daemon  # noqa: PLC0415 - aiohttp and uvloop come with it

    return daemon.run(config)
