"""Adapters of any configuration: merged as peft itself merges them, or refused in one sentence."""

import json
import os
import shutil
from copy import deepcopy

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from mini_t5 import mini_t5
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file

from lib.language.lora import merged_weights

LAYERS = ["q", "k", "v", "o", "wi_0", "wo", "lm_head", "encoder.block.0.layer.0.SelfAttention.q"]
patterns = st.dictionaries(st.sampled_from([*LAYERS, "nothing", r".*SelfAttention\.q"]), st.integers(1, 9), max_size=2)
FIELDS = {
    "r": st.integers(1, 6),
    "lora_alpha": st.integers(1, 32),
    "alpha_pattern": patterns,
    "rank_pattern": patterns,
    "use_rslora": st.booleans(),
    "use_dora": st.booleans(),
    "init_lora_weights": st.sampled_from(
        [True, False, "gaussian", "pissa", "pissa_niter_4", "olora", "orthogonal", "eva", "loftq", "corda"]
    ),
    "target_modules": st.one_of(
        st.lists(st.sampled_from([*LAYERS, "shared"]), min_size=1, max_size=3, unique=True),
        st.sampled_from([r".*\.q", "all-linear", "nothing"]),
    ),
    "exclude_modules": st.sampled_from([None, ["wo"], r".*decoder.*"]),
    "bias": st.sampled_from(["none", "all", "lora_only"]),
    "lora_bias": st.booleans(),
    "modules_to_save": st.sampled_from([None, ["lm_head"], ["shared"], ["final_layer_norm"], ["layer_norm", "wi_1"]]),
    "fan_in_fan_out": st.booleans(),
    "layers_to_transform": st.sampled_from([None, [0], 1]),
    "layers_pattern": st.sampled_from([None, "block"]),
    "layer_replication": st.sampled_from([None, [[0, 1], [0, 2]]]),
    "trainable_token_indices": st.sampled_from([None, [1, 3], {"shared": [2]}]),
    "target_parameters": st.sampled_from([None, ["q.weight"]]),
    "lora_dropout": st.sampled_from([0.0, 0.5]),
    "inference_mode": st.booleans(),
    "task_type": st.sampled_from([TaskType.SEQ_2_SEQ_LM, TaskType.CAUSAL_LM, None]),
}
# What stands in a file may be anything, also what peft would never write.
ODD = st.sampled_from([None, -1, 0, 3, 1.5, "(", "x", [], ["q"], {}, {"q": 0}, {"q": "x"}, {"(": 2}, True, [[0, 9]]])
MORE = ("peft_type", "base_model_name_or_path", "revision", "auto_mapping", "loftq_config", "megatron_config", "x")
DAMAGE = ["none"] * 4 + ["field"] * 4 + ["drop", "shape", "nan", "half", "cut", "weights are missing"]


def drawn_adapter(draw, folder):
    """An adapter that peft made and saved, and the weights that it merged; None where peft refuses to make it."""
    chosen = draw(st.sets(st.sampled_from(sorted(FIELDS)), max_size=5)) | {"target_modules"}
    options = {name: draw(FIELDS[name]) for name in sorted(chosen)}
    torch.manual_seed(draw(st.integers(0, 3)))
    model = get_peft_model(mini_t5(), LoraConfig(**({"task_type": TaskType.SEQ_2_SEQ_LM} | options)))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return {name: tensor.detach() for name, tensor in deepcopy(model).merge_and_unload().named_parameters()}


def damaged(draw, folder, how):
    """Change one thing in a saved adapter."""
    path, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(path)
    name = draw(st.sampled_from(sorted(tensors)))
    if how == "field":
        told = json.loads(config.read_text())
        told[draw(st.sampled_from([*sorted(told), *MORE]))] = draw(ODD)
        config.write_text(json.dumps(told))
    elif how == "cut":
        path.write_bytes(path.read_bytes()[: draw(st.integers(0, path.stat().st_size - 1))])
    elif how == "weights are missing":
        path.unlink()
    else:
        change = {"shape": lambda t: t[:1].clone(), "nan": lambda t: t / 0, "half": lambda t: t.half()}
        changed = {} if how == "drop" else {name: change[how](tensors.pop(name))}
        save_file({n: t for n, t in tensors.items() if n != name} | changed, path, {"format": "pt"})


def by_peft(folder):
    """What peft makes of it where it is read."""
    with torch.random.fork_rng():
        return dict(PeftModel.from_pretrained(mini_t5(), folder).merge_and_unload().named_parameters())


@settings(
    max_examples=int(os.environ.get("FUZZ", "20")), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_any_adapter_is_merged_as_peft_merges_it_or_refused_in_one_sentence(tmp_path, data):
    """FUZZ=500 for the long run."""
    folder, base = tmp_path / "adapter", mini_t5()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        expected = drawn_adapter(data.draw, folder)
    except (ValueError, TypeError, RuntimeError, NotImplementedError, ImportError, KeyError, AttributeError):
        event("peft makes no such adapter")
        return
    how = data.draw(st.sampled_from(DAMAGE))
    if how != "none":
        damaged(data.draw, folder, how)
    before = {name: tensor.clone() for name, tensor in base.named_parameters()}
    try:
        changed = merged_weights(folder, base)
    except ValueError as error:
        event(f"refused, {how}")
        assert "\n" not in str(error) and str(folder) in str(error)
        unchanged = expected.keys() == before.keys() and all(torch.equal(expected[n], before[n]) for n in before)
        random = "split the base at random" in str(error)
        assert how != "none" or expected.keys() != before.keys() or unchanged or random, error
    else:
        event(f"merged, {how}")
        assert how not in ("drop", "shape", "nan", "cut", "weights are missing"), "it was refused"
        if how != "none":
            expected = by_peft(folder)
        for name in before:
            torch.testing.assert_close(changed.get(name, before[name]), expected[name], atol=1e-6, rtol=1e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.named_parameters()), "the base stays"
