"""LoRA adapters: the same as peft's own merging, saved and loaded bit for bit, errors that name the mend."""

import json
import re

import pytest
import torch
from mini_t5 import mini_t5
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import T5ForConditionalGeneration

from lib.language.lora import (
    adapted,
    attach,
    check_same_start,
    load_adapter,
    merged_weights,
    save_adapter,
    weight_change,
)
from lib.runtime.keys import content
from lib.vectors.flat_model import FlatModel

LORA = {"rank": 4, "alpha": 8}
ROWS = torch.tensor([[9, 11, 4, 1, 0], [10, 12, 13, 14, 1]])


def fresh(**options):
    return attach(mini_t5(), targets=["q", "v"], **(LORA | options))


def trained(seed=0):
    """An adapter whose B is not zero, as name -> tensor."""
    torch.manual_seed(seed)
    own = {name: tensor for name, tensor in fresh().named_parameters() if tensor.requires_grad}
    return {name: tensor.detach() + 0.1 * torch.randn_like(tensor) for name, tensor in own.items()}


def logits(model):
    start = torch.zeros(2, 1, dtype=torch.long)
    with torch.no_grad():
        return model(input_ids=ROWS, attention_mask=(ROWS != 0).long(), decoder_input_ids=start).logits


def test_a_fresh_adapter_changes_nothing_and_leaves_the_model_alone():
    base = mini_t5()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = attach(base, targets=["q", "v"], **LORA)
    assert torch.equal(logits(model), logits(base))
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    shared = {tensor.data_ptr() for tensor in base.parameters()}
    assert shared <= {tensor.data_ptr() for tensor in model.parameters()}, "the frozen weights are in memory once"
    names = [name for name, tensor in model.named_parameters() if tensor.requires_grad]
    assert len(names) == 2 * 2 * (2 + 4), "A and B of q and v: encoder, decoder, cross-attention, two layers each"


def test_the_first_a_is_a_matter_of_the_seed_alone():
    base = mini_t5()

    def factors(seed):
        model = attach(base, targets=["q", "v"], seed=seed, **LORA)
        return torch.cat([t.flatten() for n, t in model.named_parameters() if "lora_A" in n])

    torch.manual_seed(7)
    state, one = torch.random.get_rng_state(), factors(1)
    assert torch.equal(torch.random.get_rng_state(), state), "other random choices are not disturbed"
    assert torch.equal(one, factors(1))
    assert not torch.equal(one, factors(2))


def test_weights_changed_by_the_product_are_those_that_peft_merges():
    adapter, base = trained(), mini_t5()
    model = fresh()
    FlatModel(model, names=list(adapter)).layout.check(adapter)
    model.load_state_dict(adapter, strict=False)
    by_adapter = logits(model)
    changes = weight_change(adapter, **LORA)
    merged = model.merge_and_unload().state_dict()
    assert set(changes) == {name for name, tensor in merged.items() if not torch.equal(tensor, base.state_dict()[name])}
    for name, change in changes.items():
        torch.testing.assert_close(base.state_dict()[name] + change, merged[name], atol=1e-7, rtol=1e-6)
    base.load_state_dict({name: base.state_dict()[name] + change for name, change in changes.items()}, strict=False)
    torch.testing.assert_close(logits(base), by_adapter, atol=1e-5, rtol=1e-5)


def test_an_adapter_is_saved_and_loaded_bit_for_bit(tmp_path):
    adapter = trained()
    folder = save_adapter(fresh(), adapter, tmp_path / "adapter")
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    again = load_adapter(str(folder), fresh())
    assert list(again) == list(adapter)
    assert all(torch.equal(again[name], adapter[name]) for name in adapter)
    own = PeftModel.from_pretrained(mini_t5(), folder)  # peft alone reads it too
    other = fresh()
    other.load_state_dict(adapter, strict=False)
    assert torch.equal(logits(own.eval()), logits(other.eval()))
    save_adapter(fresh(), again, tmp_path / "again")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("adapter", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def exotic(folder, base=None, **options):
    """An adapter that peft made and saved, and the weights that peft makes of it."""
    torch.manual_seed(0)
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, **({"r": 4, "lora_alpha": 8, "target_modules": ["q", "v"]} | options)
    )
    model = get_peft_model(base or mini_t5(), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return {name: tensor.detach() for name, tensor in model.merge_and_unload().named_parameters()}


@pytest.mark.parametrize("options", [
    {},
    {"alpha_pattern": {"encoder.block.0.layer.0.SelfAttention.q": 64, "v": 2}},
    {"rank_pattern": {"encoder.block.0.layer.0.SelfAttention.q": 2}},
    {"use_rslora": True},
    {"use_dora": True},
    {"r": 2, "target_modules": ["k", "wi_0", "wo"]},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "eva"},
    {"init_lora_weights": "orthogonal"},
    {"init_lora_weights": "pissa", "use_rslora": True},
    {"modules_to_save": ["lm_head"]},
    {"layers_to_transform": [1], "layers_pattern": "block"},
])  # fmt: skip
def test_any_adapter_changes_the_weights_as_peft_merges_them(tmp_path, options):
    base = mini_t5()
    before = {name: tensor.clone() for name, tensor in base.named_parameters()}
    merged = exotic(tmp_path, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.named_parameters())
    if merged.keys() != before.keys():
        with pytest.raises(ValueError, match="adds or unties"):
            merged_weights(tmp_path, base)
        return
    changes = merged_weights(tmp_path, base)
    assert {name for name in before if not torch.equal(merged[name], before[name])} <= changes.keys()
    for name in before:
        torch.testing.assert_close(changes.get(name, before[name]), merged[name], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.named_parameters()), "the base stays"


