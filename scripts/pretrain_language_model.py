"""Trains an ESM-2 on sequences with masked residues: from scratch, or further from given weights.

    python scripts/pretrain_language_model.py family.fasta.gz --held-out held_out.fasta \
        --weights esm2_t12_35M_UR50D.pt --output runs/esm2_family
    python scripts/pretrain_language_model.py uniref50.fasta.gz --held-out held_out.fasta \
        --layers 6 --width 160 --heads 10 --output runs/esm2_nano

The first adapts a published model to a protein family before `esmfold-peft train` uses it; the
second starts a small model at random. Both follow ESM-2 (Lin et al. 2023, appendix A.2): 15 % of
the residues are chosen, of which 80 % are masked, 10 % replaced by a random amino acid and 10 %
kept; longer chains are cropped at random; the head shares its matrix with the embedding; AdamW
(0.9, 0.98), weight decay 0.01; after the warm-up the learning rate falls to a tenth in a straight
line.

--output receives esm2.pt in the layout of the official files but without the head for contacts,
which `train --model.language_model.weights` and fair-esm's `load_model_and_alphabet_core` read;
metrics.csv with the perplexity of chosen residues of the held-out sequences; and checkpoint.pt,
from which the same command resumes. The result depends on the settings and on --devices, not on
where a run was stopped. In metrics.csv, `tokens` counts those of the first device for each.

Exit codes: 0 done, 2 wrong usage or files, 130 stopped by Ctrl-C.
"""

import math
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from downloading import OneLineParser, ended
from esm.modules import RobertaLMHead
from jaxtyping import Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from esmfold_peft.adapters.base import AttentionShape
from esmfold_peft.console import report
from esmfold_peft.disk.csv_text import table_text
from esmfold_peft.disk.files import make_folder, write_atomically
from esmfold_peft.errors import UserError
from esmfold_peft.model.language_model import ALPHABET, LanguageModel
from esmfold_peft.protein.fasta import read_fasta
from esmfold_peft.protein.residues import AATYPE, RESIDUES, UNKNOWN
from esmfold_peft.weights.esm2_weights import load_esm2
from esmfold_peft.weights.layouts import hugging_face_settings, official_settings, read_published
from esmfold_peft.weights.merged_files import Esm2File, read_esm2_file, write_fair_esm

CHOSEN, MASKED, REPLACED = 0.15, 0.8, 0.1
_DECIDING = (
    *("fasta", "weights", "layers", "width", "heads", "steps", "batch_size", "crop", "lr"),
    *("warmup_steps", "seed", "devices"),
)
"""Settings that decide the result."""
_COLUMNS = ["step", "tokens", "loss", "perplexity", "learning_rate", "seconds"]
_HEAD = "lm_head."
_AT_ONCE = 32
"""Held-out sequences at a time."""
_FEWEST = 8
"""Shorter sequences are skipped."""


def main() -> int:
    """Runs the command line."""
    return ended("pretrain_language_model", lambda: _pretrain(_arguments()))


def _arguments() -> Namespace:
    parser = OneLineParser(description=__doc__.splitlines()[0])
    parser.add_argument("fasta", type=Path, nargs="+", help="training sequences")
    parser.add_argument("--held-out", type=Path, required=True, help="FASTA file; never trained on")
    parser.add_argument("--output", type=Path, required=True, help="folder to fill or to resume")
    parser.add_argument("--weights", type=Path, help="start from this ESM-2 (.pt or Hugging Face)")
    for name, value in (("layers", 6), ("width", 160), ("heads", 10)):
        parser.add_argument(f"--{name}", type=int, default=value, help="without --weights")
    parser.add_argument("--steps", type=int, default=10_000, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=64, help="sequences a step, all devices")
    parser.add_argument("--crop", type=int, default=1024, help="longest stretch of a sequence")
    parser.add_argument("--lr", type=float, default=4e-4, help="highest learning rate")
    parser.add_argument("--warmup-steps", type=int, default=2000)
    parser.add_argument("--save-every", type=int, default=1000, help="steps between two savings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--devices", type=int, default=1, help="processes, a device each")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "gpu"), default="auto")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="bf16")
    parser.add_argument("--half", action="store_true", help="write esm2.pt in float16")
    return parser.parse_args()


