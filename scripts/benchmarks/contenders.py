"""One language model with every adapter, and with others' adapters on the same weights.

All give the hidden states of all levels. In all of them the gradient goes back to the embedding, as
it does where something below is trained.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from esmfold_peft.adapters.bank import AdapterBank, AdapterChoice
from esmfold_peft.adapters.base import AttentionShape, Factors, Group
from esmfold_peft.adapters.insert import ADAPTERS, attach_adapter, insert_adapter
from esmfold_peft.adapters.lorta import LoRTA
from esmfold_peft.adapters.peft_files import peft_settings
from esmfold_peft.config import AdapterConfig, Target
from esmfold_peft.model.language_model import ALPHABET, LanguageModel
from esmfold_peft.weights.layouts import hugging_face_name, hugging_face_settings

if TYPE_CHECKING:
    from transformers import EsmModel

FROZEN, PEFT, AUTHORS = "frozen", "peft lora", "authors' lorta"
"""Names of the contenders that are no adapter of this project."""

TOLERANCE = 1e-4
"""Largest difference of outputs that should be equal; they are of order 1, in float32."""


@dataclass(frozen=True, eq=False)
class Contender:
    """A model whose training step is measured.

    Attributes:
        output: hidden states of all levels, (b, n, l, d).
        trained: holds the parameters that train.
    """

    output: Callable[[], Tensor]
    trained: nn.Module

    @property
    def parameters(self) -> int:
        """Numbers that train."""
        return sum(p.numel() for p in self.trained.parameters() if p.requires_grad)

    def step(self, gradient: Tensor, autocast: AbstractContextManager) -> None:
        """Forward and backward pass, without an optimizer; gradients are dropped at once."""
        with autocast:
            output = self.output()
        output.backward(gradient.to(output.dtype))
        self.trained.zero_grad(set_to_none=True)

    @torch.no_grad()
    def infer(self, autocast: AbstractContextManager) -> None:
        """Forward pass alone."""
        with autocast:
            self.output()


def frozen_model(shape: AttentionShape, device: torch.device) -> LanguageModel:
    """A random language model that takes no gradient, but lets one through to its embedding."""
    lm = LanguageModel.random(shape).to(device)
    insert_adapter(lm, AdapterConfig(kind="none"))
    lm.embed_tokens.register_forward_hook(_require_gradient)
    return lm


def build_contenders(
    lm: LanguageModel, kinds: list[str], config: AdapterConfig, aatype: Tensor, mask: Tensor
) -> dict[str, Contender]:
    """All contenders, checked; those of this project share the model of `frozen_model`.

    PEFT takes part where it and transformers are installed, which the package does not need. A kind
    adapts those targets of `config` that it can.

    Raises:
        SystemExit: outputs differ that should be equal.
    """
    found = {FROZEN: _with_adapter(lm, None, aatype, mask)}
    for kind in kinds:
        adapter = insert_adapter(lm, _config_of(kind, config))
        found[kind] = _with_adapter(lm, adapter, aatype, mask)
        lm.adapter = None
    if find_spec("peft") and find_spec("transformers"):
        found[PEFT] = peft_lora(lm, config, lm.tokenize(aatype, mask))
    for name, contender in found.items():
        _require_equal(name, contender, FROZEN, found[FROZEN], mask)
    lorta = _config_of("lorta", config)
    plain, looped = LoRTA(lm.shape, lorta), AuthorsLoRTA(lm.shape, lorta)
    nn.init.normal_(plain.b, std=0.1)
    looped.load_state_dict(plain.state_dict())
    pair = []
    for adapter in (plain, looped):
        pair.append(_with_adapter(lm, attach_adapter(lm, adapter, fresh=False), aatype, mask))
        lm.adapter = None
    _require_equal(AUTHORS, pair[1], "lorta", pair[0], mask)
    return found | {AUTHORS: pair[1]}


def build_inferences(
    lm: LanguageModel, config: AdapterConfig, aatype: Tensor, mask: Tensor
) -> dict[str, Contender]:
    """One LoRTA for all sequences of a batch, and one of its own for each.

    Raises:
        SystemExit: a sequence of the bank is not what its adapter gives alone.
    """
    adapters = [LoRTA(lm.shape, _config_of("lorta", config)) for _ in aatype]
    for adapter in adapters:
        nn.init.normal_(adapter.b, std=0.1)
        adapter.to(aatype.device).requires_grad_(False)
    bank = AdapterBank({str(i): adapter for i, adapter in enumerate(adapters)})
    which = torch.arange(len(adapters), device=aatype.device)
    choice = AdapterChoice(bank.to(aatype.device), which)
    many = Contender(lambda: lm(aatype, mask, choice), nn.Module())
    last = _with_adapter(lm, adapters[-1], aatype[-1:], mask[-1:])
    with torch.no_grad():
        difference = (many.output()[-1:] - last.output()).abs().max().item()
    if not difference <= TOLERANCE:
        raise SystemExit(f"many adapters: outputs differ by {difference:.2g} from one alone")
    return {"one adapter": _with_adapter(lm, adapters[0], aatype, mask), "one each": many}


class AuthorsLoRTA(LoRTA):
    """LoRTA as its authors' programs compute it, in the orientation of their paper.

    A dense ΔW of every layer and matrix is made in each pass by a loop over heads, and applied by
    itself. DISCREPANCY: theirs are made for four matrices whatever the targets, here for the
    targets only; and theirs are turned (`lorta.HEADS_ON_OUTPUT`).
    """

    def forward(self, dtype: torch.dtype) -> tuple[Factors, ...]:
        """See `Adapter`: ΔW (L, d, d) of each adapted matrix of the group, without the scale."""
        return tuple(
            tuple(
                torch.stack([self._dense(i, target).to(dtype) for i in range(self.shape.layers)])
                for target in self.members(group)
            )
            for group in self.groups()
        )

    def change_output(
        self, group: Group, factors: Factors, x: Tensor, y: Tensor, matrices: nn.Module
    ) -> Tensor:
        """See `Adapter`."""
        outputs = list(y.unflatten(-1, (len(group), -1)).unbind(1))
        for target, delta in zip(self.members(group), factors, strict=True):
            index = group.index(target)
            outputs[index] = outputs[index] + x @ delta * self.scale
        return torch.stack(outputs, dim=1)

    def _dense(self, layer: int, target: Target) -> Float[Tensor, "d d"]:
        heads = []
        for head in range(self.shape.heads):
            c = self.c_l[layer] * self.c_m[self.targets.index(target)] * self.c_h[head]
            heads.append(self.a @ torch.diag(c) @ self.b.T)
        delta = torch.cat(heads, dim=1)
        return delta if target != "output" else delta.T


def peft_lora(lm: LanguageModel, config: AdapterConfig, tokens: Tensor) -> Contender:
    """Hugging Face PEFT's LoRA on transformers' ESM-2 with a language model's weights."""
    from peft import LoraConfig, get_peft_model

    model = hugging_face_model(lm)
    modules = peft_settings(replace(config, kind="lora"), None)["target_modules"]
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=modules)
    adapted = get_peft_model(model, settings).to(tokens.device).train()
    model.embeddings.word_embeddings.register_forward_hook(_require_gradient)
    attended = (tokens != ALPHABET.padding_idx).long()

    def output() -> Tensor:
        found = adapted(input_ids=tokens, attention_mask=attended, output_hidden_states=True)
        return torch.stack([level[:, 1:-1] for level in found.hidden_states], dim=2)

    return Contender(output, adapted)


