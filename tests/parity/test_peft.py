"""Adapters against Hugging Face PEFT on transformers' EsmModel: outputs and every gradient."""

import copy
import re
import warnings

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, VeraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import EsmForMaskedLM

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.insert import attach_adapter, insert_adapter
from esmfold_peft.adapters.peft_files import read_peft, write_peft
from esmfold_peft.config import AdapterConfig
from esmfold_peft.model.language_model import LanguageModel
from esmfold_peft.weights.esm2_weights import load_esm2
from tests.published import esm_config

SHAPE = AttentionShape(layers=3, width=40, heads=4)
ALL = ("query", "key", "value", "output", "fc1", "fc2")
MODULES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
FACTORS = {
    "lora_A": "a",
    "lora_B": "b",
    "lora_magnitude_vector": "m",
    "vera_lambda_d": "d",
    "vera_lambda_b": "b",
    "ia3_l": "l",
}
CASES = {
    "LoRA": ("lora", ALL, {"rank": 2, "alpha": 3.0}),
    "rsLoRA": ("lora", ("value", "output", "fc2"), {"alpha": 3.0, "scaling": "alpha/sqrt(r)"}),
    "LoRA-FA": ("lora_fa", ("query", "output", "fc1"), {"rank": 2, "alpha": 3.0}),
    "LoRA, constant": ("lora", ("query", "fc1"), {"alpha": 1.5, "scaling": "constant"}),
    "DoRA": ("dora", ALL, {"rank": 2, "alpha": 3.0}),
    "DoRA of some": ("dora", ("key", "output", "fc2"), {"alpha": 3.0, "scaling": "alpha/sqrt(r)"}),
    "VeRA": ("vera", ALL, {"rank": 2}),
    "VeRA of the attention": ("vera", ("query", "output"), {"rank": 2}),
    "IA3": ("ia3", ("key", "value", "fc2"), {}),
    "IA3 of all": ("ia3", ALL, {}),
}
NAMES = ("kind", "targets", "settings")
SAVED = {name: case for name, case in CASES.items() if case[2].get("scaling") != "constant"}


@pytest.fixture(scope="module")
def hugging_face():
    torch.manual_seed(0)
    config = esm_config(SHAPE.layers, SHAPE.width, SHAPE.heads)
    return moved(EsmForMaskedLM(config), 0.1).eval()


@pytest.fixture(scope="module")
def base(hugging_face, tmp_path_factory):
    folder = tmp_path_factory.mktemp("esm2")
    hugging_face.save_pretrained(folder)
    lm = LanguageModel.random(SHAPE, seed=7)
    load_esm2(lm, folder)
    return lm


@pytest.fixture
def lm(base):
    return copy.deepcopy(base)


@torch.no_grad()
def moved(module, size):
    """Moves every trainable parameter off its start."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.add_(size * torch.randn_like(parameter))
    return module


def peft_config(kind, targets, rank=2, alpha=1.0, scaling="alpha/r"):
    """PEFT's settings as its user would write them."""
    pattern = r".*\.layer\.\d+\.({})"
    modules = pattern.format("|".join(MODULES[target] for target in targets))
    if kind == "ia3":
        feedforward = pattern.format(MODULES["fc2"])
        return IA3Config(target_modules=modules, feedforward_modules=feedforward)
    if kind == "vera":
        return VeraConfig(r=rank, target_modules=modules)
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        use_rslora=scaling == "alpha/sqrt(r)",
        use_dora=kind == "dora",
        target_modules=modules,
    )


def batch():
    aatype = torch.randint(0, 20, (3, 12), generator=torch.Generator().manual_seed(1))
    return aatype, torch.arange(12) < torch.tensor([[12], [8], [3]])


def peft_levels(model, lm):
    tokens = lm.tokenize(*batch())
    output = model(tokens, attention_mask=(tokens != 1).long(), output_hidden_states=True)
    return torch.stack(output.hidden_states, dim=2)[:, 1:-1]


def assert_close(ours, theirs, bound, place):
    assert (ours - theirs).norm() <= bound * theirs.norm(), place


