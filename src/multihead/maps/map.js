// The chosen map on a canvas, and the scale of its colours.
let frame = null;  // where the map's cells lie, in CSS pixels

function drawMap() {
  const canvas = byId("map"), context = canvas.getContext("2d");
  const font = "12px system-ui, 'DejaVu Sans', sans-serif", slope = Math.PI / 3;
  context.font = font;
  const widest = (words) => Math.max(...words.map((word) => context.measureText(short(word)).width));
  const left = widest(queries) + 8, rise = widest(keys);
  const top = rise * Math.sin(slope) + 12, right = rise * Math.cos(slope) + 4;
  const room = canvas.parentElement.clientWidth - left - right;
  const cell = Math.max(12, Math.min(26, Math.floor(room / S)));
  const width = left + cell * S + right, height = top + cell * L + 2;
  const ratio = devicePixelRatio || 1, style = getComputedStyle(document.body);
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.font = font;
  context.textBaseline = "middle";
  const small = thumbnailOf(state.layer, state.head).button.firstChild;
  context.imageSmoothingEnabled = false;
  context.drawImage(small, left, top, cell * S, cell * L);
  context.fillStyle = style.color;
  context.textAlign = "right";
  queries.forEach((word, i) => {
    context.fillText(short(word), left - 5, top + (i + 0.5) * cell);
  });
  context.textAlign = "left";
  keys.forEach((word, j) => {
    context.save();
    context.translate(left + (j + 0.5) * cell, top - 6);
    context.rotate(-slope);
    context.fillText(short(word), 0, 0);
    context.restore();
  });
  context.strokeStyle = style.getPropertyValue("--line");
  context.strokeRect(left, top, cell * S, cell * L);
  context.strokeStyle = style.getPropertyValue("--mark");
  context.lineWidth = 2;
  context.strokeRect(left, top + looking() * cell, cell * S, cell);
  frame = { left, top, cell };
  canvas.setAttribute("aria-label", `${byId("chosen").textContent}: ${L} rows, ${S} columns. `
    + "The same numbers are in the table below.");
}

function cellAt(event) {
  const j = Math.floor((event.offsetX - frame.left) / frame.cell);
  const i = Math.floor((event.offsetY - frame.top) / frame.cell);
  return i >= 0 && i < L && j >= 0 && j < S ? [i, j] : null;
}

function drawScale() {
  byId("ramp").style.background =
    `linear-gradient(to right, ${colours.filter((_, i) => i % 15 === 0).map(css).join(", ")})`;
  byId("even").textContent = `Colour: how many times its even share of 1/${S} = ${percent(1 / S)} `
    + "a weight is. A head that looks everywhere alike has no colour.";
  const ticks = [], step = S > 40 ? 4 : 2;
  for (let n = 1; n * 1.4 < S; n *= step) ticks.push(n);
  byId("ticks").replaceChildren();
  for (const n of [...ticks, S]) {
    const at = S > 1 ? 100 * Math.log(n) / Math.log(S) : 0;
    element(byId("ticks"), "span", `${n} ×`).style.left = `${at}%`;
  }
}
