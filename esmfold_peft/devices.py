"""Which device a command runs on."""

import torch

from esmfold_peft.errors import UserError


def choose_device(accelerator: str) -> torch.device:
    """The device that a setting names.

    Args:
        accelerator: cpu, gpu, or auto (a GPU if there is one).

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("accelerator: gpu is asked for, and PyTorch finds none")
    return torch.device("cuda")
