"""The paper's profile on a stand-in for the hub: both lineages' files, eight sets, heads from text, a step each.

The ordinary tests use a model of the same kind but small; `make scale` the ones of the paper's size.
"""

import shlex
import sys

import open_clip
import pytest
import torch

from benchmarks import stand_in_hub
from benchmarks.scale import ADAPTIVE, BASELINES, open_stand_in
from benchmarks.stand_in_hub import write_stand_in
from lib.files.lineages import HUGGING_FACE, TASK_VECTORS
from lib.runtime.parameters import typed
from lib.study.profiles import PAPER_TASKS, get_profile
from lib.study.recipes import merge_by_name
from lib.vectors.task_vectors import cosine_similarity
from lib.vision.models import load_clip
from lib.vision.registry import REGISTRY

TASKS = PAPER_TASKS.split()


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return write_stand_in(tmp_path_factory.mktemp("hub"), "quick")


def check_lineages(ours, theirs):
    """The same experts, to the last bit, from both file formats; one after the other, for memory's sake."""
    assert (ours.study.profile.lineage, theirs.study.profile.lineage) == (HUGGING_FACE, TASK_VECTORS)
    assert torch.equal(ours.theta0, theirs.theta0)
    start, seen = ours.layout.views(ours.theta0), set()
    for task in ours.tasks:
        one, other = ours.experts[task], theirs.experts[task]
        assert list(one) == list(other) == list(ours.layout.names)
        assert all(torch.equal(one[layer], other[layer]) for layer in one)
        changed = [layer for layer in one if not torch.equal(one[layer], start[layer])]
        assert changed == [layer for layer in one if layer != "proj"]
        seen.add(one["class_embedding"].sum().item())
    assert len(seen) == len(ours.tasks)


def check_heads(workspace):
    """Each row is the direction of the mean embedding of its prompts, 100 long; as open_clip itself computes them."""
    profile = workspace.study.profile
    clip = open_clip.create_model(f"local-dir:{profile.model}").eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=clip.context_length)
    for name, head in workspace.heads.items():
        task = workspace.tasks[name]
        assert head.shape == (REGISTRY[name].classes, clip.visual.output_dim)
        with torch.no_grad():
            tokens = tokenizer([template.format(task.class_names[-1]) for template in task.templates])
            mean = clip.encode_text(tokens, normalize=True).mean(0)
        torch.testing.assert_close(head[-1], 100 * mean / mean.norm(), rtol=1e-4, atol=1e-4)


def check_merging(workspace, methods):
    """Every method gives another finite model near the start; its table of scores says whose experts they are."""
    theta0, vectors = workspace.theta0, workspace.task_vectors
    off_diagonal = cosine_similarity(vectors) - torch.eye(len(vectors))
    assert off_diagonal.abs().max() < 0.1  # noise of its own for every task
    merged = {method: merge_by_name(workspace, method) for method in methods}
    torch.testing.assert_close(merged["Weight averaging"].theta, theta0 + vectors.mean(0))
    torch.testing.assert_close(merged["Task Arithmetic"].theta, theta0 + 0.3 * vectors.sum(0))
    for method, found in merged.items():
        assert torch.isfinite(found.theta).all()
        assert 0 < (found.theta - theta0).norm() < vectors.norm()
        assert (found.mask is not None) == method.startswith("Concrete")
        if method in ADAPTIVE:
            assert found.coefficients.shape == (len(vectors), workspace.layout.layers)
            assert len(found.curve) == 1
            assert found.curve["loss"].notna().all()
    scores = workspace.evaluate(found.theta, method, limit=4)
    assert list(scores["task"]) == list(workspace.tasks)
    assert set(scores["n"]) == {4}
    assert scores["accuracy"].between(0, 1).all()
    saved = workspace.study.save(scores, "scores")
    assert set(saved["lineage"]) == {workspace.study.profile.lineage}


def test_the_papers_path(quick, tmp_path, capsys):
    ours, theirs = (open_stand_in(quick, name, tmp_path, "quick") for name in (HUGGING_FACE, TASK_VECTORS))
    assert (ours.study.profile.name, ours.study.profile.adaptation_batch) == ("clip-vit-b-32", 16)
    check_lineages(ours, theirs)
    check_heads(ours)
    check_merging(ours, [*BASELINES, *ADAPTIVE])
    assert "sun397: a local subset, 397 of 397 classes" in capsys.readouterr().out


def test_a_stand_in_is_the_same_each_time(quick, tmp_path):
    again = write_stand_in(tmp_path, "quick", ["mnist"])
    for lineage in again.experts:
        first, second = (open_stand_in(hub, lineage, tmp_path, "quick", "mnist") for hub in (quick, again))
        assert torch.equal(first.task_vectors, second.task_vectors)


@pytest.mark.parametrize(("arguments", "message"), [({"model": "ViT-B-33"}, "model"), ({"tasks": ["mnits"]}, "set")])
def test_what_there_is_no_stand_in_for(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=rf"unknown {message} '.*'; known: "):
        write_stand_in(tmp_path, **arguments)


def test_the_printed_commands_open_the_study(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stand_in_hub", str(tmp_path), "--model", "quick", "--tasks", "mnist dtd"])
    stand_in_hub.main()
    lines = capsys.readouterr().out.splitlines()
    lineages = set()
    for line in lines:
        given = dict(word.split("=", 1) for word in shlex.split(line) if "=" in word)
        assert (tmp_path / "data") == type(tmp_path)(given["DATA_ROOT"])
        params = {key: typed(value) for key, value in (pair.split("=", 1) for pair in shlex.split(given["PARAMS"]))}
        profile = get_profile(given["PROFILE"], tasks=given["TASKS"], **params)
        assert load_clip(profile.model).image_size == 32
        lineages.add(profile.lineage)
    assert lineages == {HUGGING_FACE, TASK_VECTORS}


@pytest.mark.scale
@pytest.mark.parametrize("model", ["ViT-B-32"])
def test_the_papers_path_at_its_size(tmp_path, model):
    stand_in = write_stand_in(tmp_path / "hub", model, TASKS)
    ours, theirs = (open_stand_in(stand_in, name, tmp_path, model) for name in (HUGGING_FACE, TASK_VECTORS))
    check_lineages(ours, theirs)
    del theirs
    check_heads(ours)
    check_merging(ours, [*BASELINES, *ADAPTIVE])
