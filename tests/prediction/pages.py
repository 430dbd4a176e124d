"""A prediction for pages: a real chain with pLDDT of all bands; and how a browser reads a page."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from esmfold_peft.prediction.result import Prediction
from esmfold_peft.protein.read import read_structure

FILES = ("1oai_A.pdb", "1oai_A.cif")


def real_prediction(example: Path, name: str = "1oai_A", header: str = "1oai_A x") -> Prediction:
    """A chain of 59 residues as if it were predicted."""
    chain = read_structure(example / "held_out" / "1oai_A.cif.gz")
    count = len(chain)
    plddt = (70 + 28 * np.cos(np.arange(count) / 9)).astype(np.float32)
    return Prediction(
        name=name,
        header=header,
        chains=(chain.sequence,),
        positions=chain.positions,
        atom_mask=chain.atom_mask,
        atom_plddt=np.repeat(plddt[:, None], 37, 1),
        pae=np.random.default_rng(0).uniform(0, 31.75, (count, count)).astype(np.float32),
        largest_pae=31.75,
        ptm=0.81,
    )


class Page(HTMLParser):
    """A page as a browser reads it.

    Attributes:
        tags: names of all elements, in order.
        attributes: (element, attribute, value) of all.
        texts: (tag before it, text), the tag of an end with its slash.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.texts.append((tag, ""))
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        self.texts.append((f"/{tag}", ""))

    def handle_data(self, data):
        tag, text = self.texts[-1] if self.texts else ("", "")
        self.texts[-1:] = [(tag, text + data)]

    def scripts(self) -> list[str]:
        return [text for tag, text in self.texts if tag == "script"]

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]
