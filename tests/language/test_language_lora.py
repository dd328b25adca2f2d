"""LoRA adapters: the same as peft's own merging, saved and loaded bit for bit, errors that name the mend."""

import json

import pytest
import torch
from mini_t5 import mini_t5
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from lib.language.lora import adapted, attach, check_same_start, load_adapter, save_adapter, weight_change
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


def test_a_layer_with_an_alpha_of_its_own_changes_as_much_as_peft_says(tmp_path):
    pattern = {"encoder.block.0.layer.0.SelfAttention.q": 64, "v": 2}
    config = LoraConfig(task_type=TaskType.SEQ_2_SEQ_LM, r=4, lora_alpha=8, target_modules=["q", "v"])
    config.alpha_pattern = pattern
    model = get_peft_model(mini_t5(), config)
    model.load_state_dict(trained(), strict=False)
    model.save_pretrained(tmp_path)
    base, merged = mini_t5().state_dict(), model.merge_and_unload().state_dict()
    adapter = load_adapter(str(tmp_path), fresh())
    for name, change in weight_change(adapter, **LORA).items():
        torch.testing.assert_close(base[name] + change, merged[name], atol=1e-6, rtol=1e-5)
    other = fresh()
    other.load_state_dict(adapter, strict=False)
    again = PeftModel.from_pretrained(mini_t5(), tmp_path)
    torch.testing.assert_close(logits(other.eval()), logits(again.eval()), atol=1e-5, rtol=1e-5)


def test_an_adapter_that_began_from_another_a_has_no_task_vector_of_its_parameters():
    views = {name: own.detach() for name, own in fresh(seed=0).named_parameters() if own.requires_grad}
    other = {name: own.detach() for name, own in fresh(seed=1).named_parameters() if own.requires_grad}
    check_same_start(trained(), {n: t for n, t in fresh().named_parameters() if t.requires_grad}, "one")
    with pytest.raises(ValueError, match=r"adapter hub/x did not begin .* \(cosine -?0.0\d\).* task_vector='weights'"):
        check_same_start(other, views, "hub/x")


@pytest.mark.parametrize("option", [{"use_rslora": True}, {"init_lora_weights": "pissa_niter_4"}])
def test_an_adapter_that_is_no_plain_one_is_refused(tmp_path, option):
    save_adapter(fresh(), trained(), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | option))
    with pytest.raises(ValueError, match="is no plain LoRA adapter"):
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
