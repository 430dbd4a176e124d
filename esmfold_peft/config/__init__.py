"""Every setting of every command, declared once: frozen dataclasses that YAML files and flags fill.

This module imports no torch, so that help and configuration checks answer at once. Constants and
their sources are explained at the field that holds them; "AF2" is Jumper et al. 2021, "OpenFold"
Ahdritz et al. 2024, "ESMFold" Lin et al. 2023, "LoRTA" Hounie et al. 2024 (arXiv 2410.04060).
"""

from esmfold_peft.config.adapter import AdapterConfig, AdapterKind, Target
from esmfold_peft.config.commands import (
    CountConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    MergeConfig,
    ReplayConfig,
)
from esmfold_peft.config.evaluation import EvaluateConfig, MatchMethod, Split
from esmfold_peft.config.guard import GuardConfig
from esmfold_peft.config.logging import LogConfig
from esmfold_peft.config.model import (
    EsmfoldConfig,
    EvoformerConfig,
    Kernels,
    LanguageModelConfig,
    ModelConfig,
    StructureConfig,
    TrunkConfig,
)
from esmfold_peft.config.prediction import PredictConfig
from esmfold_peft.config.preparation import FilterConfig, PlddtConfig, PrepareConfig
from esmfold_peft.config.search import (
    ExecutorConfig,
    LadderConfig,
    SearchConfig,
    SearchReportConfig,
    SearchStatusConfig,
)
from esmfold_peft.config.training import (
    CheckpointConfig,
    ClusterWeight,
    DataConfig,
    EngineConfig,
    LossConfig,
    LossWeights,
    OptimizerConfig,
    Precision,
    TrainConfig,
)

__all__ = [
    "AdapterConfig",
    "AdapterKind",
    "CheckpointConfig",
    "ClusterWeight",
    "CountConfig",
    "DataConfig",
    "EngineConfig",
    "EsmfoldConfig",
    "EvaluateConfig",
    "EvoformerConfig",
    "ExecutorConfig",
    "ExportConfig",
    "FilterConfig",
    "GuardConfig",
    "ImportConfig",
    "InspectConfig",
    "Kernels",
    "LadderConfig",
    "LanguageModelConfig",
    "LogConfig",
    "LossConfig",
    "LossWeights",
    "MatchMethod",
    "MergeConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PlddtConfig",
    "Precision",
    "PredictConfig",
    "PrepareConfig",
    "ReplayConfig",
    "SearchConfig",
    "SearchReportConfig",
    "SearchStatusConfig",
    "Split",
    "StructureConfig",
    "Target",
    "TrainConfig",
    "TrunkConfig",
]
