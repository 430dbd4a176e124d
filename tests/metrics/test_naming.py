import pytest
import torch

from esmfold_peft.metrics.lddt import lddt_all_atom
from esmfold_peft.protein.residues import ATOM14, ATOM14_MASK, encode

EITHER_WAY = {
    **{"D": ("OD1", "OD2"), "E": ("OE1", "OE2"), "R": ("NH1", "NH2")},
    **{"L": ("CD1", "CD2"), "V": ("CG1", "CG2")},
}
FIXED = {"N": ("OD1", "ND2"), "Q": ("OE1", "NE2"), "T": ("OG1", "CG2")}


@pytest.mark.parametrize(("letter", "names"), {**EITHER_WAY, **FIXED}.items())
def test_names_that_openstructure_lets_be_exchanged(letter: str, names: tuple[str, str]):
    aatype = torch.tensor(encode(f"AG{letter}WK"))[None]
    generator = torch.Generator().manual_seed(0)
    true = 3 * torch.randn(1, 5, 14, 3, generator=generator, dtype=torch.float64)
    columns = [ATOM14[letter].index(name) for name in names]
    predicted = true.clone()
    predicted[:, 2, columns] = true[:, 2, columns[::-1]]
    mask = torch.tensor(ATOM14_MASK)[aatype]
    score = lddt_all_atom(predicted, true, mask, aatype=aatype, naming="openstructure").per_chain
    assert (score.item() == 1) == (letter in EITHER_WAY)
