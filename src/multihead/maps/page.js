// What is chosen, and how: layers, heads and tokens.
const nameOf = (head) => (head === 0 ? "mean" : String(head));
const titleOf = (layer, head) =>
  `Layer ${layer + 1}, ${head === 0 ? "mean of the heads" : `head ${head}`}`;
const state = { layer: 0, head: 1, token: 0, hovered: null };
const current = () => layers[state.layer][state.head];
const looking = () => (state.hovered === null ? state.token : state.hovered);

function paint(element, weight) {
  const colour = colours[stepOf(weight)];
  element.style.background = css(colour);
  element.style.color = inkOn(colour);
}

function element(parent, tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent.append(made);
  return made;
}

// One of several buttons can be reached by Tab, the chosen one; arrow keys go to the others.
function mark(buttons, chosen) {
  buttons.forEach((button, i) => {
    button.setAttribute("aria-pressed", String(i === chosen));
    button.tabIndex = i === chosen ? 0 : -1;
  });
}

const thumbnails = [];  // of { button, layer, head }, row by row
const thumbnailOf = (layer, head) => thumbnails.find((t) => t.layer === layer && t.head === head);

function buildHeads() {
  const most = Math.max(...layers.map((maps) => maps.length));
  const top = element(element(byId("heads"), "thead"), "tr");
  element(top, "td");
  for (let head = 0; head < most; head++) element(top, "th", nameOf(head), { scope: "col" });
  const body = element(byId("heads"), "tbody");
  layers.forEach((maps, layer) => {
    const row = element(body, "tr");
    element(row, "th", `layer ${layer + 1}`, { scope: "row" });
    maps.forEach((_, head) => {
      const label = titleOf(layer, head);
      const attributes = { type: "button", "aria-label": label, title: label };
      const button = element(element(row, "td"), "button", "", attributes);
      element(button, "canvas", "", { width: S, height: L, "aria-hidden": "true" });
      button.addEventListener("click", () => choose(layer, head));
      thumbnails.push({ button, layer, head });
    });
    element(byId("layer"), "option", layer + 1, { value: layer });
  });
  byId("layer").addEventListener("change", (event) => choose(Number(event.target.value), state.head));
  byId("head").addEventListener("change", (event) => choose(state.layer, Number(event.target.value)));
  byId("heads").addEventListener("keydown", (event) => {
    const { layer, head } = state, lastOf = (n) => layers[n].length - 1;
    const moves = {
      ArrowLeft: [layer, head - 1], ArrowRight: [layer, head + 1],
      ArrowUp: [layer - 1, head], ArrowDown: [layer + 1, head],
      Home: [layer, 0], End: [layer, lastOf(layer)],
    };
    const [to, column] = moves[event.key] || [];
    if (to === undefined) return;
    event.preventDefault();
    if (to < 0 || to >= layers.length || column < 0 || column > lastOf(layer)) return;
    choose(to, column);
    thumbnailOf(to, column).button.focus();
  });
}

function paintHeads() {
  for (const { button, layer, head } of thumbnails) {
    const context = button.firstChild.getContext("2d");
    const image = context.createImageData(S, L);
    const drawn = new Uint32Array(image.data.buffer);
    layers[layer][head].forEach((weight, i) => { drawn[i] = pixels[stepOf(weight)]; });
    context.putImageData(image, 0, 0);
  }
}

let tokenButtons = [], seen = [];

function buildTokens() {
  tokenButtons = queries.map((word, i) => {
    const button = element(byId("tokens"), "button", shown(word), { type: "button" });
    button.addEventListener("click", () => pin(i));
    button.addEventListener("focus", () => pin(i));
    button.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse") hover(i);
    });
    return button;
  });
  byId("tokens").addEventListener("pointerleave", () => hover(null));
  byId("tokens").addEventListener("keydown", (event) => {
    const moves = {
      ArrowLeft: state.token - 1, ArrowUp: state.token - 1, ArrowRight: state.token + 1,
      ArrowDown: state.token + 1, Home: 0, End: L - 1,
    };
    const to = moves[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to >= 0 && to < L) tokenButtons[to].focus();
  });
  seen = same ? tokenButtons
    : keys.map((word) => element(byId("keys"), "span", shown(word), { role: "listitem" }));
  for (const word of seen) element(word, "small");
}

function pin(token) {
  state.token = token;
  hover(null);
}

function hover(token) {
  state.hovered = token;
  showToken();
}

function choose(layer, head) {
  state.layer = layer;
  state.head = Math.min(head, layers[layer].length - 1);
  showHead();
}

function showHead() {
  const { layer, head } = state, options = byId("head");
  options.replaceChildren();
  layers[layer].forEach((_, h) => element(options, "option", nameOf(h), { value: h }));
  byId("layer").value = layer;
  options.value = head;
  byId("chosen").textContent = titleOf(layer, head);
  mark(thumbnails.map((t) => t.button), thumbnails.indexOf(thumbnailOf(layer, head)));
  fillNumbers();
  showToken();
}

function showToken() {
  const token = looking(), row = current().subarray(token * S, (token + 1) * S);
  mark(tokenButtons, state.token);
  seen.forEach((word, j) => {
    paint(word, row[j]);
    word.lastChild.textContent = percent(row[j]);
  });
  const order = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, 8);
  const most = order.slice(0, 3).map((j) => `“${shown(keys[j])}” (${j + 1}) ${percent(row[j])}`);
  byId("said").textContent =
    `Token ${token + 1}, “${shown(queries[token])}”, looks most at ${most.join(", ")}.`;
  const body = byId("ranking").tBodies[0];
  body.replaceChildren();
  for (const j of order) {
    const line = element(body, "tr");
    element(line, "th", `${j + 1} ${short(keys[j])}`, { scope: "row" });
    element(line, "td", percent(row[j]));
    element(line, "td", times(row[j]));
    element(element(line, "td"), "i").style.width = `${100 * row[j]}%`;
  }
  drawMap();
}

function fillNumbers() {
  const table = byId("numbers");
  table.replaceChildren();
  if (!byId("details").open) return;
  const map = current(), top = element(element(table, "thead"), "tr");
  element(top, "td");
  for (const word of keys) element(top, "th", short(word), { scope: "col" });
  const body = element(table, "tbody");
  queries.forEach((word, i) => {
    const line = element(body, "tr");
    element(line, "th", short(word), { scope: "row" });
    for (let j = 0; j < S; j++) element(line, "td", (100 * map[i * S + j]).toFixed(1));
  });
}

function recolour() {
  prepareColours();
  paintHeads();
  drawScale();
  showToken();
}

prepareColours();
buildHeads();
buildTokens();
paintHeads();
showHead();
drawScale();
byId("map").addEventListener("click", (event) => {
  const at = cellAt(event);
  if (at) pin(at[0]);
});
byId("map").addEventListener("pointermove", (event) => {
  const at = cellAt(event);
  const weight = at && current()[at[0] * S + at[1]];
  byId("cell").textContent = at ? `${shown(queries[at[0]])} → ${shown(keys[at[1]])}: `
    + `${percent(weight)}, ${times(weight)} even` : "\u00a0";
});
byId("cell").textContent = "\u00a0";
byId("details").addEventListener("toggle", fillNumbers);
dark.addEventListener("change", recolour);
addEventListener("resize", drawMap);
