"""Adam and its learning rate."""

from torch import nn, optim

from esmfold_peft.config import OptimizerConfig
from esmfold_peft.model.folding import FoldingModel, parameter_groups

_DECAY = 0.95


def learning_rate_factor(step: int, config: OptimizerConfig) -> float:
    """The learning rate at a step, 0 at the first, as a factor on its value after the warm-up.

    OpenFold multiplies by 0.95 every `decay_steps`, AlphaFold 2 once (AF2 Suppl. 1.11.3).
    """
    if step < config.warmup_steps:
        return step / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "linear":
        return max(0, config.decay_steps - step) / max(1, config.decay_steps - config.warmup_steps)
    decays = step // config.decay_steps
    return _DECAY ** (decays if config.schedule == "openfold" else min(decays, 1))


def epsilon(model: FoldingModel, config: OptimizerConfig, group: str) -> float:
    """Adam's ε for a group of `parameter_groups`; an adapter has its own."""
    adapted = group == "adapter" and model.language_model.adapter is not None
    own = config.eps_adapter if adapted else None
    return config.eps if own is None else own


def build_optimizer(
    model: FoldingModel, config: OptimizerConfig, *, start: int = 0
) -> tuple[optim.Optimizer, optim.lr_scheduler.LRScheduler]:
    """Adam over the trainable parameters, with its schedule in optimizer steps.

    Factors of an adapter with a multiplier of their own (LoRA+) are a group of their own. `start`
    optimizer steps were done before.
    """
    multipliers = {"adapter": config.lr_adapter, "trunk": config.lr_trunk, "head": config.lr_head}
    groups = []
    for name, parameters in parameter_groups(model).items():
        own = _factor_multipliers(model) if name == "adapter" else {}
        for factor in dict.fromkeys(own.get(p, 1.0) for p in parameters):
            members = [p for p in parameters if own.get(p, 1.0) == factor]
            rate = config.lr * multipliers[name] * factor
            eps = epsilon(model, config, name)
            groups.append({"params": members, "lr": rate, "eps": eps, "name": name})
    # One pass over a parameter, also on the CPU: 1.6 ms a step of scripts/overfit.py, not 6.6.
    optimizer = optim.Adam(groups, lr=config.lr, betas=config.betas, fused=True)
    schedule = optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(start + step, config)
    )
    return optimizer, schedule


def _factor_multipliers(model: FoldingModel) -> dict[nn.Parameter, float]:
    """Multipliers of the adapter's parameters, by its `lr_factors`."""
    adapter = model.language_model.adapter
    if adapter is None:
        return {}
    parameters = adapter.factor_parameters()
    factors = adapter.config.lr_factors
    return {p: factor for name, factor in factors.items() for p in parameters[name]}
