"""What a dashboard and alerts ask for is what a run exports."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from bfp.targets.monitoring import NAMES
from tests.conftest import CHECKOUT

MONITORING = CHECKOUT / "infra" / "monitoring"


@pytest.mark.parametrize("name", ["grafana.json", "rules.yaml"])
def test_every_metric_that_is_asked_for_is_exported(name: str) -> None:
    text = (MONITORING / name).read_text()
    asked = set(re.findall(r"ray_(bfp_\w+)", text))
    assert asked
    assert asked <= set(NAMES)


def test_the_dashboard_shows_every_metric_and_the_rules_are_rules() -> None:
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    shown = json.dumps(dashboard["panels"])
    assert all(f"ray_{name}{{" in shown.replace(chr(92), "") for name in NAMES)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    (group,) = yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]
    assert all(rule["expr"] and rule["annotations"]["summary"] for rule in group["rules"])
