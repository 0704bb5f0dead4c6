"""Runs a command as a container would be: another root, another user, fewer rights.

It is what a container runtime does, by hand, with util-linux: namespaces of mounts and processes, a
network with nothing but loopback unless the host's is asked for, a read-only root, and only the
capabilities that are named.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# $1 the root, $2 ro or rw, $3 the network, $4 binds as SOURCE:TARGET:MODE ..., then the command.
SCRIPT = """
root=$1 mode=$2 network=$3 binds=$4; shift 4
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
for device in null zero random urandom; do
  mount --bind "/dev/$device" "$root/dev/$device"
done
if [ "$network" = none ]; then ip link set lo up; else
  mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
  mount --bind /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
fi
for bind in $binds; do
  target=${bind#*:}
  mount --bind "${bind%%:*}" "$root${target%:*}"
  if [ "${bind##*:}" = ro ]; then mount -o remount,bind,ro "$root${target%:*}"; fi
done
if [ "$mode" = ro ]; then mount -o remount,bind,ro "$root"; fi
exec chroot "$root" "$@"
"""


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """How a command is run."""

    root: Path
    user: str = "0:0"
    environ: Mapping[str, str] = field(default_factory=dict[str, str])
    is_read_only: bool = False
    has_network: bool = False
    capabilities: Sequence[str] | None = ()
    """None: all that there are, as in a build."""
    binds: Mapping[str, tuple[Path, str]] = field(default_factory=dict[str, tuple[Path, str]])
    """Where directories of the host are seen, which they are, and `ro` or `rw`."""

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The whole command line."""
        uid, gid = self.user.split(":")
        drop: list[str] = []
        if self.capabilities is not None:
            kept = "".join(f",+{name.lower()}" for name in self.capabilities)
            drop = [
                "setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups",
                f"--inh-caps=-all{kept}", f"--bounding-set=-all{kept}", "--no-new-privs",
            ]  # fmt: skip
        variables = [f"{name}={value}" for name, value in self.environ.items()]
        return [
            "unshare", "--mount", "--pid", "--fork", "--kill-child",
            *([] if self.has_network else ["--net"]),
            "sh", "-eu", "-c", SCRIPT, "sh", str(self.root),
            "ro" if self.is_read_only else "rw",
            "host" if self.has_network else "none",
            " ".join(f"{source}:{target}:{mode}" for target, (source, mode) in self.binds.items()),
            *drop, "env", "--ignore-environment", *variables, *arguments,
        ]  # fmt: skip

    def run(self, arguments: Sequence[str], timeout_s: float = 600.0) -> str:
        """Run a command to its end; returns what it printed.

        Raises:
            subprocess.CalledProcessError: It failed.
        """
        done = subprocess.run(
            self.command(arguments),
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            check=True,
            timeout=timeout_s,
        )
        return done.stdout
