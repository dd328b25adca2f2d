"""Text tasks: prompts and label words against FusionBench, ranks against SciPy."""

import runpy
from pathlib import Path

import fusion_bench
import numpy as np
import pytest
from scipy import stats

from lib.language.registry import GLUE
from lib.language.scoring import spearman


def test_prompts_and_targets_are_those_of_fusion_bench():
    package = Path(fusion_bench.__file__).parent  # of which the file is read alone: importing it imports all tasks
    theirs = runpy.run_path(str(package / "tasks" / "flan_t5_text_generation" / "glue_prompt_templates.py"))
    for name, template in theirs["glue_prompt_templates"].items():
        task, words = GLUE[name], template["target_text"]
        assert task.prompt == template["input_text"]
        if task.words:
            assert {str(label): word for label, word in enumerate(task.words)} == words
        else:
            assert all(task.target(label) == words.format(label) for label in (0.0, 2.75, 3.799999952316284, 5.0))


@pytest.mark.parametrize("seed", range(20))
def test_rho_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 300))
    targets = rng.integers(0, 26, count) / 5
    targets[:2] = 0, 5
    predictions = np.round(targets + rng.normal(0, rng.choice([0.1, 1, 10]), count), int(rng.integers(0, 3)))
    if len(set(predictions)) > 1:
        assert spearman(predictions.tolist(), targets.tolist()) == pytest.approx(
            stats.spearmanr(predictions, targets).statistic, abs=1e-12
        )
