"""Merging files of any architecture: the methods' numbers, every form of input, killed runs, clear refusals."""

import hashlib
import json
import shutil
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lib.fusion import METHODS, task_arithmetic
from lib.language.t5 import load_t5
from lib.runtime.disk import ROOT
from lib.study import merge_files as module
from lib.study.card import hash_of
from lib.study.command import main
from lib.study.merge_files import WHOLE, merge_files
from lib.vectors.layout import Layout
from lib.vectors.task_vectors import task_vectors

SHAPES = {"block.a.weight": (7, 40), "block.a.bias": (7,), "block.b": (3, 5, 11), "head_scale": ()}
FREE = [name for name, method in METHODS.items() if not method.needs_data]


def state(seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {name: size * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def files(folder, tasks=3, dtype=torch.float32):
    """A base and its experts, as files and as they are."""
    base = state(0)
    states = [{name: (base[name] + own).to(dtype) for name, own in state(t + 1, 0.01).items()} for t in range(tasks)]
    save_file(base | {"steps": torch.tensor(7)}, folder / "base.safetensors")
    base = {name: base[name] for name in load_file(folder / "base.safetensors") if name in base}  # as the file has them
    places = {f"task{number}": folder / f"task{number}.safetensors" for number in range(tasks)}
    for place, own in zip(places.values(), states, strict=True):
        save_file(own, place)
    return folder / "base.safetensors", places, base, states


@pytest.mark.parametrize("method", FREE)
def test_layer_by_layer_is_the_method_on_all_layers(tmp_path, method):
    base, experts, start, states = files(tmp_path)
    layout = Layout.of(start)
    theta0 = layout.flatten(start)
    wanted = METHODS[method].merge(theta0, task_vectors(theta0, states, layout), layout)
    out = merge_files(base, experts, tmp_path / "out", method=method)
    merged = load_file(out / "base.safetensors")
    assert merged.pop("steps") == 7
    torch.testing.assert_close(layout.flatten({n: merged[n] for n in layout.names}), wanted, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(merged[name], start[name]) for name in layout.names)


def test_the_methods_that_need_all_layers_are_known(tmp_path, monkeypatch):
    base, experts, start, states = files(tmp_path)
    layout = Layout.of(start)
    theta0 = layout.flatten(start)
    monkeypatch.setattr(module, "WHOLE", ())
    for method in WHOLE:
        whole = METHODS[method].merge(theta0, task_vectors(theta0, states, layout), layout)
        apart = merge_files(base, experts, tmp_path / method, method=method)
        assert (
            layout.flatten(load_file(apart / "base.safetensors") | {"steps": theta0[:0].int()}) - whole
        ).abs().max() > 1e-4


def test_the_command_line_merges_and_says_what_it_did(tmp_path, capsys):
    *_, start, states = files(tmp_path)
    given = ["merge", "--base", str(tmp_path / "base.safetensors"), "--experts", str(tmp_path / "task*.safetensors")]
    assert main([*given, "--method", "task-arithmetic", "--scaling-factor", "0.5", "--out", str(tmp_path / "out")]) == 0
    layout = Layout.of(start)
    theta0 = layout.flatten(start)
    wanted = task_arithmetic(theta0, task_vectors(theta0, states, layout), layout, scaling_factor=0.5)
    merged = load_file(tmp_path / "out" / "base.safetensors")
    torch.testing.assert_close(layout.flatten(merged), wanted, rtol=1e-6, atol=1e-7)
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("Task Arithmetic", "task1", "sha256", "| scaling_factor | 0.5 |", "python -m lib merge --base"):
        assert part in card
    assert main([*given, "--out", str(tmp_path / "auto")]) == 0
    assert "method tsv-m: nothing is given but the experts" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["same", "fp32", "bf16"])
def test_layers_are_rounded_as_is_said(tmp_path, capsys, dtype):
    base, experts, start, states = files(tmp_path, dtype=torch.bfloat16)
    merge_files(base, experts, tmp_path / "one", method="weight_averaging", dtype=dtype)
    assert (
        "expert 'task2' is stored as bfloat16, the base is not: its rounding (a relative 0.004)"
        in capsys.readouterr().out
    )
    merged = load_file(tmp_path / "one" / "base.safetensors")
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    assert {merged[name].dtype for name in SHAPES} == {kind}
    mean = torch.stack([own["block.b"].double() for own in states]).mean(0)
    torch.testing.assert_close(merged["block.b"].double(), mean, rtol=8e-3 if dtype == "bf16" else 1e-5, atol=1e-6)
    save_file({name: own.bfloat16() for name, own in start.items()}, base)
    out = merge_files(base, experts, tmp_path / "two", method="weight_averaging", dtype=dtype)
    expected = torch.float32 if dtype == "fp32" else torch.bfloat16
    assert {own.dtype for own in load_file(out / "base.safetensors").values()} == {expected}


def test_numbers_that_the_type_cannot_hold_are_refused(tmp_path):
    for name, value in (("base", 6e4), ("one", 6.4e4)):
        save_file({"a": torch.full((3,), value).half()}, tmp_path / f"{name}.safetensors")
    given = tmp_path / "base.safetensors", {"one": tmp_path / "one.safetensors"}, tmp_path / "out"
    with pytest.raises(ValueError, match=r"layer 'a' has numbers that torch.float16 cannot hold: use dtype fp32"):
        merge_files(*given, method="task_arithmetic", scaling_factor=2.0)
    assert not (tmp_path / "out").exists()
    merge_files(*given, method="task_arithmetic", scaling_factor=2.0, dtype="fp32")


def test_shards_wrappers_tied_layers_and_parts_that_no_expert_has(tmp_path, capsys):
    base = {"shared.weight": torch.ones(4, 2), "a.weight": torch.zeros(3), "a.position_ids": torch.arange(3.0).half()}
    base["text.weight"] = torch.full((2,), 5.0)
    expert = {name: tensor + 1 for name, tensor in base.items() if name != "text.weight"}
    (tmp_path / "base").mkdir()
    for number, name in enumerate(base):
        save_file({name: base[name]}, tmp_path / "base" / f"{number}.safetensors")
    index = {name: f"{number}.safetensors" for number, name in enumerate(base)}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "base" / "config.json").write_text("{}")
    wrapped = {f"module.{name}": tensor for name, tensor in expert.items()}
    wrapped["module.lm_head.weight"] = expert["shared.weight"]
    torch.save({"epoch": 1, "state_dict": wrapped}, tmp_path / "e.pt")
    out = merge_files(tmp_path / "base", {"e": tmp_path / "e.pt"}, tmp_path / "out", method="weight_averaging")
    assert "no expert has text: copied from the base" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    merged = load_file(out / "model.safetensors")
    wanted = {**base, "shared.weight": expert["shared.weight"], "a.weight": expert["a.weight"]}
    assert merged.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in merged.items())


