// The canvases of a prediction's page: pLDDT along the sequence, and the map of PAE.

const TICK_STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];
const PLDDT_ROOM = { left: 44, right: 18, top: 8, bottom: 42 };
const PAE_ROOM = { left: 56, right: 18, top: 8, bottom: 92 };
// From exact to unknown, dark to light, as in the AlphaFold database.
const GREENS = ["#00441b", "#006d2c", "#238b45", "#41ab5d", "#74c476", "#a1d99b", "#c7e9c0", "#e5f5e0", "#f7fcf5"];

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** A context in CSS pixels whose bitmap has the screen's resolution. */
function cleared(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = "12px system-ui, sans-serif";
  context.lineWidth = 1;
  return context;
}

/** Numbers along an axis, counted from 1 in every chain, at least `apart` pixels from each other. */
function residueTicks(protein, pixels, apart) {
  const step = TICK_STEPS.find((s) => s * pixels >= apart) ?? TICK_STEPS.at(-1);
  return protein.chains.flatMap(({ start, length }) => {
    const count = Math.floor(length / step);
    return Array.from({ length: count }, (_, k) => ({ place: start + (k + 1) * step - 1, text: String((k + 1) * step) }));
  });
}

function write(context, text, x, y, align = "center", baseline = "top", colour = "--faint") {
  context.fillStyle = css(colour);
  context.textAlign = align;
  context.textBaseline = baseline;
  context.fillText(text, x, y);
}

function writeUpwards(context, text, x, y) {
  context.save();
  context.translate(x, y);
  context.rotate(-Math.PI / 2);
  write(context, text, 0, 0);
  context.restore();
}

function stroke(context, colour, x1, y1, x2, y2) {
  context.strokeStyle = colour;
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}

/** The area inside the axes, and how wide a residue is in it. */
function plotArea(canvas, room, count) {
  const width = canvas.clientWidth - room.left - room.right;
  const height = canvas.clientHeight - room.top - room.bottom;
  return { ...room, width, height, step: width / count };
}

function drawPlddt(canvas, protein, chosen) {
  const context = cleared(canvas);
  const area = plotArea(canvas, PLDDT_ROOM, protein.count);
  const at = (value) => area.top + area.height * (1 - value / 100);
  const [faint, line] = [css("--faint"), css("--line")];
  for (const value of [0, 50, 70, 90, 100]) {
    stroke(context, line, area.left, at(value), area.left + area.width, at(value));
    if (value !== 100) write(context, String(value), area.left - 6, at(value), "right", "middle");
  }
  protein.plddt.forEach((value, place) => {
    context.fillStyle = protein.band(value);
    // Whole pixels, or the ground would shine through between neighbours.
    const left = Math.floor(area.left + place * area.step);
    const right = Math.ceil(area.left + (place + 1) * area.step);
    context.fillRect(left, at(value), right - left, at(0) - at(value));
  });
  stroke(context, faint, area.left, at(0), area.left + area.width, at(0));
  drawChainAxis(context, protein, area, at(0));
  writeUpwards(context, "pLDDT", 2, area.top + area.height / 2);
  for (const place of chosen) {
    const x = area.left + (place + 0.5) * area.step;
    stroke(context, css("--mark"), x, area.top, x, at(0));
  }
}

/** The residues' numbers under a plot; in a complex, borders and names of its chains. */
function drawChainAxis(context, protein, area, bottom) {
  const x = (place) => area.left + place * area.step;
  for (const { place, text } of residueTicks(protein, area.step, 44)) {
    stroke(context, css("--faint"), x(place + 0.5), bottom, x(place + 0.5), bottom + 4);
    write(context, text, x(place + 0.5), bottom + 7);
  }
  if (protein.chains.length === 1) {
    write(context, "residue", area.left + area.width / 2, bottom + 24);
    return;
  }
  for (const { name, start, length } of protein.chains) {
    if (start) stroke(context, css("--text"), x(start), area.top, x(start), bottom + 22);
    write(context, `chain ${name}`, x(start + length / 2), bottom + 24, "center", "top", "--text");
  }
}

