"""`helm lint` with values from stdin as JSON: prints what Helm finds, and fails if it is wrong."""

import json
import sys

import helm_python as helm

from deploy.chart import CHART, NAMESPACE

INFORMATION = 1  # Helm's severities are 1 information, 2 warning, 3 error.


def main() -> int:
    """Lint the chart."""
    answer = helm.lint(str(CHART), values=json.load(sys.stdin), strict=True, namespace=NAMESPACE)
    messages = answer["messages"]
    for message in messages:
        print(f"{message['path']}: {message['error']}")
    return int(any(message["severity"] > INFORMATION for message in messages))


if __name__ == "__main__":
    raise SystemExit(main())
