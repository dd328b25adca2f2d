"""One reader of weights: any container, wrapper and prefix gives the same tensors, or one sentence."""

import json
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lib.files.weights import fit, read_weights, say

START = {
    "shared.weight": torch.arange(12.0).view(6, 2),
    "block.0.fc.weight": torch.ones(2, 2),
    "block.0.norm.weight": torch.ones(2),
    "block.1.norm.weight": torch.ones(2),
}
EXPERT = {name: tensor + 0.1 for name, tensor in START.items()}


def same(found, expected=EXPERT):
    assert set(found) == set(expected)
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def written(path, state):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("wrap", [
    lambda s: s,
    lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
    lambda s: {"model": s, "model_ema": {name: t + 1 for name, t in s.items()}},
    lambda s: {"state_dict": {f"module.{name}": t for name, t in s.items()}},
    lambda s: {"model_state_dict": {f"_orig_mod.module.{name}": t for name, t in s.items()}, "best": torch.tensor(0.5)},
    lambda s: {f"model.{name}": t for name, t in s.items()} | {"loss.weight": torch.ones(3)},
    lambda s: {"state_dict_ema": s},
])  # fmt: skip
def test_wrappers_and_prefixes_are_left_off(tmp_path, wrap):
    assert same(fit(read_weights(written(tmp_path / "x.pt", wrap(EXPERT))), START))


def test_what_was_left_off_is_said_once(tmp_path, capsys):
    say.cache_clear()
    state = {f"module.{name}": tensor for name, tensor in EXPERT.items()} | {"module.head.weight": torch.ones(3, 2)}
    for _ in range(2):
        fit(read_weights(written(tmp_path / "x.pt", {"state_dict": state})), START)
    assert capsys.readouterr().out == "x.pt: 'state_dict.module.' left off the names; not merged: head.weight\n"


def test_two_models_in_one_file_are_refused(tmp_path):
    path = written(tmp_path / "x.pt", {"one": EXPERT, "two": EXPERT})
    with pytest.raises(ValueError, match=r"x.pt: it holds 2 models \(one., two.\): save the one that is meant"):
        fit(read_weights(path), START)


