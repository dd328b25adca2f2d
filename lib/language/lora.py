"""LoRA adapters through peft, and the two ways to make a task vector of one.

An adapter of a layer with weights W adds B A times alpha / rank to them (Hu et al., https://arxiv.org/abs/2106.09685).
All experts start from the same A, drawn from a named seed, and from B = 0. What is merged is either

- the adapted weights (the authors' scripts merge each adapter into W and subtract W): tau = alpha / rank * B A, or
- the adapters' own parameters: tau = (A - A_0, B). Cheaper to store and to mask, but merging A and B apart is another
  thing than merging their products: (sum B)(sum A) holds every B_s A_t, also of different tasks.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from peft.utils import get_peft_model_state_dict, load_peft_weights
from torch import Tensor, nn

from lib.files.weights import fit, read_weights
from lib.runtime.keys import digest
from lib.runtime.rng import seed_of

NO_MATTER = {"lora_dropout", "inference_mode", "base_model_name_or_path", "revision", "peft_version", "auto_mapping"}
SAME_START = 0.1  # least cosine of two A that may have been trained from one: independent ones have about 0.01
PREFIX, NAME = "base_model.model.", "default"  # what peft puts around the names of layers, and the adapter's name
BASE = "base_model.digest"  # beside an adapter that was written here: a hash of the weights that it was trained on


def sharing_copy(model: nn.Module, own: Collection[str] = ()) -> nn.Module:
    """A copy of a model that shares its parameters but for some: a large frozen model is in memory once.

    Args:
        model: what is copied.
        own: names of the parameters that the copy has for itself.
    """
    shared = {id(parameter): parameter for name, parameter in model.named_parameters() if name not in own}
    return deepcopy(model, shared)  # deepcopy takes what it finds there for already copied


def attach(
    model: nn.Module, *, rank: int, alpha: int, targets: Sequence[str], dropout: float = 0.0, seed: int = 0
) -> PeftModel:
    """A copy of a model with a fresh adapter on some of its linear layers; only the adapter can be trained.

    Args:
        model: the pre-trained model; left unchanged, but its parameters are frozen and shared with the copy.
        rank: r.
        alpha: B A is scaled by alpha / r.
        targets: the layers, by the last part of their name.
        dropout: in front of A while training.
        seed: names the initial A, the same for every task.

    Raises:
        ValueError: if no layer has one of these names.
    """
    present = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    if missing := [target for target in targets if target not in present]:
        raise ValueError(f"no linear layer is called '{missing[0]}'; there are {', '.join(sorted(present))}")
    config = LoraConfig(
        task_type=TaskType.SEQ_2_SEQ_LM, r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=dropout
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft's way to ask
        torch.manual_seed(seed_of("lora", seed))
        return get_peft_model(sharing_copy(model), config)


def adapted(adapter: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors of every adapted layer: name of its weights in the model without adapters -> A [r, in], B [out, r].

    Args:
        adapter: peft's names -> tensors, as a model or a file has them.

    Raises:
        ValueError: if a factor is missing, or a name is not that of a LoRA factor.
    """
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.items():
        layer, found, factor = name.removeprefix(PREFIX).removesuffix(".weight").partition(".lora_")
        factor = factor.removesuffix(f".{NAME}")
        if not found or factor not in ("A", "B"):
            raise ValueError(f"'{name}' is no LoRA factor: expected names such as {PREFIX}<layer>.lora_A.weight")
        factors.setdefault(f"{layer}.weight", {})[factor] = tensor
    if incomplete := [layer for layer, pair in factors.items() if len(pair) < 2]:
        raise ValueError(f"the adapter has only one of A and B for '{incomplete[0]}'; save both")
    return {layer: (pair["A"], pair["B"]) for layer, pair in factors.items()}


def weight_change(adapter: Mapping[str, Tensor], *, rank: int, alpha: int) -> dict[str, Tensor]:
    """What an adapter adds to the weights: name of the weights -> alpha / rank * B A [out, in]."""
    return {layer: alpha / rank * (b.float() @ a.float()) for layer, (a, b) in adapted(adapter).items()}


def save_adapter(model: PeftModel, adapter: Mapping[str, Tensor], folder: Path) -> Path:
    """Write an adapter as peft writes it, `adapter_config.json` and `adapter_model.safetensors`, and note its base.

    `adapter` has the parameter names of the model that it belongs to.
    """
    model.save_pretrained(folder, state_dict=dict(adapter))
    (folder / BASE).write_text(digest(*_base(model).values()))
    return folder


def _base(model: nn.Module) -> dict[str, Tensor]:
    """The frozen weights of a model with or without adapter, by their names in the one without."""
    own = ((name, tensor) for name, tensor in model.named_parameters() if ".lora_" not in name)
    return {name.removeprefix(PREFIX).replace(".base_layer.", "."): tensor for name, tensor in own}


def merged_weights(source: Path | str, model: nn.Module) -> dict[str, Tensor]:
    """The weights that an expert changes in the pre-trained model: a full fine-tune, or an adapter of any kind.

    Adapters are merged by peft itself, which knows what each field of their configuration means. `source` is a folder
    of peft, a file or folder with weights, or an adapter's name on the hub; the model stays as it is.

    Raises:
        ValueError: if it cannot be read or merged, belongs to another model, or changes nothing.
    """
    start = dict(model.named_parameters())
    try:
        if isinstance(source, Path) and not (source / "adapter_config.json").is_file():
            fitted = fit(read_weights(source), start)
            state = {name: fitted[name].to(start[name]) for name in start}
        else:
            state = _merged_by_peft(str(source), model)
    except Exception as error:  # whatever odd fields lead to in peft: `re.error`, say
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"expert {source} cannot be merged: {reason}") from None
    if state.keys() != start.keys():
        odd = sorted(state.keys() ^ start.keys())[0]
        raise ValueError(f"expert {source} adds or unties '{odd}' (modules_to_save?), which the model has not")
    if unfit := [name for name in start if state[name].shape != start[name].shape or not state[name].isfinite().all()]:
        raise ValueError(f"expert {source}: '{unfit[0]}' has another shape, NaN or Inf: was it made for another model?")
    changed = {name: own.cpu() for name, own in state.items() if not torch.equal(own.to(start[name]), start[name])}
    if not changed:
        raise ValueError(f"expert {source} changes nothing (every B is 0): was it saved before training?")
    return changed