/** Colour of an error, as a share of the largest, as [red, green, blue]. */
function green(share) {
  const x = Math.min(Math.max(share, 0), 1) * (GREENS.length - 1);
  const k = Math.min(Math.floor(x), GREENS.length - 2);
  const channel = (colour, c) => parseInt(colour.slice(1 + 2 * c, 3 + 2 * c), 16);
  return [0, 1, 2].map((c) => Math.round(channel(GREENS[k], c) * (1 - x + k) + channel(GREENS[k + 1], c) * (x - k)));
}

/** The map as a picture of one pixel for each pair. */
function paeImage(pae, count) {
  const colours = Array.from({ length: 256 }, (_, value) => green(value / pae.perAngstrom / pae.limit));
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = count;
  const context = canvas.getContext("2d");
  const image = context.createImageData(count, count);
  pae.values.forEach((value, k) => image.data.set([...colours[value], 255], 4 * k));
  context.putImageData(image, 0, 0);
  return canvas;
}

function drawPae(canvas, image, protein, pair) {
  canvas.style.height = `${canvas.clientWidth - PAE_ROOM.left - PAE_ROOM.right + PAE_ROOM.top + PAE_ROOM.bottom}px`;
  const context = cleared(canvas);
  const area = plotArea(canvas, PAE_ROOM, protein.count);
  const [right, bottom] = [area.left + area.width, area.top + area.width];
  context.imageSmoothingEnabled = protein.count > area.width;
  context.drawImage(image, area.left, area.top, area.width, area.width);
  context.strokeStyle = css("--faint");
  context.strokeRect(area.left, area.top, area.width, area.width);
  drawPaeAxes(context, protein, area, bottom);
  drawColourBar(context, area, bottom + 54, protein.pae.limit);
  if (pair) {
    const [row, column] = pair.map((place) => (place + 0.5) * area.step);
    stroke(context, css("--mark"), area.left, area.top + row, right, area.top + row);
    stroke(context, css("--mark"), area.left + column, area.top, area.left + column, bottom);
  }
}

function drawPaeAxes(context, protein, area, bottom) {
  const along = (place) => place * area.step;
  for (const { place, text } of residueTicks(protein, area.step, 44)) {
    const middle = along(place + 0.5);
    write(context, text, area.left + middle, bottom + 6);
    write(context, text, area.left - 6, area.top + middle, "right", "middle");
  }
  const several = protein.chains.length > 1;
  for (const { name, start, length } of several ? protein.chains : []) {
    const [border, middle] = [along(start), along(start + length / 2)];
    write(context, name, area.left + middle, bottom + 19, "center", "top", "--text");
    write(context, name, area.left - 30, area.top + middle, "right", "middle", "--text");
    if (!start) continue;
    // The map is light or dark green whatever the scheme, so its borders are black in both.
    stroke(context, "#000", area.left + border, area.top, area.left + border, bottom);
    stroke(context, "#000", area.left, area.top + border, area.left + area.width, area.top + border);
  }
  write(context, "scored residue", area.left + area.width / 2, bottom + 33);
  writeUpwards(context, "aligned residue", 0, area.top + area.width / 2);
}

function drawColourBar(context, area, top, limit) {
  for (let x = 0; x < area.width; x++) {
    context.fillStyle = `rgb(${green(x / area.width)})`;
    context.fillRect(area.left + x, top, 1.3, 10);
  }
  context.strokeStyle = css("--line");
  context.strokeRect(area.left, top, area.width, 10);
  for (let error = 0; error < limit; error += 10) {
    write(context, error ? String(error) : "0 Å", area.left + (error / limit) * area.width, top + 15);
  }
}

/** The residue under the pointer along an axis, or null outside the plot. */
function residueAt(pixel, start, step, count) {
  const place = Math.floor((pixel - start) / step);
  return place >= 0 && place < count ? place : null;
}
