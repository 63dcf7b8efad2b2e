from __future__ import annotations

from bfp.reports.headline import headline


def test_an_ingest_says_how_much_it_made_and_left_out() -> None:
    figures = {"stacks": 1932, "scans": 143, "rejected": 1}
    assert headline("ingest", figures) == "1,932 stacks, 143 scans, 1 scan left out"
    assert headline("infer", {"sessions": 1, "rejected": 0}) == "1 session predicted, 0 scans left out"


def test_a_pretraining_says_its_losses_and_what_was_learned_with_its_interval() -> None:
    figures = {"steps": 600, "loss_first": 9.1, "loss_last": 5.214, "tissue_r2_pretrained": 0.263}
    figures |= {"tissue_r2_pretrained_low": 0.241, "tissue_r2_pretrained_high": 0.284, "tissue_r2_untrained": 0.16}
    said = "600 steps, loss 9.10 → 5.21, tissue R² 0.26 [0.24, 0.28], untrained 0.160"
    assert headline("pretrain", figures) == said


def test_an_undefined_figure_is_called_so() -> None:
    assert headline("finetune", {"auroc": None, "auroc_low": None, "auroc_high": None}) == "AUROC undefined"


def test_numbers_times_and_benchmarks_have_one_too() -> None:
    ends = {"mae_low": 6.1, "mae_high": 7.9, "r2_low": -0.15, "r2_high": 0.17}
    said = "mean absolute error 7.0 [6.1, 7.9], R² 0.02 [-0.15, 0.17]"
    assert headline("finetune", {"mae": 7.0, "r2": 0.02, **ends}) == said
    figures = {"auroc": 0.8, "auroc_low": 0.69, "auroc_high": 0.88, "auroc_histograms": 0.81}
    assert headline("benchmark", figures).startswith("AUROC 0.80 [0.69, 0.88], histograms 0.8")


def test_a_run_without_results_has_no_headline() -> None:
    assert headline("infer", {}) == ""