def _merged_by_peft(source: str, model: nn.Module) -> dict[str, Tensor]:
    config, tensors = read_adapter(source, model)
    if "niter" in (start := str(getattr(config, "init_lora_weights", ""))):
        raise ValueError(f"its init_lora_weights '{start}' split the base at random: let peft convert it to plain LoRA")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.random.fork_rng(devices=[]):  # peft draws an adapter before it reads one
            whole = PeftModel.from_pretrained(deepcopy(model), source)
        if odd := sorted(get_peft_model_state_dict(whole).keys() ^ tensors.keys()):
            raise ValueError(f"it and the model differ in '{odd[0]}'; was it made for another model?")
        merged = whole.merge_and_unload(safe_merge=True)
    return {name: tensor.detach() for name, tensor in merged.named_parameters()}


def read_adapter(source: str, model: nn.Module) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Configuration and tensors of an adapter, which must be one of the model.

    Raises:
        ValueError: if it was made for a model of other weights or another name, or its file is damaged.
    """
    if Path(source).is_dir():
        files = [path for path in sorted(Path(source).iterdir()) if path.stem == "adapter_model"]
        read_weights(files[0] if files else Path(source) / "adapter_model.safetensors")  # damaged ones are named here
    config = PeftConfig.from_pretrained(source)
    theirs, ours = str(config.base_model_name_or_path or ""), str(getattr(model, "name_or_path", "") or "")
    if not _same_base(Path(source) / BASE, theirs, ours, model):
        raise ValueError(f"its base_model_name_or_path is '{theirs}', the model here is '{ours}', with other weights")
    return config, load_peft_weights(source, device="cpu")


def _same_base(noted: Path, theirs: str, ours: str, model: nn.Module) -> bool:
    """Whether an adapter's base is the model here: by the weights where they are known, else by the name."""
    if noted.is_file():
        return noted.read_text("utf-8").strip() == digest(*_base(model).values())
    place = Path(theirs).expanduser()
    if theirs and (place / "config.json").is_file() and not (Path(ours).exists() and place.samefile(ours)):
        base = _base(model)
        weights = fit(read_weights(place), base)
        return all(torch.equal(weights[name].to(own), own) for name, own in base.items())
    names = [Path(name).name.lower() for name in (theirs, ours) if name.count("/") < 2 and not Path(name).exists()]
    return len(set(filter(None, names))) < 2


def load_adapter(source: str, model: PeftModel) -> dict[str, Tensor]:
    """Read an adapter from a folder or the hub, under the parameter names of a model that it fits.

    Args:
        source: a folder that `save_adapter` or peft wrote, or a name on the hub.
        model: a model with a fresh adapter of the same rank, alpha and layers.

    Returns:
        Name -> factor.

    Raises:
        ValueError: if it cannot be read, rank, alpha or layers differ (naming the first difference and what to set), or
            another field of its configuration says that it is more than its factors.
    """
    try:
        config, tensors = read_adapter(source, model)
    except Exception as error:  # as in `merged_weights`
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"adapter {source}: {reason}") from None
    wanted = model.peft_config[NAME]
    for what, name in (("r", "lora_rank"), ("lora_alpha", "lora_alpha"), ("target_modules", "lora_targets")):
        found, expected = getattr(config, what, None), getattr(wanted, what)
        if found != expected:
            shown = " ".join(sorted(found)) if isinstance(found, (set, list)) else found
            raise ValueError(f"adapter {source} has {what} {found}, not {expected}; set {name}={shown!r}")
    plain, own = wanted.to_dict(), config.to_dict()
    if odd := sorted(what for what in plain.keys() - NO_MATTER if plain[what] != own.get(what)):
        raise ValueError(
            f"adapter {source} is no plain LoRA adapter ({odd[0]} is {own.get(odd[0])}), so its parameters cannot be "
            "merged: set task_vector='weights'"
        )
    named = {name.replace(".weight", f".{NAME}.weight"): tensor.float() for name, tensor in tensors.items()}
    own = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    ours, theirs = ({name: tuple(tensor.shape) for name, tensor in some.items()} for some in (own, named))
    if different := sorted({name for name, _ in ours.items() ^ theirs.items()}):
        raise ValueError(f"adapter {source} and the model differ in '{different[0]}'; was it made for another model?")
    return {name: named[name] for name in own}


def check_same_start(adapter: Mapping[str, Tensor], start: Mapping[str, Tensor], source: str) -> None:
    """The parameters of an adapter can only be compared with the fresh one it was trained from (name -> factor).

    Raises:
        ValueError: if it began from another random A: then A - A_0 says nothing of what was learned.
    """
    names = [name for name in start if ".lora_A." in name]
    own, first = (torch.cat([factors[name].flatten() for name in names]) for factors in (adapter, start))
    cosine = torch.nn.functional.cosine_similarity(own.double(), first.double(), dim=0).item()
    if cosine < SAME_START:
        raise ValueError(
            f"adapter {source} did not begin from this study's random A (cosine {cosine:.2f}), so its parameters have "
            "no task vector here: set task_vector='weights', or the seed that it was trained with"
        )
