"""What a dashboard and alerts ask for is what a run exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

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


# Of a run `ill`, in which everything is wrong for two hours, and of one that is well, one a minute.
SERIES = {
    'ray_bfp_done{run="ill"}': "5x120",
    'ray_bfp_total{run="ill"}': "10x120",
    'ray_bfp_data_wait_share{run="ill"}': "0.25x120",
    'ray_bfp_loss{run="ill"}': "20000x120",
    'ray_bfp_rejected{run="ill"}': "1x120",
    'ray_bfp_repeats{run="ill"}': "0+120x120",
    'ray_bfp_done{run="well"}': "100+1x120",
    'ray_bfp_total{run="well"}': "1000x120",
    'ray_bfp_data_wait_share{run="well"}': "0.01x120",
    'ray_bfp_loss{run="well"}': "10x120",
    'ray_bfp_rejected{run="well"}': "1x120",
    'ray_bfp_repeats{run="well"}': "0+1x120",
    'ray_bfp_done{run="over"}': "10x120",
    'ray_bfp_total{run="over"}': "10x120",
}
SAID = {
    "BfpRunStands": "ill has not moved for 45 minutes",
    "BfpTrainingWaitsForData": "ill waits for stacks 25% of the time",
    "BfpLossIsNoNumber": "the loss of ill is 20000",
    "BfpManyScansLeftOut": "ill has left out 20% of its scans",
    "BfpStorageIsAskedAgain": "ill repeats 2 requests a second",
}


def test_alerts_are_given_of_the_run_that_is_ill_and_of_no_other(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no Prometheus here (Debian's package prometheus)")
    rules = MONITORING / "rules.yaml"
    (group,) = yaml.safe_load(rules.read_text())["groups"]
    expected = []
    for rule in group["rules"]:
        annotations = {**rule["annotations"], "summary": SAID[rule["alert"]]}
        alert = {"exp_labels": {"run": "ill", **rule["labels"]}, "exp_annotations": annotations}
        expected.append({"eval_time": "90m", "alertname": rule["alert"], "exp_alerts": [alert]})
    told = {
        "rule_files": [str(rules)],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": series, "values": values} for series, values in SERIES.items()],
                "alert_rule_test": expected,
            }
        ],
    }
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(told))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "alerts.yaml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