def test_shards_are_read_through_their_index(tmp_path):
    names = list(EXPERT)
    for part, some in (("a", names[:2]), ("b", names[2:])):
        written(tmp_path / f"model-{part}.safetensors", {name: EXPERT[name] for name in some})
    written(tmp_path / "model-old.safetensors", {name: EXPERT[name] + 1 for name in names})  # of an older export
    where = {name: f"model-{'a' if name in names[:2] else 'b'}.safetensors" for name in names}
    index = tmp_path / "model.safetensors.index.json"
    with pytest.raises(ValueError, match=r"expected one file with weights.*found: model-a.safetensors, model-b"):
        read_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": where}))
    assert same(fit(read_weights(tmp_path), START))
    (tmp_path / "model-b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no file .*model-b.safetensors: check the path"):
        read_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": where | dict.fromkeys(names[2:], "model-a.safetensors")}))
    with pytest.raises(ValueError, match=r"index.json names 'block.0.norm.weight', which model-a.safetensors lacks"):
        read_weights(tmp_path)
    index.write_text("[]")
    with pytest.raises(ValueError, match="is no index of weights"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of git-lfs: run `git lfs pull`"),
        (b"<!DOCTYPE html><html>404", "a web page and no weights: download it again"),
        (b"", r"(it is empty|cannot be read as a file of torch)"),
        (b"\x10\0\0\0\0\0\0\0{", "is not a complete safetensors file"),
        (b"PK\x03\x04 and no more", "cannot be read as a file of torch|is not a complete safetensors file"),
        (b"\x80\x02.", "cannot be read as a file of torch|is not a complete safetensors file"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_files_are_one_sentence_that_names_them(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_weights(tmp_path)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_a_file_is_what_its_bytes_say(tmp_path):
    save_file(EXPERT, tmp_path / "y.bin")
    assert same(read_weights(tmp_path / "y.bin"))
    torch.save(EXPERT, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x.safetensors is not a complete safetensors file"):
        read_weights(tmp_path / "x.safetensors")


def test_where_nothing_lies_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*gone: check the path"):
        read_weights(tmp_path / "gone")
    torch.save({}, tmp_path / "training_args.bin")
    with pytest.raises(ValueError, match=r"expected one file with weights, such as model.safetensors \(found: none\)"):
        read_weights(tmp_path)
    save_file(EXPERT, tmp_path / "mine.safetensors")
    assert same(read_weights(tmp_path))


def test_tied_layers_may_be_there_once_or_several_times(tmp_path):
    tied = {
        "encoder.embed_tokens.weight": EXPERT["shared.weight"].clone(),
        "lm_head.weight": EXPERT["shared.weight"].clone(),
    }
    assert same(fit(read_weights(written(tmp_path / "x.safetensors", EXPERT | tied)), START))
    start = START | {"lm_head.weight": START["shared.weight"].clone()}
    found = fit(read_weights(written(tmp_path / "x.safetensors", EXPERT)), start)
    assert torch.equal(found["lm_head.weight"], EXPERT["shared.weight"])
    untied = START | {"lm_head.weight": START["shared.weight"] + 1}  # base has two, expert one: which is unknown
    with pytest.raises(ValueError, match=r"layer 'lm_head.weight' is missing"):
        fit(read_weights(tmp_path / "x.safetensors"), untied)
    tied["lm_head.weight"] += 1
    with pytest.raises(ValueError, match=r"layer 'lm_head.weight' is not part .*\('lm_head.weight' is no copy of"):
        fit(read_weights(written(tmp_path / "x.safetensors", EXPERT | tied)), START)


def test_all_that_does_not_fit_is_listed(tmp_path):
    start = {f"{n}.weight": torch.ones(2) for n in range(30)}
    state = {f"{n}.weight": torch.ones(2 + n // 19) for n in range(12, 30)} | {"more.weight": torch.ones(1)}
    with pytest.raises(ValueError) as error:
        fit(read_weights(written(tmp_path / "x.safetensors", state)), start)
    text = str(error.value)
    assert "layers '0.weight', '1.weight'" in text and "and 2 more are missing" in text
    assert "layer 'more.weight' is not part of the pre-trained model" in text
    assert "layer '19.weight' has shape [3], expected [2]" in text and "and 1 more (was it made for" in text
    assert "10.weight" not in text


@pytest.mark.parametrize("name", ["embeddings.position_ids", "rotary.inv_freq"])
def test_buffers_that_are_no_parameters_are_ignored(tmp_path, name):
    state = EXPERT | {name: torch.arange(3.0).half(), "bn.num_batches_tracked": torch.tensor(1)}
    assert same(fit(read_weights(written(tmp_path / "x.safetensors", state)), START))


WRAPPERS = ["state_dict", "model", "model_state_dict", "state_dict_ema", "net"]
PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "visual."]
EXTRA = {
    "head.weight": torch.ones(3, 2), "classifier.bias": torch.ones(3), "embeddings.position_ids": torch.ones(4),
    "steps": torch.tensor(3), "lm_head.weight": EXPERT["shared.weight"].clone(),
}  # fmt: skip
WRONG = {
    "lm_head.weight": EXPERT["shared.weight"] + 1, "adapter.down.weight": torch.ones(2),
    "shared.weight": torch.ones(5, 2),
    "block.1.norm.weight": torch.ones(2, dtype=torch.int8), "block.0.norm.weight": None,
}  # fmt: skip


@settings(
    max_examples=int(os.environ.get("FUZZ", "60")), deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(data=st.data())
def test_any_file_gives_the_right_tensors_or_one_sentence(tmp_path, data):
    """FUZZ=2000 for the long run."""
    draw = data.draw
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    state = {name: tensor.to(dtype) for name, tensor in EXPERT.items()}
    state |= {
        name: EXTRA[name].to(dtype) if name != "steps" else EXTRA[name]
        for name in draw(st.sets(st.sampled_from(sorted(EXTRA))))
    }
    wrong = draw(st.sets(st.sampled_from(sorted(WRONG)), max_size=2)) if draw(st.booleans()) else set()
    state |= {name: WRONG[name] for name in wrong}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    prefix = "".join(draw(st.lists(st.sampled_from(PREFIXES), max_size=3)))
    state = {prefix + name: tensor.clone() for name, tensor in state.items()}
    kind = draw(st.sampled_from(["x.safetensors", "x.pt", "x.bin"]))
    inside = state
    if kind != "x.safetensors":
        for word in draw(st.lists(st.sampled_from(WRAPPERS), max_size=2)):
            inside = {word: inside, "epoch": 3, "rate": torch.tensor(0.1)}
    path = written(tmp_path / kind, inside)
    damaged = draw(st.sampled_from([0, 0, 0, 0, 0, 1]))
    if damaged:
        content = path.read_bytes()
        path.write_bytes(content[: draw(st.integers(0, len(content) - 1))])
    try:
        found = fit(read_weights(path), START)
        tensors = {name: found[name] for name in found}
    except ValueError as error:
        assert wrong or damaged, error
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        assert not wrong, "it was refused"
        assert same(tensors, {name: tensor.to(dtype) for name, tensor in EXPERT.items()})
