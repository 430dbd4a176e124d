"""The Python interface: a model that folds a sequence."""

from esmfold_peft.errors import UserError
from esmfold_peft.model.inference import Failed
from esmfold_peft.prediction.complexes import query, read_sequence
from esmfold_peft.prediction.result import Prediction
from esmfold_peft.runs.ready import ReadyModel


class Predictor(ReadyModel):
    """A model on its device that reads sequences as people write them."""

    def fold(
        self,
        sequence: str,
        *,
        name: str = "prediction",
        num_recycles: int | None = None,
        seed: int = 0,
    ) -> Prediction:
        """Folds one sequence.

        Args:
            sequence: one-letter codes, in either case; ":" between the chains of a complex. B, J,
                O, U and Z are read as X.
            name: of the files that `Prediction.save` writes.
            num_recycles: passes after the first; None takes the model's.
            seed: 0 folds the sequence as it is; any other number masks a random 15 % of its
                residues in the language model.

        Raises:
            UserError: the sequence has no residues or does not fit into memory, or a number is
                less than 0.
        """
        for name_of, number in (("num_recycles", num_recycles), ("seed", seed)):
            if number is not None and number < 0:
                raise UserError(f"{name_of}: {number} is less than 0")
        chains = read_sequence(sequence)
        found = next(self.fold_all([query(name, chains, seed)], recycles=num_recycles))
        if isinstance(found, Failed):
            raise UserError(f"{name}: {found.reason}")
        return Prediction.from_folded(name, "", chains, found)


load = Predictor.load
