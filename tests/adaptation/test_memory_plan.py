"""What adaptation needs of memory: the plan, the plan against the measured peak, and the settings that need less."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lib import concrete, fusion
from lib.adaptation import memory_plan
from lib.adaptation.loop import adapt
from lib.adaptation.memory_plan import check, free_memory, mend
from lib.adaptation.needs import PASSING, Needs, plan
from lib.runtime.device import Runtime
from lib.runtime.disk import ROOT
from lib.runtime.keys import digest
from lib.study.profiles import get_profile
from lib.study.recipes import merge_by_name
from lib.study.study import Study
from lib.study.vision import VisionWorkspace
from lib.vectors.flat_model import FlatModel
from lib.vectors.mapped import is_mapped, mapped_rows
from lib.vectors.task_vectors import check_task_vectors
from lib.vision.models import Preprocess
from lib.vision.objective import ImageObjective

GB = 10**9
TOLERANCE = 0.25  # of the measured peak
VIT = Needs(
    parameters=87_849_216, tasks=8, rows=128, rows_at_once=128, row_bytes=33_000_000, learn_mask=True, accelerator=True
)
FLAGS = {"learn_mask": True, "coefficients": True, "fixed_mask": False, "exact": False}


def small(batch=4, tasks=3, rows_at_once=0):
    torch.manual_seed(0)
    model = FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 5)))
    heads = [4 * torch.randn(4, 5) for _ in range(tasks)]
    images = [torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8) for _ in range(tasks)]
    options = {"batch": batch, "seed": 0, "rows_at_once": rows_at_once}
    objective = ImageObjective(model, heads, images, Preprocess((0.5,) * 3, (0.25,) * 3), Runtime(), **options)
    theta0 = model.initial()
    return objective, theta0, 0.1 * torch.randn(tasks, len(theta0)) * model.layout.inside(), model.layout


def test_the_plan_is_the_sum_of_its_parts():
    parts = plan(VIT)
    assert parts["task vectors"] == 32 * VIT.parameters
    assert parts["mask logits and moments"] == parts["theta0, merged model and gradient"] == 12 * VIT.parameters
    assert parts["activations of 128 inputs"] == pytest.approx(128 * 33_000_000 * PASSING)
    assert plan(replace(VIT, vectors="bf16"))["task vectors"] == 16 * VIT.parameters
    assert plan(replace(VIT, vectors="mapped"))["task vectors"] == 4 * VIT.parameters
    assert "task vectors" not in plan(replace(VIT, vectors="mapped", accelerator=False))
    assert plan(replace(VIT, coefficients=False))["their sum"] == 4 * VIT.parameters
    assert plan(replace(VIT, rows_at_once=16))["activations of 16 inputs"] * 8 == parts["activations of 128 inputs"]
    few = plan(replace(VIT, rows_at_once=1))  # then the peak is where the final mask is drawn
    assert few["drawing the mask"] + few["activations of 1 inputs"] == 20 * VIT.parameters


@pytest.mark.parametrize(
    ("room", "words"),
    [
        (8 * GB, "set micro_batch=64"),
        (7 * GB, "set micro_batch=32"),
        (6 * GB, "set task_vector_dtype=bf16 and micro_batch=32"),
        (5 * GB, "set task_vector_dtype=mapped and micro_batch=32"),
        (1 * GB, "merge fewer tasks, choose a smaller model, or device=cpu"),
    ],
)
def test_what_does_not_fit_names_the_least_change_that_does(room, words):
    assert sum(plan(VIT).values()) > 9 * GB
    assert mend(VIT, room) == words


def test_a_phase_is_planned_in_one_line_and_stopped_when_it_cannot_fit():
    objective, theta0, vectors, _ = small()
    line = check("Concrete AdaMerging", objective, theta0, vectors, room=lambda device: 10**7, **FLAGS)
    assert line.startswith("Concrete AdaMerging needs about 0.2 MB on cpu (task vectors 0.0 MB, "), line
    assert "activations of 12 inputs 0.0 MB" in line and line.endswith("); 10.1 MB can be had"), line
    with pytest.raises(MemoryError, match=r"needs about .* can be had: merge fewer tasks"):
        check("phase", objective, theta0, vectors, room=lambda device: 0, **FLAGS)


def test_activations_are_counted_without_the_weights():
    objective, theta0, *_ = small()
    found = memory_plan.measured(objective, theta0)
    assert found["input_bytes"] == 48 * 4
    assert 13 * 4 <= found["row_bytes"] <= 40 * 4  # tanh's 8, the features' 5, a few for norm and head
    assert found["copies_bytes"] <= 3 * 20 * 4 + 64  # the head


def test_the_machine_says_what_is_free():
    if Path("/proc/meminfo").is_file():
        assert 10**7 < free_memory("cpu") < 10**14


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures resident memory as Linux counts it")
def test_the_plan_agrees_with_the_measured_peak():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "memory_program.py")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    for case in json.loads(done.stderr.strip().splitlines()[-1]):
        assert case["planned"] == pytest.approx(case["measured"], rel=TOLERANCE)


# --- what the two fields do


@pytest.mark.parametrize("rows_at_once", [1, 4, 8])
def test_micro_batches_give_the_same_gradient(rows_at_once):
    whole, theta0, *_ = small()
    parts, *_ = small(rows_at_once=rows_at_once)
    assert parts.rows_together() == max(4, rows_at_once)
    (loss, gradient), (again, same) = (objective(5)(theta0) for objective in (whole, parts))
    torch.testing.assert_close((loss, gradient), (again, same), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("coefficients", "learn_mask"), [("layer", False), ("layer", True), (None, True)])
def test_rounded_and_mapped_task_vectors_learn_what_whole_ones_do(tmp_path, coefficients, learn_mask):
    found = []
    for kind in ("fp32", "bf16", "rounded", "mapped"):
        objective, theta0, vectors, layout = small()
        if kind == "bf16":
            vectors = vectors.bfloat16()
        elif kind == "rounded":
            vectors = vectors.bfloat16().float()
        elif kind == "mapped":
            vectors = mapped_rows(tmp_path, vectors, tuple(vectors.shape), ["these"])
        options = {"coefficients": coefficients, "learn_mask": learn_mask, "evaluate_every": 1, "steps": 3}
        seen = []
        adapt(objective, theta0, vectors, layout, **options, evaluate=lambda theta, seen=seen: seen.append(theta) or {})
        found.append(torch.stack(seen))
    whole, half, rounded, mapped = found
    assert torch.equal(whole, mapped)
    torch.testing.assert_close(half, rounded, atol=1e-5, rtol=0)  # all but the storage is float32
    assert 1e-7 < (half - whole).abs().max() < 3 * 2**-8 * 0.3 * 0.5  # 3 task vectors of at most 0.5


@pytest.mark.parametrize("method", ["weight_averaging", "task_arithmetic", "ties_merging", "dare", "tsv_m"])
def test_fusion_takes_rounded_task_vectors_and_computes_in_float32(method):
    _, theta0, vectors, layout = small()
    merge, rounded = getattr(fusion, method), vectors.bfloat16()
    check_task_vectors(theta0, rounded, layout, half=True)
    found = merge(theta0, rounded, layout)
    assert found.dtype == torch.float32 and rounded.dtype == torch.bfloat16
    torch.testing.assert_close(found, merge(theta0, rounded.float(), layout), atol=1e-6, rtol=0)
    assert torch.equal(fusion.weight_averaging(theta0, vectors, layout), theta0 + vectors.mean(0)), "as ever in float32"
    with pytest.raises(ValueError, match=r"theta0 is torch.float64 and the task vectors are torch.bfloat16"):
        merge(theta0.double(), rounded, layout)


@pytest.mark.parametrize("layer_wise", [True, False])
def test_the_plain_gradient_of_coefficients_takes_rounded_task_vectors(layer_wise):
    _, theta0, vectors, layout = small()
    rounded, gradient = vectors.bfloat16(), torch.randn_like(theta0)
    found, wanted = (
        concrete.coefficient_gradient(gradient, given, layout, None, layer_wise) for given in (rounded, rounded.float())
    )
    torch.testing.assert_close(found, wanted)


class Small(VisionWorkspace):
    """A study of the small model, whose parts lie in memory."""

    def __init__(self, profile, root):
        super().__init__(Study(profile, root=root))
        made, theta0, self.vectors, _ = small(tasks=len(profile.task_names))
        self._tasks.update(dict.fromkeys(profile.task_names))
        text = nn.Linear(5, 6)
        self.backbone = SimpleNamespace(
            preprocess=made.preprocess,
            image_size=4,
            encoder=made.model.module,
            model=nn.ModuleList([made.model.module, text]),
        )
        self.model, self.theta0 = made.model, theta0
        self.heads = dict(zip(self.tasks, made.heads, strict=True))
        self.pixels = dict(zip(self.tasks, made.images, strict=True))

    @property
    def experts(self):
        return {
            name: self.layout.views(self.theta0 + vector) for name, vector in zip(self.tasks, self.vectors, strict=True)
        }

    def inputs(self, split, task, corruption=""):
        return self.pixels[task]

    def scored(self, tasks, corruption, limit):
        return {"tasks": tasks}


@pytest.mark.parametrize("kind", ["fp32", "bf16", "mapped"])
def test_a_workspace_stores_task_vectors_as_the_profile_says(tmp_path, kind):
    workspace = Small(get_profile("tiny", task_vector_dtype=kind, adaptation_steps=2), tmp_path)
    stored, vectors = workspace.task_vectors, workspace.vectors
    assert stored.dtype == (torch.bfloat16 if kind == "bf16" else torch.float32)
    assert is_mapped(stored) == (kind == "mapped")
    torch.testing.assert_close(stored.float(), vectors, atol=1e-6, rtol=2**-8)
    again = Small(workspace.study.profile, tmp_path).task_vectors
    assert digest(stored) == digest(again)
    # a whole run on it: method, baseline, remembered result
    merged = merge_by_name(workspace, "AdaMerging (layer-wise)")
    assert merged.theta.dtype == merged.coefficients.dtype == torch.float32
    assert torch.equal(merge_by_name(workspace, "AdaMerging (layer-wise)").theta, merged.theta)
    averaged = merge_by_name(workspace, "Weight averaging").theta
    torch.testing.assert_close(averaged, workspace.theta0 + vectors.mean(0), atol=2e-3, rtol=0)


class Made(TorchDispatchMode):
    """Remembers the largest float32 tensor that was made inside, not counting views."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.dtype == torch.float32:
                self.largest = max(self.largest, leaf.numel() * (leaf.untyped_storage().data_ptr() not in known))
        return made


