"""The paper's path, Flan-T5 with adapters from files: same architecture and formats, but small."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.language import ARCHITECTURES, write_checkpoints
from lib.language.t5 import load_t5
from lib.study.profiles import GLUE_TASKS, PROFILES

ROOT = Path(__file__).resolve().parents[2]


def test_a_checkpoint_of_the_architecture_is_read_back(tmp_path):
    t5 = load_t5(str(write_checkpoints("quick", tmp_path)))
    config = t5.model.config
    assert (config.d_ff, config.is_gated_act, config.scale_decoder_outputs) == (128, True, False)
    assert not any(parameter.requires_grad for parameter in t5.model.parameters())


def test_the_papers_profile_runs_on_it():
    command = [sys.executable, "-m", "benchmarks.language", "--model", "quick", "--steps", "1"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    for line in (
        "task vectors [8, ",
        "Concrete AdaMerging (layer-wise), a step",
        "answering and scoring 8 x 32 prompts",
    ):
        assert line in run.stdout


@pytest.mark.parametrize("name", ["flan-t5-base", "flan-t5-large"])
def test_the_papers_hyperparameters(name):
    profile = PROFILES[name]
    assert profile.model == f"google/{name}"
    assert name in ARCHITECTURES
    assert profile.tasks == GLUE_TASKS
    assert (profile.lora_rank, profile.lora_alpha, profile.lora_targets) == (16, 32, "q v")
    assert (profile.mask_steps, profile.mask_rate, profile.inner_rate) == (2000, 1e-4, 0.1)
    assert (profile.adaptation_steps, profile.adaptation_rate, profile.adaptation_batch) == (1000, 1e-4, 8)
    assert (profile.scaling_factor, profile.temperature, profile.task_vector) == (0.3, 0.5, "weights")
