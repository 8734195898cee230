"""`python -m scripts.prometheus_rule` writes the alerts as a PrometheusRule, for the Prometheus operator.

They are written in `deploy/prometheus/alerts.yml`. kustomize takes no file from outside of its folder, so that the
manifest holds them again; a test compares.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
MANIFEST = DEPLOY / "kubernetes" / "monitoring" / "prometheus-rule.yaml"
_HEAD = """\
# Made of ../../prometheus/alerts.yml by `python -m scripts.prometheus_rule`; never edited.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: dst-grpc
  namespace: dst-grpc
  labels: { app.kubernetes.io/name: dst-grpc }
spec:
"""


def manifest() -> str:
    """The manifest, as it should be."""
    alerts = ALERTS.read_text(encoding="utf-8")
    return _HEAD + textwrap.indent(alerts[alerts.index("groups:") :], "  ")


if __name__ == "__main__":
    MANIFEST.write_text(manifest(), encoding="utf-8")
