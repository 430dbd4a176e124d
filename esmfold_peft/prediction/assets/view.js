// The 3D view of a prediction's page, by 3Dmol.js.

// A cartoon needs some residues to follow a chain through.
const SHORTEST_CARTOON = 4;

/** Shows the structure in an element; null where the browser cannot draw in three dimensions. */
function startView(element, protein, choose) {
  let viewer;
  try {
    viewer = $3Dmol.createViewer(element, { backgroundColor: css("--panel"), hoverDuration: 60 });
    viewer.addModel(protein.pdb, "pdb");
  } catch {
    return null;
  }
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", "Predicted structure in 3D");
  const pick = (atom) => choose(protein.placeOf(atom.chain, atom.resi));
  viewer.setHoverable({}, true, pick, () => {});
  viewer.setClickable({}, true, pick);
  return { viewer, protein, mark: [] };
}

/** Colours the structure "plddt" (the B-factors of the file) or "chain". */
function paint(view, by) {
  const { viewer, protein } = view;
  protein.chains.forEach(({ name, length, colour }) => {
    const colorfunc = (atom) => (by === "chain" ? colour : protein.band(atom.b));
    const style = length < SHORTEST_CARTOON ? { stick: { colorfunc } } : { cartoon: { colorfunc } };
    viewer.setStyle({ chain: name }, style);
  });
  viewer.render();
}

/** Turns to all of the structure; 3Dmol.js fits it to the height alone. */
function fit({ viewer }, { clientWidth, clientHeight }) {
  viewer.zoomTo();
  viewer.zoom(Math.min(1, clientWidth / clientHeight));
  viewer.render();
}

/** Puts a ball on the Cα of each chosen residue, and none elsewhere. */
function markResidues(view, places) {
  const { viewer, protein } = view;
  view.mark.forEach((shape) => viewer.removeShape(shape));
  view.mark = places.flatMap((place) => {
    const { chain, number } = protein.residue(place);
    const [atom] = viewer.selectedAtoms({ chain, resi: number, atom: "CA" });
    return atom ? [viewer.addSphere({ center: atom, radius: 1.4, color: css("--mark") })] : [];
  });
  viewer.render();
}
