"""Settings of `train --replay`, `adapters` and `weights`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from esmfold_peft.config.adapter import AdapterKind, Target, unused_settings
from esmfold_peft.config.checks import check_lowest, check_unchanged
from esmfold_peft.config.model import LanguageModelConfig
from esmfold_peft.errors import UserError


@dataclass(frozen=True)
class ReplayConfig:
    """Repeat a training step that was skipped because it was not finite.

    Attributes:
        replay: file of what a process saw in the step, <run>/nonfinite/step_<step>/rank_<rank>.
        accelerator: cpu, gpu, or auto (a GPU if there is one).
    """

    replay: Path
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"


@dataclass(frozen=True)
class CountConfig:
    """Count the trainable parameters of adapters.

    Attributes:
        models: ESM-2 models by name, such as esm2_t12_35M_UR50D, or all, from 8M to 15B.
        kinds: methods; by default all.
        ranks: ranks r.
        targets: adapted matrices; a method that cannot adapt one of them is listed without a count.
        tt_rank: TT-rank of loretta_rep and loretta_adp.
        bases: random bases k of each factor of nola.
        norms: bitfit also adapts the biases of both layer norms; needs all six targets.
        reference: llama2-7b prints Table 1 of the LoRTA paper and its formulas' counts instead.
        format: table, csv or json.
    """

    models: tuple[str, ...] = ("esm2_t12_35M_UR50D",)
    kinds: tuple[AdapterKind, ...] = ()
    ranks: tuple[int, ...] = (1, 8, 64)
    targets: tuple[Target, ...] = ("query", "key", "value")
    tt_rank: int = 5
    bases: int = 64
    norms: bool = False
    reference: Literal["llama2-7b"] | None = None
    format: Literal["table", "csv", "json"] = "table"

    def __post_init__(self) -> None:
        check_lowest(self, "", 1, "tt_rank", "bases")
        for name in ("models", "ranks", "targets"):
            if not getattr(self, name):
                raise UserError(f"{name}: empty; give at least one")
        for rank in self.ranks:
            if rank < 1:
                raise UserError(f"ranks: {rank} is less than 1")
        for target in self.targets:
            if self.targets.count(target) > 1:
                raise UserError(f"targets: {target} is named twice")
        for kind in self.kinds:
            if kind in ("none", "full"):
                raise UserError(f"kinds: {kind} is no adapter")
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        """Refuses settings that were changed and change no count."""
        names = ("tt_rank", "bases", "norms")
        if self.reference is not None:
            names = ("models", "kinds", "ranks", "targets", *names)
            check_unchanged(self, "", names, f"not with --reference {self.reference}")
        elif self.kinds:
            unused = frozenset.intersection(*map(unused_settings, self.kinds))
            kinds = ", ".join(self.kinds)
            check_unchanged(self, "", unused.intersection(names), f"not of the kinds {kinds}")


@dataclass(frozen=True)
class MergeConfig:
    """Merge an adapter into the weights of its ESM-2, for programs that know no adapters.

    Attributes:
        output: folder for the merged files; it must be absent or empty.
        run: folder of a training run; its language model and adapter are merged.
        adapter: folder of an adapter (or of its run), instead of --run.
        language_model: the model that the adapter was trained on; only with --adapter
        dtype: type of the merged weights. They are computed in float32; a type that loses more than
            a tenth of an update is refused.
        formats: fair-esm (an esm2_*.pt file) and transformers (a folder for EsmForMaskedLM).
    """

    output: Path
    run: Path | None = None
    adapter: Path | None = None
    language_model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    formats: tuple[Literal["fair-esm", "transformers"], ...] = ("fair-esm", "transformers")

    def __post_init__(self) -> None:
        if (self.run is None) == (self.adapter is None):
            raise UserError("give either --run or --adapter")
        if self.run is not None and self.language_model != LanguageModelConfig():
            raise UserError("language_model: with --run the language model is the run's")
        if not self.formats:
            raise UserError("formats: empty; name fair-esm, transformers or both")


@dataclass(frozen=True)
class ExportConfig:
    """Write an adapter in another program's format.

    Attributes:
        adapter: folder of an adapter, or of a training run.
        output: folder for adapter_config.json and adapter_model.safetensors; it must be absent or
            empty.
        format: peft, Hugging Face PEFT's format for transformers' EsmModel (lora, lora_fa, dora,
            vera, ia3).
        base_model: Hugging Face name or path of the language model, written into the config; by
            default facebook/<name> of the ESM-2 of the adapter's sizes.
    """

    adapter: Path
    output: Path
    format: Literal["peft"] = "peft"
    base_model: str | None = None


@dataclass(frozen=True)
class ImportConfig:
    """Import an adapter of Hugging Face PEFT, the LoRTA authors' fork of it, or TT-LoRA's authors.

    Attributes:
        adapter: folder with adapter_config.json and adapter_model.safetensors (TT-LoRA's library:
            adapter_model.bin), or a .pth file of an earlier TT-LoRA program.
        output: folder for the adapter in this program's format; it must be absent or empty.
        language_model: the model that the adapter was trained on. PEFT's files do not name its
            weights, so this cannot be checked.
        kind: auto, or lora_fa to train a LoRA further with its A frozen.
        alpha: TT-LoRA's alpha, for a .pth file only, which does not contain it.
        order: for a .pth file, how its program uses the cores: reconstruction (it forms ΔW, as the
            first paper's program does) or contraction (it multiplies the input with them).
    """

    adapter: Path
    output: Path
    language_model: LanguageModelConfig = field(default_factory=LanguageModelConfig)
    kind: Literal["auto", "lora_fa"] = "auto"
    alpha: float | None = None
    order: Literal["reconstruction", "contraction"] | None = None


@dataclass(frozen=True)
class CompletionConfig:
    """Print what your shell must read to complete commands and settings with the tab key.

    Attributes:
        shell: bash, zsh or tcsh. For bash, put `source <(esmfold-peft completion bash)` into
            ~/.bashrc.
    """

    shell: Literal["bash", "zsh", "tcsh"]


@dataclass(frozen=True)
class FetchConfig:
    """Download published weights of ESM-2 or ESMFold from Hugging Face, and check them.

    Attributes:
        name: official name of an ESM-2, such as esm2_t12_35M_UR50D, or esmfold_v1.
        output: folder for the files. Default: weights/NAME.
    """

    name: str
    output: Path | None = None


@dataclass(frozen=True)
class InspectConfig:
    """Show what a file of weights contains, which settings fit it, and which tensors do not map.

    Attributes:
        file: official .pt file of ESMFold or ESM-2, a Hugging Face folder of either, or a
            .safetensors or .bin file in one.
        format: table (with settings for a YAML file) or json.
    """

    file: Path
    format: Literal["table", "json"] = "table"