def assert_same_outputs(lm, model):
    """Compares every level, and that of an unadapted model is far away."""
    mask = batch()[1]
    with torch.no_grad():
        ours, theirs = lm(*batch())[mask], peft_levels(model, lm)[mask]
        with model.disable_adapter():
            unadapted = peft_levels(model, lm)[mask]
    for level in range(SHAPE.layers + 1):
        assert_close(ours[:, level], theirs[:, level], 1e-5, level)
    assert (theirs[:, -1] - unadapted[:, -1]).norm() > 0.01 * theirs[:, -1].norm()


def assert_same_gradients(lm, model):
    """Compares each gradient of PEFT's with the part of ours that belongs to its layer."""
    mask = batch()[1]
    ours, theirs = lm(*batch()), peft_levels(model, lm)
    weight = torch.randn_like(theirs)
    for levels in (ours, theirs):
        (levels * weight)[mask].sum().backward()
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer, module, factor = re.search(r"layer\.(\d+)\.(.+)\.(\w+)\.default", name).groups()
            target = next(target for target in MODULES if MODULES[target] == module)
            whole = lm.adapter.get_parameter(f"{FACTORS[factor]}_{target}")
            if whole.requires_grad:
                part = whole.grad[int(layer)]
                assert_close(part.view_as(parameter.grad), parameter.grad, 1e-4, name)
                compared += 1
    trainable = [p for p in lm.adapter.parameters() if p.requires_grad]
    assert compared == SHAPE.layers * len(trainable)


@pytest.mark.parametrize(NAMES, SAVED.values(), ids=SAVED)
def test_adapters_that_peft_saved(hugging_face, lm, tmp_path, kind, targets, settings):
    torch.manual_seed(2)
    config = peft_config(kind, targets, **settings)
    model = moved(get_peft_model(copy.deepcopy(hugging_face.esm), config), 0.3).eval()
    model.save_pretrained(tmp_path)
    adapter = read_peft(tmp_path, SHAPE, "lora_fa" if kind == "lora_fa" else "auto")
    assert adapter.config.kind == kind
    assert adapter.targets == targets
    attach_adapter(lm, adapter, fresh=False)
    assert_same_outputs(lm, model)
    assert_same_gradients(lm, model)


@pytest.mark.parametrize(NAMES, CASES.values(), ids=CASES)
def test_adapters_that_peft_loads(hugging_face, lm, tmp_path, kind, targets, settings):
    torch.manual_seed(2)
    config = AdapterConfig(kind=kind, targets=targets, **{"rank": 2, **settings})
    moved(insert_adapter(lm, config), 0.3)
    write_peft(lm.adapter, tmp_path, None)
    with warnings.catch_warnings():
        # PEFT only warns of tensors that it misses.
        warnings.simplefilter("error", UserWarning)
        model = PeftModel.from_pretrained(
            copy.deepcopy(hugging_face.esm), tmp_path, is_trainable=True
        ).eval()
    loaded, written = (
        get_peft_model_state_dict(model),
        load_file(tmp_path / "adapter_model.safetensors"),
    )
    assert loaded.keys() == written.keys()
    assert all(torch.equal(loaded[key], written[key]) for key in written)
    assert_same_outputs(lm, model)
    assert_same_gradients(lm, model)


@pytest.mark.parametrize("kind", ["dora", "vera", "ia3"])
def test_adapters_of_a_model_with_a_head(hugging_face, lm, tmp_path, kind):
    torch.manual_seed(2)
    config = peft_config(kind, ("query", "output", "fc2"))
    model = moved(get_peft_model(copy.deepcopy(hugging_face), config), 0.3).eval()
    model.save_pretrained(tmp_path)
    attach_adapter(lm, read_peft(tmp_path, SHAPE, "auto"), fresh=False)
    assert_same_outputs(lm, model)


def test_peft_refuses_another_class_of_model(hugging_face, lm, tmp_path):
    write_peft(insert_adapter(lm, AdapterConfig(kind="lora")), tmp_path, None)
    with pytest.raises(ValueError, match=r"[Tt]arget modules.*not found"):
        PeftModel.from_pretrained(copy.deepcopy(hugging_face), tmp_path)
