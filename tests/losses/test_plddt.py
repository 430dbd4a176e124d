import math

import pytest
import torch
from torch import Tensor

from esmfold_peft.losses.head_losses import atom_plddt_loss, plddt_loss
from esmfold_peft.metrics.lddt import lddt_all_atom
from esmfold_peft.protein.residues import ATOM14, ATOM37_INDEX, RESIDUES_X


def line(*x: float) -> Tensor:
    points = torch.zeros(1, len(x), 3)
    points[0, :, 0] = torch.tensor(x)
    return points


TRUE = line(0, 4, 8, 12)


def loss(logits: Tensor, predicted: Tensor, true: Tensor = TRUE, **change) -> Tensor:
    mask = {"mask": torch.ones(true.shape[:2], dtype=torch.bool)}
    return plddt_loss(logits, predicted_ca=predicted, true_ca=true, **(mask | change))


def sure_of(*columns: int) -> Tensor:
    logits = torch.full((1, len(columns), 50), -50.0)
    logits[0, range(len(columns)), list(columns)] = 50
    return logits


def test_uniform_logits_cost_the_log_of_the_bins():
    assert loss(torch.zeros(1, 4, 50), TRUE).item() == pytest.approx(math.log(50))


def test_target_is_the_bin_of_the_lddt_that_the_prediction_has():
    assert loss(sure_of(49, 49, 49, 49), TRUE).item() == 0
    # The last atom 1.5 Å off keeps 2 and 4 Å in its pairs: 5/6 is in bin 41, 1/2 in bin 25.
    off = line(0, 4, 8, 13.5)
    assert loss(sure_of(41, 41, 41, 25), off).item() == 0
    assert loss(sure_of(41, 41, 41, 24), off).item() == pytest.approx(100 / 4)


def test_residue_without_score_has_no_target():
    # The last residue is 100 Å from the others, the one before it is not resolved.
    true, mask = line(0, 4, torch.nan, 100), torch.tensor([[True, True, False, True]])
    assert loss(sure_of(49, 49, 0, 0), line(0, 4, 8, 12), true, mask=mask).item() == 0


def test_chain_without_pairs_costs_nothing():
    logits = torch.randn(1, 4, 50, requires_grad=True)
    value = loss(logits, TRUE, mask=torch.tensor([[True, False, False, False]]))
    value.sum().backward()
    assert value.tolist() == [0.0]
    assert (logits.grad == 0).all()


def test_coordinates_get_no_gradient_and_logits_do():
    predicted, logits = TRUE.clone().requires_grad_(), torch.zeros(1, 4, 50, requires_grad=True)
    loss(logits, predicted).sum().backward()
    assert predicted.grad is None
    assert (logits.grad != 0).all()


def test_same_under_autocast():
    logits, predicted = torch.randn(1, 4, 50, generator=torch.Generator().manual_seed(1)), TRUE + 1
    plain = loss(logits, predicted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(logits, predicted), plain)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("where", ["logits", "coordinates"])
def test_nan_in_the_prediction_stays_nan(known, where):
    logits, predicted = torch.zeros(1, 4, 50), TRUE.clone()
    (logits if where == "logits" else predicted)[0, 2, 0] = torch.nan
    mask = torch.tensor([[True, True, known, True]])
    assert loss(logits, predicted, mask=mask).isnan().all()


def atom_loss(logits: Tensor, predicted: Tensor, batch, **change) -> Tensor:
    arguments = {
        "true": batch.positions,
        "atom_mask": batch.atom_mask,
        "aatype": batch.aatype,
    }
    return atom_plddt_loss(logits, predicted=predicted, **(arguments | change))


def random_atom_logits(chains: int, n: int) -> Tensor:
    return torch.randn(chains, n, 37, 50, generator=torch.Generator().manual_seed(7))


def test_atoms_uniform_logits_cost_the_log_of_the_bins(cases):
    batch, output = cases.make("DEFYW", "GGA")
    value = atom_loss(torch.zeros(2, 5, 37, 50), output.positions, batch)
    assert value.tolist() == pytest.approx([math.log(50)] * 2)


def test_target_of_an_atom_by_hand():
    # N and Cα of two alanines; Cα of the second is 1.5 Å off and keeps half of its two pairs.
    true, known = torch.zeros(1, 2, 14, 3), torch.zeros(1, 2, 14, dtype=torch.bool)
    known[:, :, :2] = True
    true[0, :, :2, 0] = torch.tensor([[0.0, 1.5], [4.0, 5.5]])
    predicted = true.clone()
    predicted[0, 1, 1, 0] = 7
    logits = torch.zeros(1, 2, 37, 50)
    for residue, atom, column in [(0, 0, 37), (0, 1, 37), (1, 0, 49), (1, 1, 25)]:
        logits[0, residue, atom, column] = 100

    def cost(logits: Tensor) -> float:
        value = atom_plddt_loss(
            logits,
            predicted=predicted,
            true=true,
            atom_mask=known,
            aatype=torch.zeros(1, 2, dtype=torch.long),
        )
        return value.item()

    assert cost(logits) == 0
    assert cost(logits.roll(1, dims=1)) > 10


