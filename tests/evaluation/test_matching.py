"""Which residue belongs to which: by sequence, number, alignment, and what is refused."""

import numpy as np
import pytest

from esmfold_peft.evaluation.matching import SequenceMismatchError, match_residues
from tests.evaluation.predictions import chain

PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"


def numbers(first: int, last: int) -> list[str]:
    return [str(k) for k in range(first, last + 1)]


def places(reference, predicted, method="auto") -> tuple[list[int], str]:
    found = match_residues(reference, predicted, method)
    return found.places.tolist(), found.method


def test_equal_sequences_match_residue_by_residue_whatever_their_numbers():
    n = len(PROTEIN)
    expected = list(range(n)), "sequence"
    assert places(chain(PROTEIN, numbers(501, 500 + n)), chain(PROTEIN)) == expected
    assert places(chain(PROTEIN), chain(PROTEIN, ["9"] * n), "sequence") == expected


def test_an_unknown_residue_of_the_reference_is_any_letter():
    true = chain("MKX" + PROTEIN[3:])
    assert places(true, chain(PROTEIN))[1] == "sequence"
    assert match_residues(true, chain(PROTEIN)).identity == 1
    assert places(true, chain(PROTEIN), "alignment")[0] == list(range(len(PROTEIN)))


def test_a_file_of_atoms_alone_is_matched_by_its_numbers():
    # Residues 5 to 20, of which 12 is missing; the reference is numbered alike.
    kept = [k for k in range(4, 20) if k != 11]
    predicted = chain(
        "".join(PROTEIN[k] for k in kept), [str(k + 1) for k in kept], [k - 4 for k in kept]
    )
    expected = [kept.index(k) if k in kept else -1 for k in range(len(PROTEIN))]
    assert places(chain(PROTEIN), predicted) == (expected, "number")
    assert places(chain(PROTEIN), predicted, "sequence") == (expected, "sequence")
    # The author of the reference counts otherwise: the numbers are places in the sequence.
    assert places(chain(PROTEIN, numbers(101, 133)), predicted) == (expected, "sequence")


def test_insertion_codes_are_numbers_of_their_own():
    true = chain("GASGASHW", ["51", "52", "52A", "52B", "53", "54", "55", "56"])
    predicted = chain("GAGASHW", ["51", "52", "52b", "53", "54", "55", "56"])
    assert places(true, predicted) == ([0, 1, -1, 2, 3, 4, 5, 6], "number")


def test_label_numbers_with_a_gap_are_places_in_the_sequence():
    kept = [k for k in range(len(PROTEIN)) if k not in (0, 1, 8)]
    sequence = "".join(PROTEIN[k] for k in kept)
    predicted = chain(sequence, numbers(301, 300 + len(kept)), kept)
    expected = [kept.index(k) if k in kept else -1 for k in range(len(PROTEIN))]
    assert places(chain(PROTEIN), predicted) == (expected, "sequence")


def test_a_prediction_of_what_the_reference_resolves():
    true = chain(PROTEIN, ["", "", *numbers(3, 31), "", ""])
    predicted = chain(PROTEIN[2:31])
    assert places(true, predicted, "sequence")[0] == [-1, -1, *range(29), -1, -1]


def test_what_has_no_common_numbers_is_aligned():
    # A tag in front, two residues lacking inside, other numbers.
    predicted = chain("GSHM" + PROTEIN[:10] + PROTEIN[12:], numbers(700, 734))
    found = match_residues(chain(PROTEIN), predicted)
    assert found.method == "alignment"
    assert found.identity == 1
    expected = [*range(4, 14), -1, -1, *range(14, 14 + len(PROTEIN) - 12)]
    # Which of equal neighbours lack is not to be known: Q at 9, R at 10 and Q at 11.
    assert np.sum(found.places != np.array(expected)) <= 2
    assert (found.places < 0).sum() == 2


def test_numbers_that_count_from_elsewhere_say_where_a_gap_is():
    # One of two equal letters lacks: an alignment could not tell which.
    true = chain("MKTAYGGIAKQRWWS", ["", *(str(k) for k in range(40, 54))])
    for lacking in (5, 6):
        kept = [k for k in range(2, 15) if k != lacking]
        sequence = "".join(true.sequence[k] for k in kept)
        predicted = chain(sequence, [str(k + 700) for k in kept], [k - 2 for k in kept])
        expected = [kept.index(k) if k in kept else -1 for k in range(15)]
        assert places(true, predicted) == (expected, "alignment")


