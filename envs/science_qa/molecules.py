"""Properties of a molecule, computed from its SMILES by RDKit."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rdkit.Chem import Mol

MAX_CHARS = 1500
MAX_RINGS = 80  # the search for rings grows steeply with them; C60 has 31 independent ones
# RDKit wraps numbers that do not fit: [C+99999999] would become an anion.
_LONG_NUMBER = re.compile(r"\d{4}|[-+]\d{3}|%\(\d{4}")


class SmilesProblem(ValueError):  # noqa: N818 - the text's problem, not an error here
    """A SMILES that describes no molecule that we are willing to look at."""


def describe(smiles: str) -> str:
    """Formula, mass, charge, atoms, rings, and what medicinal chemists count and estimate.

    Raises:
        SmilesProblem: not SMILES, too large, or a valence that cannot be.
    """
    from rdkit import rdBase
    from rdkit.Chem import Descriptors, rdMolDescriptors

    text = smiles.strip()
    _refuse(text)
    with rdBase.BlockLogs():
        mol = _molecule(text)
        weight = Descriptors.MolWt(mol)  # type: ignore[attr-defined] # is made at run time
        logp, _ = rdMolDescriptors.CalcCrippenDescriptors(mol)
        return (
            f"{rdMolDescriptors.CalcMolFormula(mol)}, {weight:.3f} g/mol, "
            f"atoms {rdMolDescriptors.CalcNumAtoms(mol)} "
            f"(heavy {rdMolDescriptors.CalcNumHeavyAtoms(mol)}), "
            f"rings {rdMolDescriptors.CalcNumRings(mol)} "
            f"(aromatic {rdMolDescriptors.CalcNumAromaticRings(mol)}), "
            f"logP {logp:.2f}, TPSA {rdMolDescriptors.CalcTPSA(mol):.1f}, "
            f"H-bond donors {rdMolDescriptors.CalcNumHBD(mol)}, "
            f"acceptors {rdMolDescriptors.CalcNumHBA(mol)}, "
            f"rotatable bonds {rdMolDescriptors.CalcNumRotatableBonds(mol)}"
        )


def _refuse(text: str) -> None:
    if len(text) > MAX_CHARS:
        raise SmilesProblem(f"a SMILES of {len(text)} characters; at most {MAX_CHARS} are allowed")
    # After a blank RDKit expects a name or an extension, and drops what it does not know.
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise SmilesProblem(f"{text[:40]!r} is not SMILES; write a molecule like CC(=O)O")
    if _LONG_NUMBER.search(text):
        raise SmilesProblem("a number in the SMILES is too large")


def _molecule(text: str) -> "Mol":
    from rdkit import Chem

    mol = Chem.MolFromSmiles(text, sanitize=False)
    if mol is None:
        raise SmilesProblem(
            f"{text[:80]!r} cannot be read as SMILES (formulas and names are none): check its "
            "parentheses, brackets and ring numbers"
        )
    rings = mol.GetNumBonds() - mol.GetNumAtoms() + len(Chem.GetMolFrags(mol))
    if rings > MAX_RINGS:
        raise SmilesProblem(f"{rings} independent rings; at most {MAX_RINGS} are allowed")
    problems = Chem.DetectChemistryProblems(mol)
    if problems:
        raise SmilesProblem(f"the molecule cannot exist: {problems[0].Message()}")
    # Read again, with what the first reading left out: aromaticity, implicit hydrogens.
    whole = Chem.MolFromSmiles(text)
    if whole is None or not whole.GetNumAtoms():
        raise SmilesProblem(f"{text[:80]!r} describes no molecule")
    return whole
