"""The released ESMFold's architecture against transformers' port, with the same random weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import EsmForProteinFolding
from transformers.models.esm.openfold_utils.loss import compute_tm

from esmfold_peft.config import (
    AdapterConfig,
    DataConfig,
    EngineConfig,
    EsmfoldConfig,
    LanguageModelConfig,
    ModelConfig,
    StructureConfig,
    TrainConfig,
)
from esmfold_peft.model.folding import FoldingModel
from esmfold_peft.model.output import FoldOutput
from esmfold_peft.protein.residues import encode
from esmfold_peft.runs.build import build_model
from tests.published import esm_config, roughen

SEQUENCES = ("MQIFVKTLTGKTITLEVEPSDTIENVKAKIQ", "GWHCYRDEFTSKPNL", "MKV")
COORDINATES = 1e-3  # Å
CONFIDENCE = 1e-3


def reference_model() -> EsmForProteinFolding:
    """A small model in which no weight is zero."""
    structure = {
        "sequence_dim": 48,
        "pairwise_dim": 32,
        "ipa_dim": 8,
        "resnet_dim": 24,
        "num_heads_ipa": 4,
        "num_qk_points": 3,
        "num_v_points": 5,
        "num_blocks": 4,
    }
    trunk = {
        "num_blocks": 3,
        "sequence_state_dim": 64,
        "pairwise_state_dim": 32,
        "sequence_head_width": 16,
        "pairwise_head_width": 8,
        "position_bins": 12,
        "structure_module": structure,
    }
    torch.manual_seed(0)
    settings = {"fp16_esm": False, "lddt_head_hid_dim": 20, "trunk": trunk}
    config = esm_config(3, 40, 5, is_folding_model=True, esmfold_config=settings)
    return roughen(EsmForProteinFolding(config))


def our_config(folder: str, adapter: AdapterConfig) -> TrainConfig:
    language_model = LanguageModelConfig(name="custom", weights=folder, layers=3, width=40, heads=5)
    model = ModelConfig(
        trunk="esmfold_v1",
        language_model=language_model,
        esmfold=EsmfoldConfig(
            weights=folder, blocks=3, c_s=64, c_z=32, c_structure=48, heads=4, heads_pair=4
        ),
        structure=StructureConfig(
            layers=4, c_ipa=8, heads=4, query_points=3, value_points=5, c_angle=24
        ),
        relative_positions=12,
        c_plddt=20,
    )
    return TrainConfig(
        run=Path("r"),
        data=DataConfig(train=Path("t")),
        model=model,
        adapter=adapter,
        engine=EngineConfig(precision="float32"),
    )


@dataclass(frozen=True, eq=False)
class Pair:
    """Both models with the same weights."""

    reference: EsmForProteinFolding
    ours: FoldingModel


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = str(tmp_path_factory.mktemp("esmfold"))
    reference = reference_model()
    reference.save_pretrained(folder)
    ours, _ = build_model(our_config(folder, AdapterConfig(kind="lorta", rank=2)))
    return Pair(reference, ours.eval())


def inputs(sequences: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Residues, positions and mask, padded to the longest."""
    lengths = torch.tensor([[len(sequence)] for sequence in sequences])
    mask = torch.arange(int(lengths.max())) < lengths
    aatype = torch.zeros(mask.shape, dtype=torch.long)  # transformers has no atoms for X
    for row, sequence in enumerate(sequences):
        aatype[row, : len(sequence)] = torch.from_numpy(encode(sequence))
    return aatype, torch.arange(mask.shape[1]).expand(mask.shape), mask


def fold_both(pair: Pair, sequences: Sequence[str], passes: int) -> tuple[FoldOutput, dict]:
    aatype, index, mask = inputs(sequences)
    with torch.no_grad():
        ours = pair.ours(aatype, index, mask, passes - 1)
        theirs = pair.reference(aatype, mask.long(), index, num_recycles=passes - 1)
    return ours, theirs


@pytest.mark.parametrize("passes", [1, 4])
@pytest.mark.parametrize(
    "sequences", [SEQUENCES[:1], SEQUENCES[:1] * 2, SEQUENCES], ids=["single", "batch", "padded"]
)
def test_structure_and_confidence_are_those_of_transformers(
    pair: Pair, sequences: Sequence[str], passes: int
):
    ours, theirs = fold_both(pair, sequences, passes)
    mask = inputs(sequences)[2]
    tm = ours.ptm(mask)
    for row, n in enumerate(mask.sum(1).tolist()):
        expected = theirs.positions[-1][row, :n]
        assert expected.std() > 1
        torch.testing.assert_close(ours.positions[row, :n], expected, atol=COORDINATES, rtol=0)
        exists = theirs.atom37_atom_exists[row, :n].bool()
        torch.testing.assert_close(
            ours.atom_plddt[row, :n][exists],
            theirs.plddt[row, :n][exists],
            atol=CONFIDENCE,
            rtol=0,
        )
        pae = theirs.predicted_aligned_error[row, :n, :n]
        assert pae.std() > 10 * CONFIDENCE
        torch.testing.assert_close(ours.pae[row, :n, :n], pae, atol=CONFIDENCE, rtol=0)
        # transformers gives one pTM for a batch, padding included; the official code does this:
        official = compute_tm(theirs.ptm_logits[row : row + 1, :n, :n], max_bin=31, no_bins=64)
        torch.testing.assert_close(tm[row], official, atol=CONFIDENCE, rtol=0)
    if len(sequences) == 1:
        torch.testing.assert_close(tm[0], theirs.ptm, atol=CONFIDENCE, rtol=0)


def test_logits_torsions_and_frames_are_those_of_transformers(pair: Pair):
    ours, theirs = fold_both(pair, SEQUENCES, 2)
    for row, sequence in enumerate(SEQUENCES):
        n = len(sequence)
        torch.testing.assert_close(
            ours.distogram_logits[row, :n, :n], theirs.distogram_logits[row, :n, :n],
            atol=1e-3, rtol=1e-4,
        )  # fmt: skip
        torch.testing.assert_close(
            ours.torsions[:, row, :n], theirs.angles[:, row, :n], atol=1e-3, rtol=0
        )
        torch.testing.assert_close(
            ours.frames.translation[:, row, :n], theirs.frames[:, row, :n, 4:],
            atol=COORDINATES, rtol=0,
        )  # fmt: skip


def test_gaps_in_the_numbering_are_seen_as_transformers_sees_them(pair: Pair):
    aatype, index, mask = inputs(SEQUENCES[:1])
    gap = index + 9 * (index >= 10)
    with torch.no_grad():
        ours = pair.ours(aatype, gap, mask, 0).positions
        theirs = pair.reference(aatype, mask.long(), gap, num_recycles=0).positions[-1]
        without = pair.ours(aatype, index, mask, 0).positions
    torch.testing.assert_close(ours, theirs, atol=COORDINATES, rtol=0)
    assert (ours - without).abs().max() > 0.01


def test_an_adapter_of_the_released_model_learns_where_transformers_has_no_gradient(pair: Pair):
    aatype, index, mask = inputs(SEQUENCES)
    adapter = pair.ours.language_model.adapter
    assert adapter is not None
    output = pair.ours(aatype, index, mask, 0)
    output.positions[mask].square().mean().backward()
    gradients = [p.grad for p in adapter.parameters() if p.grad is not None]
    assert max(float(gradient.abs().max()) for gradient in gradients) > 1e-6
    pair.ours.zero_grad()