def test_a_plain_adapter_is_merged_as_the_formula_says(tmp_path):
    save_adapter(fresh(), trained(), tmp_path)
    base = dict(mini_t5().named_parameters())
    changed = merged_weights(tmp_path, mini_t5())
    formula = weight_change(trained(), **LORA)
    assert changed.keys() == formula.keys()
    for name, change in formula.items():
        torch.testing.assert_close(changed[name], base[name] + change, atol=1e-6, rtol=1e-6)


def test_a_full_fine_tune_is_an_expert_too(tmp_path):
    model = mini_t5()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(tmp_path / "folder")
    expected = {name: tensor.detach() for name, tensor in model.named_parameters()}
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}  # with all tied names
    torch.save({"model": state}, tmp_path / "x.pt")
    for place in (tmp_path / "folder", tmp_path / "x.pt"):
        found = merged_weights(place, mini_t5())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_what_is_no_expert_of_this_model_is_one_sentence(tmp_path):
    def refused(message, base=None):
        with pytest.raises(ValueError, match=message) as error:
            merged_weights(tmp_path, base or mini_t5())
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)

    exotic(tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole, told = load_file(weights), json.loads(config.read_text())
    save_file({name: torch.zeros_like(t) if "lora_B" in name else t for name, t in whole.items()}, weights)
    refused("changes nothing .every B is 0.: was it saved before training")
    save_file({name.replace("encoder", "coder"): tensor for name, tensor in whole.items()}, weights)
    refused("it and the model differ in .*was it made for another model")
    save_file({name: tensor[..., :3].contiguous() for name, tensor in whole.items()}, weights)
    refused("cannot be merged")
    save_file({name: tensor / 0 for name, tensor in whole.items()}, weights)
    refused("cannot be merged: NaNs detected|has another shape, NaN or Inf")
    save_file(whole, weights)
    config.write_text(json.dumps(told | {"base_model_name_or_path": "google/flan-t5-base"}))
    model = mini_t5()
    model.name_or_path = "google/t5-v1_1-base"
    refused("its base_model_name_or_path is 'google/flan-t5-base', the model here is 'google/t5-v1_1-base'", model)
    model.name_or_path = "someone/flan-t5-base"
    assert merged_weights(tmp_path, model)
    for damaged in (b"version https://git-lfs", b"<html>", b"", weights.read_bytes()[:-9]):
        weights.write_bytes(damaged)
        refused(r"adapter_model.safetensors .*(git-lfs|web page|complete)")
    config.write_text("{")
    save_file(whole, weights)
    refused("cannot be merged")


def test_an_adapter_of_another_base_of_the_same_shape_is_refused(tmp_path):
    """What is written here notes its base's weights; of a base that lies on this machine they are compared."""
    ours, other, folder = mini_t5(seed=0), mini_t5(seed=1), tmp_path / "adapter"
    save_adapter(fresh(), trained(), folder)
    assert merged_weights(folder, ours) and load_adapter(str(folder), fresh())
    with pytest.raises(ValueError, match=r"its base_model_name_or_path is .*, the model here .*, with other weights"):
        merged_weights(folder, other)
    with pytest.raises(ValueError, match=r"adapter .* the model here is .*, with other weights"):
        load_adapter(str(folder), attach(other, targets=["q", "v"], **LORA))
    (folder / "base_model.digest").unlink()
    assert merged_weights(folder, other), "nothing is known of the base"
    config = json.loads((folder / "adapter_config.json").read_text())
    for number, base in enumerate((ours, other)):
        base.save_pretrained(tmp_path / f"base{number}")
    for place, fits in (("base0", ours), ("base1", other)):
        told = config | {"base_model_name_or_path": str(tmp_path / place)}
        (folder / "adapter_config.json").write_text(json.dumps(told))
        for model in (ours, other):
            model.name_or_path = str(tmp_path / "moved")  # the names say nothing
            if model is fits:
                assert merged_weights(folder, model)
            else:
                with pytest.raises(ValueError, match="with other weights"):
                    merged_weights(folder, model)
    (tmp_path / "base1" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"base1/model.safetensors is not a complete safetensors file"):
        merged_weights(folder, other)


def test_an_adapter_whose_base_was_split_at_random_is_refused(tmp_path):
    """Read again, peft splits the base in another way, and the merged weights are wrong."""
    exotic(tmp_path, init_lora_weights="pissa_niter_4")
    with pytest.raises(ValueError, match="its init_lora_weights 'pissa_niter_4' split the base at random"):
        merged_weights(tmp_path, mini_t5())


@pytest.mark.parametrize(
    ("field", "value"), [("exclude_modules", "("), ("target_modules", "("), ("peft_type", "x"), ("r", "x"), ("r", None)]
)
def test_odd_fields_of_a_configuration_are_one_sentence(tmp_path, field, value):
    save_adapter(fresh(), trained(), tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: value}))
    for read in (lambda: merged_weights(tmp_path, mini_t5()), lambda: load_adapter(str(tmp_path), fresh())):
        with pytest.raises(ValueError, match=re.escape(str(tmp_path))) as error:
            read()
        assert "\n" not in str(error.value)


