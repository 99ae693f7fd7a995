"""deploy/prometheus/alerts.yml: well formed, about metrics that exist, firing when they should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pageferry.reference.markdown import metric_families
from tests.docs.pages import ROOT
from tests.docs.test_names import METRICS

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
CASES = Path(__file__).with_name("alert_cases.yml")

DURATION = re.compile(r"(\d+(ms|[smhdwy]))+")

OTHER_METRICS = {"up"}
"""Made by Prometheus itself."""

FUNCTIONS = {"increase", "and", "ignoring", "le", "role", "status", "job"}
"""Words of PromQL and labels that the rules use."""


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text())
    assert set(document) == {"groups"}
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_rule_is_well_formed(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Pageferry[A-Za-z]+", rule["alert"])
    assert DURATION.fullmatch(rule.get("for", "0s"))
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description"}
    for text in rule["annotations"].values():
        assert text.count("{{") == text.count("}}")
        variables = set(re.findall(r"\$labels\.(\w+)", text))
        assert variables <= {"instance", "guest"}
        if "guest" in variables:
            assert "pageferry_migration_" in rule["expr"]  # the gauges that have that label


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_rule_is_about_what_there_is(rule: dict[str, Any]) -> None:
    expr = rule["expr"]
    for opening, closing in ("()", "[]", "{}"):
        assert expr.count(opening) == expr.count(closing)
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]', "", expr)
    words = set(re.findall(r"[a-z_]+", bare))
    named = {word for word in words if word.startswith("pageferry_")} | (words & OTHER_METRICS)
    assert named
    assert named <= METRICS | OTHER_METRICS
    assert words - named <= FUNCTIONS


def test_statuses_and_bounds_exist() -> None:
    samples = {
        (sample.name, key, value)
        for family in metric_families()
        for sample in family.samples
        for key, value in sample.labels.items()
    }
    for rule in rules():
        for metric, labels in re.findall(r"(pageferry_\w+)\{([^}]*)\}", rule["expr"]):
            for key, value in re.findall(r'(\w+)="([^"]*)"', labels):
                if any(name == metric for name, _key, _value in samples):
                    assert (metric, key, value) in samples


def test_cases_are_of_every_alert() -> None:
    assert set(re.findall(r'alertname="(\w+)"', CASES.read_text())) == {
        rule["alert"] for rule in rules()
    }


def test_promtool_agrees_where_it_is_installed() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        return  # Debian's package `prometheus` has it; it is no need of ours
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(CASES)]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