@pytest.mark.parametrize("method", FREE)
def test_a_layer_without_elements_is_copied(tmp_path, method):
    for number, name in enumerate(("base", "a", "b")):
        save_file({"a": torch.full((3,), 1.0 + number), "empty": torch.zeros(0, 4)}, tmp_path / f"{name}.safetensors")
    experts = {name: tmp_path / f"{name}.safetensors" for name in "ab"}
    out = merge_files(tmp_path / "base.safetensors", experts, tmp_path / "out", method=method)
    assert load_file(out / "base.safetensors")["empty"].shape == (0, 4)


def test_a_state_dict_of_torch_comes_out_as_one(tmp_path):
    torch.save(state(0), tmp_path / "base.pth")
    torch.save(state(1), tmp_path / "one.pth")
    out = merge_files(tmp_path / "base.pth", {"one": tmp_path / "one.pth"}, tmp_path / "out", method="weight_averaging")
    found = torch.load(out / "model.pth", weights_only=True)
    assert all(torch.allclose(found[name], own, atol=1e-6) for name, own in state(1).items())


def test_a_killed_merge_goes_on_behind_its_finished_shards(tmp_path, monkeypatch):
    base, experts, *_ = files(tmp_path)
    whole = load_file(merge_files(base, experts, tmp_path / "whole") / "base.safetensors")
    monkeypatch.setattr(module, "SHARD", 1000)
    saved, write = [], module.save_file

    def stop(tensors, path, **options):
        if len(saved) == 1:
            raise KeyboardInterrupt
        saved.append(list(tensors))
        write(tensors, path, **options)

    monkeypatch.setattr(module, "save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        merge_files(base, experts, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    again = []
    monkeypatch.setattr(
        module, "save_file", lambda tensors, *a, **o: again.append(list(tensors)) or write(tensors, *a, **o)
    )
    out = merge_files(base, experts, tmp_path / "out")
    assert again and saved[0] not in again
    index = json.loads((out / "base.safetensors.index.json").read_text())["weight_map"]
    found = {name: load_file(out / file)[name] for name, file in index.items()}
    assert found.keys() == whole.keys() and all(torch.equal(found[name], own) for name, own in whole.items())
    assert not list(tmp_path.glob(".*part"))


def test_what_was_begun_otherwise_is_not_continued(tmp_path, monkeypatch):
    base, experts, *_ = files(tmp_path)
    part = tmp_path / ".out.part"
    part.mkdir()
    (part / "plan.json").write_text("{}")
    save_file({"x": torch.ones(1)}, part / "base.safetensors")
    assert "x" not in load_file(merge_files(base, experts, tmp_path / "out") / "base.safetensors")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("copy of the base", "expert 'copy' is a copy of the base: was the fine-tuned one saved"),
        ("too large", r"torch.float32 cannot hold: take a smaller scaling factor"),
        ("in a file", "nothing can be written to .*base.safetensors: name another folder"),
        ("base among them", "leave the base out of the experts"),
        ("method", "method 'featcal' cannot merge files alone; these can: weight_averaging"),
        ("nan factor", "scaling_factor is nan, expected a finite number"),
        ("nan", r"task1.safetensors: layer 'block.b' holds NaN or Inf"),
        ("full", "is there already and not empty"),
        ("integers", "no floating-point entry"),
        ("memory", "merging needs .* of memory and .* are free: take a method that works layer by layer"),
        ("missing", "'block.a.bias' is missing"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(tmp_path, monkeypatch, broken, message):
    base, experts, _, states = files(tmp_path)
    out, options = tmp_path / "out", {}
    if broken == "base among them":
        experts["base"] = base
    elif broken == "copy of the base":
        experts["copy"] = shutil.copyfile(base, tmp_path / "copy.safetensors")
    elif broken == "too large":
        options = {"method": "task_arithmetic", "scaling_factor": 1e39}
    elif broken == "in a file":
        out = base / "out"
    elif broken == "method":
        options = {"method": "featcal"}
    elif broken == "nan factor":
        options = {"method": "task_arithmetic", "scaling_factor": float("nan")}
    elif broken == "nan":
        save_file(states[1] | {"block.b": torch.full((3, 5, 11), torch.nan)}, experts["task1"])
    elif broken == "full":
        out = tmp_path
    elif broken == "integers":
        save_file({"steps": torch.tensor(7)}, base)
    elif broken == "memory":
        options = {"method": "ties_merging"}
        monkeypatch.setattr(module, "free_memory", lambda: 1000)
    elif broken == "missing":
        save_file({name: own for name, own in states[1].items() if name != "block.a.bias"}, experts["task1"])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        merge_files(base, experts, out, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_the_hash_of_shards_is_that_of_their_numbers(tmp_path):
    """An index is the same for all models of one shape."""
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        parts = [f"model-{part}-of-2.safetensors" for part in (1, 2)]
        for part, file in enumerate(parts):
            save_file({f"w{part}": torch.full((2,), float(number))}, tmp_path / str(number) / file)
        index = json.dumps({"weight_map": {"w0": parts[0], "w1": parts[1]}})
        (tmp_path / str(number) / "model.safetensors.index.json").write_text(index)
    both = b"".join((tmp_path / "0" / file).read_bytes() for file in parts)
    assert hash_of(tmp_path / "0") == hashlib.sha256(both).hexdigest() != hash_of(tmp_path / "1")


def test_classifiers_of_other_sizes_are_copied_and_running_statistics_averaged(tmp_path, capsys):
    base = {"bn.weight": torch.ones(2), "bn.running_var": torch.ones(2), "fc.weight": torch.rand(5, 2)}
    torch.save(base, tmp_path / "base.pth")
    for number in range(4):
        own = {"bn.weight": torch.full((2,), 1.01), "bn.running_var": torch.full((2,), 0.1 + 0.1 * number)}
        torch.save(own | {"fc.weight": torch.rand(3 + number, 2)}, tmp_path / f"{number}.pth")
    experts = {str(number): tmp_path / f"{number}.pth" for number in range(4)}
    for method in ("task_arithmetic", "ties_merging"):
        out = merge_files(tmp_path / "base.pth", experts, tmp_path / method, method=method, scaling_factor=1.0)
        merged = load_file(out / "model.safetensors")
        assert torch.equal(merged["fc.weight"], base["fc.weight"])
        torch.testing.assert_close(merged["bn.running_var"], torch.full((2,), 0.25))
        assert "running statistics are the experts' mean" in (out / "README.md").read_text()
    assert "not all experts have fc.weight of the base's shape: copied from the base" in capsys.readouterr().out


def test_what_a_kill_left_is_no_part_of_the_model(tmp_path, monkeypatch):
    base, experts, *_ = files(tmp_path)
    torch.save(load_file(base), tmp_path / "base.pt")
    write = module.save_file

    def stop(tensors, path, **options):
        (path.parent / ".base.safetensors.abc").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        merge_files(tmp_path / "base.pt", experts, tmp_path / "out")
    monkeypatch.setattr(module, "save_file", write)
    out = merge_files(tmp_path / "base.pt", experts, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.pth", "model.safetensors"]


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, capsys):
    base, *_ = files(tmp_path)

    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(module, "save_file", full)
    given = ["merge", "--base", str(base), "--experts", str(tmp_path / "task*"), "--out", str(tmp_path / "out")]
    assert main(given) == 1
    assert "Nothing merged: " in (told := capsys.readouterr().err) and "No space left on device" in told


def test_an_expert_of_another_base_and_a_template_of_chats(tmp_path, capsys):
    (tmp_path / "base").mkdir()
    save_file({"a": torch.ones(9)}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    save_file({"a": -torch.ones(9)}, tmp_path / "x.safetensors")
    out = merge_files(tmp_path / "base", {"x": tmp_path / "x.safetensors"}, tmp_path / "out")
    said = "expert 'x': 'a' differs from the base's by 200% of its length: was it fine-tuned from this base?"
    assert said in capsys.readouterr().out and said in (out / "README.md").read_text()
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"


FRESH = """
import sys, torch
from peft import PeftModel
from transformers import T5ForConditionalGeneration
base, folder, prompts = sys.argv[1:4]
adapter = sys.argv[4] == "adapter"
model = T5ForConditionalGeneration.from_pretrained(base if adapter else folder, dtype=torch.float32)
model = (PeftModel.from_pretrained(model, folder) if adapter else model).eval()
ids = torch.load(prompts)
torch.save(model(input_ids=ids, labels=ids[:, :4].contiguous()).logits.detach(), prompts)
"""


@pytest.mark.parametrize(
    ("method", "form"), [("task_arithmetic", "adapter"), ("tsv_m", "adapter"), ("ties_merging", "whole")]
)
def test_adapters_of_peft_come_out_as_one_where_the_change_has_low_rank(tmp_path, method, form):
    base, experts, changes = ROOT / "data" / "tiny_t5", {}, []
    model = load_t5().model
    for name, rank in (("a", 2), ("b", 4), ("c", 4)):
        torch.manual_seed(len(experts))
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["q", "v"], init_lora_weights=False)
        adapted = get_peft_model(deepcopy(model), config)
        adapted.save_pretrained(tmp_path / name)
        experts[name] = tmp_path / name
        changes.append(dict(adapted.merge_and_unload().named_parameters()))
    start = dict(model.named_parameters())
    layout = Layout.of(start)
    theta0 = layout.flatten(start)
    theta = METHODS[method].merge(theta0, task_vectors(theta0, changes, layout), layout)
    out = merge_files(base, experts, tmp_path / "out", method=method, dtype="fp32")
    assert (out / "adapter_config.json").is_file() == (form == "adapter")
    prompts = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.save(prompts, tmp_path / "ids.pt")
    call = [sys.executable, "-c", FRESH, str(base), str(out), str(tmp_path / "ids.pt"), form]
    run = subprocess.run(call, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    merged = deepcopy(model)
    merged.load_state_dict(layout.views(theta), strict=False)
    wanted = merged.eval()(input_ids=prompts, labels=prompts[:, :4].contiguous()).logits
    torch.testing.assert_close(
        torch.load(tmp_path / "ids.pt"), wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item()
    )
