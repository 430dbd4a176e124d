"""Trunks: the blocks between the language model and the structure module."""

from esmfold_peft.model.trunks.base import Stack
from esmfold_peft.model.trunks.esmfold_v1 import EsmfoldStack
from esmfold_peft.model.trunks.openfold import Evoformer

TRUNKS: dict[str, type[Stack]] = {"evoformer": Evoformer, "esmfold_v1": EsmfoldStack}
"""The trunks by the values of model.trunk. A trunk is a file here, its section in `config.model`,
and a line of this table."""
