"""Every setting of every command, declared once: frozen dataclasses that YAML files and flags fill.

This module imports no torch, so that help and configuration checks answer at once. Constants and
their sources are explained at the field that holds them; "AF2" is Jumper et al. 2021, "OpenFold"
Ahdritz et al. 2024, "ESMFold" Lin et al. 2023, "LoRTA" Hounie et al. 2024 (arXiv 2410.04060).
"""

# ruff: noqa: F401 (other rooms import these names from here)

from esmfold_peft.config.adapter import AdapterConfig, AdapterKind, Target
from esmfold_peft.config.commands import (
    CompletionConfig,
    CountConfig,
    ExportConfig,
    FetchConfig,
    ImportConfig,
    InspectConfig,
    MergeConfig,
    ReplayConfig,
)
from esmfold_peft.config.evaluation import EvaluateConfig, MatchMethod, Split
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
    GuardConfig,
    LogConfig,
    LossConfig,
    LossWeights,
    OptimizerConfig,
    Precision,
    TrainConfig,
)