def test_a_point_mutation_is_aligned_and_counted():
    found = match_residues(chain(PROTEIN), chain(PROTEIN[:9] + "W" + PROTEIN[10:]))
    assert found.method == "alignment"
    assert found.identity == pytest.approx(1 - 1 / len(PROTEIN))
    with pytest.raises(
        SequenceMismatchError, match=r"differ first at residue 10 \(W instead of R\)"
    ):
        match_residues(chain(PROTEIN), chain(PROTEIN[:9] + "W" + PROTEIN[10:]), "sequence")


@pytest.mark.parametrize("method", ["auto", "sequence", "number", "alignment"])
def test_another_protein_is_refused_and_shown(method: str):
    other = "GSHMWWLEDDPCCNGTGWWPPDDHHCNNGTVVV"
    with pytest.raises(SequenceMismatchError, match="not the reference's sequence") as caught:
        match_residues(chain(PROTEIN), chain(other), method)
    lines = caught.value.alignment.splitlines()
    assert lines[0].startswith("reference       1 ")
    assert lines[2].startswith("prediction      1 ")
    letters = "".join(line.split()[2] for line in lines if line.startswith("prediction"))
    assert letters.replace("-", "") == other


def test_a_domain_may_be_aligned_and_a_common_tag_is_no_match():
    domain = match_residues(chain(PROTEIN * 4), chain(PROTEIN[5:30], numbers(900, 924)))
    assert (domain.places >= 0).sum() == 25
    tag = "MGSSHHHHHHSSGLVPRGSH"
    with pytest.raises(SequenceMismatchError):
        match_residues(chain(tag + PROTEIN * 4), chain(tag + "GDDEWPNC" * 16))


def test_numbers_that_carry_other_letters_are_refused():
    shifted = chain(PROTEIN, numbers(2, 1 + len(PROTEIN)))
    with pytest.raises(SequenceMismatchError, match="the numbers are not"):
        match_residues(chain(PROTEIN), shifted, "number")
    with pytest.raises(SequenceMismatchError, match="0 of 0 of the residues with equal numbers"):
        match_residues(chain(PROTEIN), chain(PROTEIN, numbers(500, 532)), "number")


def test_an_alignment_is_shown_from_its_first_difference():
    letters = list("ACDEFGHIKLMNPQRSTVY")
    long = "".join(np.random.default_rng(0).choice(letters, size=200))
    changed = long[:150] + "W" * 50
    with pytest.raises(SequenceMismatchError) as caught:
        match_residues(chain(long), chain(changed), "sequence")
    first = caught.value.alignment.splitlines()[0]
    assert first.split()[:2] == ["reference", "121"]


@pytest.mark.parametrize("first", [True, False])
def test_an_alignment_prefers_the_residues_that_are_resolved(first: bool):
    # One of two copies is resolved; two residues inside lack, so that no shift of numbers fits.
    copies = [[""] * len(PROTEIN), numbers(1, len(PROTEIN))]
    true = chain(PROTEIN + PROTEIN, [*copies[first], *copies[not first]])
    kept = [k for k in range(len(PROTEIN)) if k not in (9, 20)]
    predicted = chain("".join(PROTEIN[k] for k in kept), numbers(1, len(kept)))
    found = match_residues(true, predicted)
    matched = np.flatnonzero(found.places >= 0)
    assert (found.method, len(matched), found.identity) == ("alignment", len(kept), 1)
    assert true.modelled[matched].all()
    # Not where that explains fewer letters: half of the prediction would have no place.
    half = chain(PROTEIN, [*numbers(1, 16), *[""] * (len(PROTEIN) - 16)])
    assert (match_residues(half, predicted).places >= 0).sum() == len(kept)


def test_a_repeat_that_fits_in_several_places_is_noted():
    true = chain("GPP" * 10, numbers(1, 30))
    for method in ("auto", "sequence", "alignment"):
        found = match_residues(true, chain("GPP" * 9, numbers(501, 527)), method)
        assert found.places.tolist() == [*range(27), -1, -1, -1]
        assert found.note == "several placements fit, the first is scored"
    assert match_residues(true, chain("GPP" * 9, numbers(4, 30))).note == ""  # its own numbers
    assert match_residues(chain(PROTEIN), chain(PROTEIN[5:30], numbers(900, 924))).note == ""


@pytest.mark.parametrize(("changed", "accepted"), [(9, True), (15, False)])
def test_85_percent_of_equal_letters_are_another_protein(changed: int, accepted: bool):
    letters = list(PROTEIN * 3)
    for k in np.linspace(3, len(letters) - 4, changed).astype(int):
        letters[k] = "W"
    predicted = chain("".join(letters))
    if accepted:
        assert match_residues(chain(PROTEIN * 3), predicted).identity == pytest.approx(10 / 11)
        return
    with pytest.raises(SequenceMismatchError, match="84 of 99 aligned residues agree"):
        match_residues(chain(PROTEIN * 3), predicted)