class MaskedLanguageModel(nn.Module):
    """ESM-2 with fair-esm's head for masked residues."""

    def __init__(self, lm: LanguageModel) -> None:
        super().__init__()
        self.lm = lm
        self.lm_head = RobertaLMHead(lm.shape.width, len(ALPHABET), lm.embed_tokens.weight)

    def forward(self, batch: "MaskedBatch") -> tuple[Float[Tensor, ""], int]:
        """The summed cross entropy of the chosen residues, and their number."""
        levels = self.lm(batch.given, batch.mask, masked=batch.masked)
        logits = self.lm_head(levels[:, :, -1][batch.chosen])
        targets = self.lm.token_of_aatype[batch.aatype[batch.chosen]]
        return F.cross_entropy(logits.float(), targets, reduction="sum"), len(targets)

    def load(self, file: Esm2File) -> None:
        """Takes the weights of an ESM-2, and those of its head if the file has it."""
        load_esm2(self.lm, file.path)
        if "lm_head.weight" in file.tensors:
            raise UserError(f"{file.path}: the head's matrix is not the embedding; not an ESM-2")
        if file.has_head:
            own = {n: t for n, t in file.tensors.items() if n.startswith(_HEAD)}
            given = {name.removeprefix(_HEAD): tensor for name, tensor in own.items()}
            self.lm_head.load_state_dict({"weight": self.lm.embed_tokens.weight} | given)

    def file(self, half: bool) -> Esm2File:
        """The model and its head, ready for `write_fair_esm`."""
        head = self.lm_head.state_dict(prefix=_HEAD)
        del head[f"{_HEAD}weight"]
        tensors = {name: t.cpu() for name, t in (*self.lm.official_tensors(), *head.items())}
        if half:
            tensors = {name: tensor.half() for name, tensor in tensors.items()}
        shape, frequencies = self.lm.shape, self.lm.rotary_frequencies.cpu()
        settings, config = Namespace(**official_settings(shape)), hugging_face_settings(shape)
        return Esm2File(Path("esm2.pt"), shape, tensors, frequencies, settings, config)


class MaskedBatch:
    """Sequences with some residues hidden, which the model must predict.

    Attributes:
        aatype: the residues.
        mask: which places are residues.
        chosen: residues to predict.
        masked: those of them that are read as <mask>.
        given: the residues as read; some of the chosen ones are replaced.
    """

    def __init__(self, crops: list[np.ndarray], rng: np.random.Generator, device: object) -> None:
        shape = len(crops), max(map(len, crops))
        aatype, mask = np.full(shape, UNKNOWN), np.zeros(shape, bool)
        for row, crop in enumerate(crops):
            aatype[row, : len(crop)], mask[row, : len(crop)] = crop, True
        chosen = (rng.random(shape) < CHOSEN) & (aatype != UNKNOWN)
        kind = rng.random(shape)
        replaced = chosen & (kind >= 1 - REPLACED)
        given = np.where(replaced, rng.integers(len(RESIDUES), size=shape), aatype)
        arrays = aatype, mask, chosen, chosen & (kind < MASKED), given
        tensors = (torch.from_numpy(array).to(device) for array in arrays)
        self.aatype, self.mask, self.chosen, self.masked, self.given = tensors


