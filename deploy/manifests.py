"""The plain manifests in deploy/kubernetes: the chart with its default values, rendered.

`make manifests` writes them. Nothing in them is written by hand, kustomization.yaml included.
"""

import argparse
from pathlib import Path

from deploy.chart import render

FOLDER = Path(__file__).parent / "kubernetes"
HEADER = "# Rendered from deploy/helm/damselfly by `make manifests`: change the chart instead.\n"
VALUES = {"namespace": {"create": True}}


def plain_manifests() -> dict[str, str]:
    """The text of every file, by name."""
    rendered = render(VALUES)
    del rendered["NOTES.txt"]
    # The namespace first: what comes after it lies in it.
    names = sorted(rendered, key=lambda name: (name != "namespace.yaml", name))
    listed = "".join(f"  - {name}\n" for name in names)
    kustomization = (
        f"apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{listed}"
    )
    return {
        name: HEADER + text
        for name, text in {**rendered, "kustomization.yaml": kustomization}.items()
    }


def write(folder: Path) -> None:
    """Make a folder hold the manifests, and no other."""
    folder.mkdir(parents=True, exist_ok=True)
    manifests = plain_manifests()
    for stale in {path.name for path in folder.glob("*.yaml")} - manifests.keys():
        (folder / stale).unlink()
    for name, text in manifests.items():
        (folder / name).write_text(text)


def main() -> int:
    """Write the manifests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="DIR")
    write(parser.parse_args().to)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