@pytest.mark.parametrize("kind", ["bf16", "mapped"])
@pytest.mark.parametrize("chosen", [(), (1, 2, 3), (4, 0, 3)])
def test_no_stack_in_float32_is_made_where_the_profile_wants_none(tmp_path, kind, chosen):
    profile = get_profile("tiny", task_vector_dtype=kind, adaptation_steps=2, mask_steps=2, adaptation_batch=2)
    names = [profile.task_names[number] for number in chosen]
    tasks = len(chosen or profile.task_names)
    workspace = Small(profile, tmp_path)
    length = workspace.layout.length
    with Made() as made:
        setting = workspace.setting(names)
        merged = merge_by_name(workspace, "Concrete AdaMerging (layer-wise)", setting)
        merge_by_name(workspace, "Concrete Task Arithmetic", setting)
        average = merge_by_name(workspace, "Weight averaging", setting).theta
        assert torch.equal(workspace.held_out(setting).average(), average)
        assert len([digest(theta) for _, theta in workspace.points()]) == len(profile.task_names)
    assert length <= made.largest < min(2, tasks) * length, "vectors one at a time"
    assert is_mapped(setting.task_vectors) == (kind == "mapped")
    wanted = workspace.vectors[[profile.task_names.index(name) for name in names]] if names else workspace.vectors
    torch.testing.assert_close(setting.task_vectors.float(), wanted, atol=1e-6, rtol=2**-8)
    torch.testing.assert_close(average, workspace.theta0 + wanted.mean(0), atol=2e-3, rtol=0)
    assert merged.theta.dtype == torch.float32