def test_an_adapter_that_began_from_another_a_has_no_task_vector_of_its_parameters():
    views = {name: own.detach() for name, own in fresh(seed=0).named_parameters() if own.requires_grad}
    other = {name: own.detach() for name, own in fresh(seed=1).named_parameters() if own.requires_grad}
    check_same_start(trained(), {n: t for n, t in fresh().named_parameters() if t.requires_grad}, "one")
    with pytest.raises(ValueError, match=r"adapter hub/x did not begin .* \(cosine -?0.0\d\).* task_vector='weights'"):
        check_same_start(other, views, "hub/x")


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"init_lora_weights": "corda"}, "preprocess_corda"),
        ({"alora_invocation_tokens": [1]}, "aLoRA does not support"),
        ({"layer_replication": [[0, 2]]}, "Could not locate the layers"),
    ],
)
def test_what_peft_cannot_merge_is_refused_in_its_words(tmp_path, option, why):
    save_adapter(fresh(), trained(), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | option))
    with pytest.raises(ValueError, match=f"expert {tmp_path} cannot be merged: .*{why}") as error:
        merged_weights(tmp_path, mini_t5())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "option",
    [{"use_rslora": True}, {"init_lora_weights": "pissa_niter_4"}, {"alpha_pattern": {"q": 64}}, {"use_dora": True}],
)
def test_the_parameters_of_no_plain_adapter_cannot_be_merged(tmp_path, option):
    save_adapter(fresh(), trained(), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | option))
    with pytest.raises(ValueError, match=f"is no plain LoRA adapter .{next(iter(option))} is .*task_vector='weights'"):
        load_adapter(str(tmp_path), fresh())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 8}, r"has r 4, not 8; set lora_rank=4"),
        ({"alpha": 4}, r"has lora_alpha 8, not 4; set lora_alpha=8"),
        ({"targets": ["q"]}, r"has target_modules .*; set lora_targets='q v'"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(tmp_path, options, message):
    save_adapter(fresh(), trained(), tmp_path)
    with pytest.raises(ValueError, match=message):
        load_adapter(str(tmp_path), attach(mini_t5(), **({"targets": ["q", "v"]} | LORA | options)))


def test_wrong_names_are_named():
    with pytest.raises(ValueError, match=r"no linear layer is called 'query'; there are k, lm_head, o, q"):
        attach(mini_t5(), targets=["query"], **LORA)
    with pytest.raises(ValueError, match=r"'shared\.weight' is no LoRA factor"):
        adapted({"shared.weight": torch.ones(2, 2)})
    name = next(iter(trained()))
    with pytest.raises(ValueError, match="only one of A and B for 'encoder"):
        adapted({name: torch.ones(4, 16)})


def test_where_a_model_lies_is_in_no_key(tmp_path):
    """A checkout that was moved, or a model downloaded to another folder, has the same experts."""
    found = []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        mini_t5().save_pretrained(tmp_path / place)
        model = T5ForConditionalGeneration.from_pretrained(tmp_path / place)
        torch.manual_seed(0)
        found += [content(model), content(attach(model, targets=["q", "v"], **LORA))]
    assert found[0] == found[2] and found[1] == found[3]
    assert str(tmp_path) not in json.dumps(found)