def test_atoms_agree_with_loops_over_names(cases):
    batch, output = cases.make("DEFYWRKH", "GGMTY", seed=3)
    batch.atom_mask[0, 4, 6:] = False
    predicted = cases.perturb(output, 1.0).positions
    logits = random_atom_logits(2, 8)
    ours = atom_loss(logits, predicted, batch)
    score = lddt_all_atom(
        predicted.double(), batch.positions.double(), batch.atom_mask, aatype=batch.aatype
    ).per_atom
    for b in range(2):
        costs = []
        for i, aatype in enumerate(batch.aatype[b].tolist()):
            for atom, name in enumerate(ATOM14[RESIDUES_X[aatype]]):
                value = score[b, i, atom].item()
                if not math.isnan(value):
                    row = logits[b, i, ATOM37_INDEX[name]].double()
                    target = min(int(value * 50 + 1e-6), 49)
                    costs.append((torch.logsumexp(row, 0) - row[target]).item())
        assert len(costs) == batch.atom_mask[b].sum()
        assert ours[b].item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_ambiguous_atoms_are_named_as_predicted(cases):
    batch, output = cases.make("AGDEK")
    swapped = output.positions.clone()
    columns = ATOM14["D"].index("OD1"), ATOM14["D"].index("OD2")
    swapped[:, 2, columns] = swapped[:, 2, columns[::-1]]
    logits = torch.zeros(1, 5, 37, 50)
    logits[..., 49] = 100
    assert atom_loss(logits, swapped, batch).item() == 0


def test_atoms_batch_of_two_equals_two_of_one(cases):
    batch, output = cases.make("DEFYWRKH", "GGMTY", seed=4)
    output = cases.perturb(output, 1.0)
    logits = random_atom_logits(2, 8)
    both = atom_loss(logits, output.positions, batch)
    for b, n in ((0, 8), (1, 5)):
        part, prediction = cases.one_chain(batch, output, b)
        alone = atom_loss(logits[b : b + 1, :n], prediction.positions, part)
        assert both[b].item() == pytest.approx(alone.item(), rel=1e-6)


def test_rigid_motion_of_the_prediction_changes_no_atom_target(cases):
    batch, output = cases.make("DEFYWRKH", seed=5)
    predicted = cases.perturb(output, 1.0).positions.double()
    true, logits = batch.positions.double(), random_atom_logits(1, 8)
    motion = cases.random_frames(torch.Generator().manual_seed(6), 1).rotation.double()
    turned = predicted @ torch.linalg.qr(motion)[0] + 5
    before = atom_loss(logits, predicted, batch, true=true)
    assert atom_loss(logits, turned, batch, true=true).item() == pytest.approx(before.item())


def test_atoms_gradient_goes_to_the_logits_of_known_atoms_alone(cases):
    batch, output = cases.make("GAW")
    predicted = output.positions.clone().requires_grad_()
    logits = torch.zeros(1, 3, 37, 50, requires_grad=True)
    atom_loss(logits, predicted, batch).sum().backward()
    assert predicted.grad is None
    assert logits.grad is not None
    reached = (logits.grad != 0).any(-1)[0]
    for i, letter in enumerate("GAW"):
        names = {name for name, column in ATOM37_INDEX.items() if reached[i, column]}
        assert names == set(ATOM14[letter])


def test_atoms_of_one_residue_alone_cost_nothing(cases):
    batch, output = cases.make("W")
    logits = random_atom_logits(1, 1)
    assert atom_loss(logits, output.positions, batch).tolist() == [0.0]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("where", ["logits", "coordinates"])
def test_atoms_nan_in_the_prediction_stays_nan_in_its_chain(cases, known, where):
    batch, output = cases.make("DEFYW", "DEFYW")
    logits, predicted = torch.zeros(2, 5, 37, 50), output.positions.clone()
    ring = ATOM14["W"].index("CZ2")
    if where == "logits":
        logits[0, 4, ATOM37_INDEX["CZ2"], 3] = torch.nan
    else:
        predicted[0, 4, ring, 0] = torch.nan
    batch.atom_mask[0, 4, ring] = known
    value = atom_loss(logits, predicted, batch)
    assert value.isnan().tolist() == [True, False]
    assert value[1].item() == pytest.approx(math.log(50))