def test_mapped_subsets_have_keys_of_their_own_and_runs_are_views(tmp_path):
    workspace = Small(get_profile("tiny", task_vector_dtype="mapped"), tmp_path)
    names, folder = workspace.study.profile.task_names, tmp_path / "data/cache/task_vectors"
    whole, run = workspace.setting().task_vectors, workspace.setting(names[2:5]).task_vectors
    assert whole is workspace.task_vectors
    assert run.data_ptr() == whole[2].data_ptr() and len(list(folder.glob("*.npy"))) == 1
    some, scaled = workspace.setting([names[4], names[1]]).task_vectors, workspace.setting(scale=0.5).task_vectors
    assert len(list(folder.glob("*.npy"))) == 3
    assert torch.equal(some, whole[[4, 1]]) and torch.equal(scaled, 0.5 * whole)
    again, other = (workspace.setting(own).task_vectors for own in ([names[4], names[1]], names[1:4]))
    assert digest(again) == digest(some)
    assert len({digest(tensor) for tensor in (whole, run, some, scaled, other)}) == 5


def test_the_plan_is_printed_for_models_that_are_not_small(tmp_path, capsys, monkeypatch):
    workspace = Small(get_profile("tiny", adaptation_steps=1, adaptation_batch=2, micro_batch=4), tmp_path)
    merge_by_name(workspace, "AdaMerging (layer-wise)")
    assert "needs about" not in capsys.readouterr().out
    monkeypatch.setattr(memory_plan, "SMALL", 10)
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: None)
    merge_by_name(workspace, "AdaMerging (layer-wise)", adaptation_steps=2)
    said = capsys.readouterr().out
    assert "AdaMerging (layer-wise) needs about" in said and " MB on cpu (" in said
    assert "activations of 4 inputs" in said
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 0)
    with pytest.raises(MemoryError, match=r"AdaMerging .* needs about .* can be had: "):
        merge_by_name(workspace, "AdaMerging (layer-wise)", adaptation_steps=3)


def test_the_text_tower_counts_as_frozen(tmp_path):
    workspace = Small(get_profile("tiny"), tmp_path)
    assert workspace.frozen_bytes == workspace.objective().frozen_bytes == 4 * (5 * 6 + 6)


def test_the_fields_are_checked():
    assert get_profile("tiny", micro_batch=0).micro_batch == 0
    with pytest.raises(ValueError, match="'micro_batch' is -1, expected 0 or a positive number"):
        get_profile("tiny", micro_batch=-1)
    with pytest.raises(ValueError, match="'task_vector_dtype' is 'fp16', expected 'fp32', 'bf16' or 'mapped'"):
        get_profile("tiny", task_vector_dtype="fp16")
