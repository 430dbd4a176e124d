"""LoRA-FA: LoRA whose A stays as it was drawn (Zhang et al. 2023, arXiv 2308.03303).

Of the adapter's input only x·Aᵀ, r numbers a token, is kept for the backward pass.
"""

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.adapters.lora import LoRA
from esmfold_peft.config import AdapterConfig


class LoRAFA(LoRA):
    """LoRA with A frozen: half its trainable parameters."""

    def __init__(self, shape: AttentionShape, config: AdapterConfig) -> None:
        super().__init__(shape, config)
        for target in self.targets:
            self.get_parameter(f"a_{target}").requires_grad_(False)
