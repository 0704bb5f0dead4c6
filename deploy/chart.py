"""The Helm chart, rendered and linted by Helm's own library."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import helm_python as helm

CHART = Path(__file__).parent / "helm" / "damselfly"
RELEASE = "damselfly"
NAMESPACE = "damselfly"


def render(
    values: Mapping[str, Any], *, release: str = RELEASE, namespace: str = NAMESPACE
) -> dict[str, str]:
    """Render the chart as `helm install` would: the text by each template's file name.

    Templates that render to nothing are left out.

    Raises:
        helm.HelmError: The schema refuses the values, or a template fails.
    """
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(dict(values))
        rendered = chart.render(dict(values), name=release, namespace=namespace)
    texts = {Path(template).name: text.strip() for template, text in rendered.items()}
    return {name: f"{text}\n" for name, text in texts.items() if text}


def main() -> int:
    """Render once for each line of stdin, and answer with a line of JSON each.

    A line is `{"values": ..., "release": ..., "namespace": ...}`, an answer `{"files": ...}` or
    `{"error": ...}`. Tests ask this way: the library brings Go's runtime, and it stays out of them.
    """
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"files": render(**json.loads(line))}
        except helm.HelmError as exc:
            answer = {"error": str(exc)}
        print(json.dumps(answer), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
