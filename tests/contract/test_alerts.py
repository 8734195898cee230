"""Alerts, their tests, the dashboard and the document of metrics say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ALERTS, TESTS = (ROOT / "deploy" / "prometheus" / name for name in ("alerts.yml", "alerts_test.yml"))
DASHBOARD = ROOT / "deploy" / "grafana" / "dst-grpc.json"
_METRIC = re.compile(r"\b(?:dst|grpc_server|process)_[a-z0-9_]+")
_SUFFIX = re.compile("_(bucket|count|sum)$")


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def rows() -> list[list[str]]:
    """The rows of the table of metrics."""
    lines = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines()
    return [line.split("|") for line in lines if re.match(r"\| `(dst|grpc|process)_", line)]


def test_each_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(rules: list[dict[str, Any]]) -> None:
    fires: list[str] = []
    is_quiet: list[str] = []
    for test in yaml.safe_load(TESTS.read_text(encoding="utf-8"))["tests"]:
        for case in test["alert_rule_test"]:
            (fires if case["exp_alerts"] else is_quiet).append(case["alertname"])
    names = [rule["alert"] for rule in rules]
    assert fires == is_quiet == names


def test_the_table_of_metrics_names_each_alert_at_a_metric_that_it_looks_at(rules: list[dict[str, Any]]) -> None:
    documented = {
        (name, alert)
        for row in rows()
        for name in re.findall(r"`(\w+)`", row[1])
        for alert in re.findall(r"`(\w+)`", row[-2])
    }
    by_alert = {rule["alert"]: {_SUFFIX.sub("", name) for name in _METRIC.findall(rule["expr"])} for rule in rules}
    assert {alert for _, alert in documented} == set(by_alert)
    ours = {alert: {name for name, other in documented if other == alert} for alert in by_alert}
    down = {"DstDown", "DstRestarting"}  # of any process
    assert [alert for alert in by_alert if alert not in down and not ours[alert] <= by_alert[alert]] == []


def test_the_dashboard_shows_every_metric_of_the_table_and_no_other() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    text = " ".join(target["expr"] for panel in panels for target in panel.get("targets", ()))
    shown = {_SUFFIX.sub("", name) for name in _METRIC.findall(text)}
    known = {name for row in rows() for name in re.findall(r"`(\w+)`", row[1])}
    assert shown <= known
    elsewhere = {
        "grpc_server_call_started_total",
        "grpc_server_call_sent_total_compressed_message_size_bytes",
        "grpc_server_call_rcvd_total_compressed_message_size_bytes",
    }  # what ended, and what callers cost, say as much
    assert {name for name in known - shown if not name.startswith("process_")} == elsewhere


def test_panels_have_ids_and_places_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert {x for x, _ in taken} <= set(range(24))