def _pretrain(args: Namespace) -> int:
    """Trains from the newest checkpoint, or from the start, and writes the model."""
    if args.batch_size % args.devices:
        raise UserError(f"--batch-size: {args.batch_size} is no multiple of --devices")
    sequences, held_out = _sequences(args.fasta), _sequences([args.held_out])
    shape = AttentionShape(args.layers, args.width, args.heads)
    if args.weights:
        shape = read_published(args.weights, "ESM-2").shape() or shape
    fabric = Fabric(
        accelerator=args.accelerator,
        devices=args.devices,
        precision="bf16-mixed" if args.precision == "bf16" else "32-true",
    )
    fabric.launch()
    fabric.seed_everything(args.seed, verbose=False)  # of the head
    whole = MaskedLanguageModel(LanguageModel.random(shape, seed=args.seed))
    if args.weights:
        whole.load(read_esm2_file(args.weights, shape))
    adam = torch.optim.AdamW(whole.parameters(), args.lr, (0.9, 0.98), weight_decay=0.01)
    model, optimizer = fabric.setup(whole, adam)

    make_folder(args.output)
    state = {"model": model, "optimizer": optimizer, "step": 0, "tokens": 0, "rows": []}
    state["settings"] = {name: str(getattr(args, name)) for name in _DECIDING}
    checkpoint = args.output / "checkpoint.pt"
    if checkpoint.exists():
        _require_same_run(checkpoint, state["settings"])
        fabric.load(checkpoint, state)
        fabric.print(f"{args.output}: resumed at step {state['step']} of {args.steps}")
    before = state["rows"][-1][-1] if state["rows"] else 0.0
    started, losses = time.monotonic() - before, []
    for step in range(state["step"], args.steps):
        rate = args.lr * _factor(step, args.warmup_steps, args.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = _training_batch(sequences, step, args, fabric)
        total, count = model(batch)
        loss = total / max(count, 1)
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=1.0)  # Lin et al. do not mention it
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        state["step"], state["tokens"] = step + 1, state["tokens"] + int(batch.mask.sum())
        if state["step"] % args.save_every and state["step"] < args.steps:
            continue
        found, spent = _perplexity(model, held_out, args, fabric), time.monotonic() - started
        seen, mean = state["tokens"] * fabric.world_size, float(torch.stack(losses).mean())
        state["rows"].append([state["step"], seen, mean, found, rate, round(spent, 1)])
        losses.clear()
        fabric.print(f"step {state['step']} of {args.steps}: perplexity {found:.2f}, {spent:.0f} s")
        fabric.save(checkpoint.with_suffix(".new"), state)
        if fabric.is_global_zero:
            write_atomically(args.output / "metrics.csv", table_text(_COLUMNS, state["rows"]))
            write_fair_esm(whole.file(args.half), args.output, "esm2")
            # Last: a run that is killed before repeats its steps, and writes the others again.
            checkpoint.with_suffix(".new").replace(checkpoint)
    return 0


def _require_same_run(checkpoint: Path, settings: dict[str, str]) -> None:
    """Refuses to resume a run with settings that would make another one of it."""
    found = torch.load(checkpoint, map_location="cpu")["settings"]
    for name, value in settings.items():
        if found[name] != value:
            raise UserError(
                f"--{name.replace('_', '-')}: {checkpoint.parent} was started with {found[name]},"
                f" not {value}; choose another folder"
            )


def _sequences(paths: list[Path]) -> list[np.ndarray]:
    """The chains of FASTA files as residue numbers; reports records that cannot be used."""
    records = read_fasta(paths)
    bad = [record.problem for record in records if record.problem]
    chains = [chain for record in records for chain in record.chains if len(chain) >= _FEWEST]
    if bad:
        report(f"{len(bad)} of {len(records)} records skipped, the first: {bad[0]}")
    if not chains:
        raise UserError(f"{paths[0]}: no sequence of {_FEWEST} residues or more")
    return [np.array([AATYPE[letter] for letter in chain], np.uint8) for chain in chains]


def _factor(step: int, warmup: int, steps: int) -> float:
    """The learning rate at a step as a factor on its highest value."""
    if step < warmup:
        return (step + 1) / warmup
    return 1 - 0.9 * (step - warmup) / max(steps - warmup, 1)


def _crop(sequence: np.ndarray, longest: int, rng: np.random.Generator) -> np.ndarray:
    start = rng.integers(max(len(sequence) - longest, 0) + 1)
    return sequence[start : start + longest]


def _training_batch(
    sequences: list[np.ndarray], step: int, args: Namespace, fabric: Fabric
) -> MaskedBatch:
    """This device's share of a step's sequences, which follow from the seed and the step alone."""
    rng = np.random.default_rng([args.seed, step, fabric.global_rank])
    places = rng.integers(len(sequences), size=args.batch_size // fabric.world_size)
    crops = [_crop(sequences[place], args.crop, rng) for place in places]
    return MaskedBatch(crops, rng, fabric.device)


@torch.no_grad()
def _perplexity(
    model: nn.Module, sequences: list[np.ndarray], args: Namespace, fabric: Fabric
) -> float:
    """The perplexity of chosen residues, the same ones in every call."""
    rng = np.random.default_rng(0)
    total, count = torch.zeros(2, dtype=torch.float64)
    crops = sorted((_crop(sequence, args.crop, rng) for sequence in sequences), key=len)
    for start in range(0, len(crops), _AT_ONCE):
        batch = MaskedBatch(crops[start : start + _AT_ONCE], rng, fabric.device)
        found, number = model(batch)
        total, count = total + found.cpu(), count + number
    return math.exp(total / count)


if __name__ == "__main__":
    raise SystemExit(main())
