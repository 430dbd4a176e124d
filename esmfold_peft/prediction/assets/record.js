// The page of one prediction: reads its data and connects sequence, map and 3D view.

const NAMES = {
  A: "Ala", R: "Arg", N: "Asn", D: "Asp", C: "Cys", Q: "Gln", E: "Glu", G: "Gly", H: "His", I: "Ile", L: "Leu",
  K: "Lys", M: "Met", F: "Phe", P: "Pro", S: "Ser", T: "Thr", W: "Trp", Y: "Tyr", V: "Val", X: "unknown",
};
const byId = (id) => document.getElementById(id);

/** What the page shows; residues of all chains are counted from 0, one chain after the other. */
function readProtein() {
  const data = JSON.parse(byId("data").textContent);
  let count = 0;
  const chains = data.chains.map(({ name, sequence, colour }) => {
    const start = count;
    count += sequence.length;
    return { name, sequence, colour, start, length: sequence.length };
  });
  const residue = (place) => {
    const chain = chains.findLast(({ start }) => start <= place);
    return { chain: chain.name, number: place - chain.start + 1, letter: chain.sequence[place - chain.start] };
  };
  const placeOf = (chain, number) => chains.find(({ name }) => name === chain).start + number - 1;
  const band = (value) => data.bands.find(({ above }) => value > above).colour;
  return { ...data, chains, count, residue, placeOf, band, pae: data.pae && decoded(data.pae) };
}

function decoded({ base64, ...scale }) {
  return { ...scale, values: Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)) };
}

const protein = readProtein();
const several = protein.chains.length > 1;
const image = protein.pae && paeImage(protein.pae, protein.count);
let [chosen, pair, view] = [[], null, null];

function nameOf(place) {
  const { chain, number, letter } = protein.residue(place);
  return `${several ? `${chain} ` : ""}${NAMES[letter] ?? letter} ${number}`;
}

function draw() {
  drawPlddt(byId("plddt"), protein, chosen);
  if (image) drawPae(byId("pae"), image, protein, pair);
}

/** Marks residues in all three views: one, or a pair of the map. */
function choose(places, ofMap = null) {
  if (String(places) === String(chosen) && String(ofMap) === String(pair)) return;
  [chosen, pair] = [places, ofMap];
  const texts = places.map((place) => `${nameOf(place)}: pLDDT ${protein.plddt[place].toFixed(1)}`);
  byId("chosen").textContent = texts.join(", ");
  byId("plddt").setAttribute("aria-valuenow", (places[0] ?? 0) + 1);
  byId("plddt").setAttribute("aria-valuetext", texts[0] ?? "none chosen");
  if (image) byId("chosen-pair").textContent = pair ? pairText(...pair) : "";
  requestAnimationFrame(() => {
    draw();
    if (view) markResidues(view, chosen);
  });
}

function pairText(aligned, scored) {
  const error = protein.pae.values[aligned * protein.count + scored] / protein.pae.perAngstrom;
  return `${nameOf(scored)} seen from ${nameOf(aligned)}: ${error.toFixed(1)} Å`;
}

function watchPlddt(canvas) {
  const pointed = ({ offsetX }) => {
    const area = plotArea(canvas, PLDDT_ROOM, protein.count);
    const place = residueAt(offsetX, area.left, area.step, protein.count);
    if (place !== null) choose([place]);
  };
  canvas.addEventListener("pointermove", pointed);
  canvas.addEventListener("pointerdown", pointed);
  canvas.addEventListener("keydown", (event) => {
    const now = chosen[0] ?? -1;
    const end = protein.count - 1;
    const places = { ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1, PageUp: now + 10, PageDown: now - 10, Home: 0, End: end };
    if (!(event.key in places)) return;
    event.preventDefault();
    choose([Math.min(Math.max(places[event.key], 0), end)]);
  });
}

function watchPae(canvas) {
  const pointed = ({ offsetX, offsetY }) => {
    const area = plotArea(canvas, PAE_ROOM, protein.count);
    const column = residueAt(offsetX, area.left, area.step, protein.count);
    const row = residueAt(offsetY, area.top, area.step, protein.count);
    if (row !== null && column !== null) choose([...new Set([row, column])], [row, column]);
  };
  canvas.addEventListener("pointermove", pointed);
  canvas.addEventListener("pointerdown", pointed);
}

function watchView() {
  byId("turn-back").addEventListener("click", () => fit(view, byId("view")));
  document.querySelectorAll("input[name=colour]").forEach((input) => {
    input.addEventListener("change", () => {
      paint(view, input.value);
      byId("key-plddt").hidden = input.value === "chain";
      byId("key-chain").hidden = input.value !== "chain";
    });
  });
}

function startStructure() {
  const element = byId("view");
  if (!protein.pdb) return;
  element.replaceChildren();
  view = startView(element, protein, (place) => choose([place]));
  if (!view) {
    element.replaceChildren(byId("no-view").content.cloneNode(true));
    return;
  }
  byId("view-tools").hidden = false;
  paint(view, "plddt");
  fit(view, element);
  watchView();
}

watchPlddt(byId("plddt"));
if (image) watchPae(byId("pae"));
draw();
startStructure();
new ResizeObserver(() => requestAnimationFrame(draw)).observe(document.body);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  draw();
  if (view) view.viewer.setBackgroundColor(css("--panel"));
});
