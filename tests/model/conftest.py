"""Models of each trunk for tests of dropout, passes and compiling."""

from dataclasses import replace

import pytest
import torch

from tests.tiny import TINY


@pytest.fixture(scope="session")
def shaken(folding_model, tiny):
    """Makes a model of each trunk in training mode, with dropout, in which no weight is zero."""

    def make(trunk, chunk=None):
        model = folding_model(replace(config_of(trunk), chunk=chunk))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        return model.train()

    def config_of(trunk):
        if trunk == "evoformer":
            return replace(TINY.model, evoformer=replace(TINY.model.evoformer, blocks=1))
        esmfold = replace(tiny.esmfold, blocks=1, dropout=0.15)
        return replace(tiny, esmfold=esmfold, structure=TINY.model.structure)

    return make