@torch.no_grad()
def hugging_face_model(lm: LanguageModel) -> "EsmModel":
    """Transformers' ESM-2 with a language model's weights."""
    from transformers import EsmConfig, EsmModel

    config = EsmConfig(**hugging_face_settings(lm.shape))
    model = EsmModel(config, add_pooling_layer=False)
    for name, tensor in lm.official_tensors():
        model.get_parameter(hugging_face_name(name)).copy_(tensor)
    return model


def _config_of(kind: str, config: AdapterConfig) -> AdapterConfig:
    """Settings of a kind with those targets that it can adapt."""
    targets = tuple(target for target in config.targets if target in ADAPTERS[kind].allowed)
    if not targets:
        raise SystemExit(f"--targets: {kind} can adapt none of {', '.join(config.targets)}")
    return replace(config, kind=kind, targets=targets)


def _with_adapter(
    lm: LanguageModel, adapter: nn.Module | None, aatype: Tensor, mask: Tensor
) -> Contender:
    def output() -> Tensor:
        lm.adapter = adapter
        return lm(aatype, mask)

    return Contender(output, nn.Module() if adapter is None else adapter)


def _require_gradient(module: nn.Module, inputs: object, output: Tensor) -> None:
    output.requires_grad_()


@torch.no_grad()
def _require_equal(
    name: str, one: Contender, other_name: str, other: Contender, mask: Tensor
) -> None:
    difference = (one.output() - other.output())[mask].abs().max().item()
    if not difference < TOLERANCE:
        raise SystemExit(f"{name} is not comparable: it differs from {other_name} by {difference}")
