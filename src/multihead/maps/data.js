// What the page holds, and the colours it is shown in.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const queries = data.tokens, keys = data.keys;
const L = queries.length, S = keys.length;
const same = L === S && queries.every((word, i) => word === keys[i]);
const byId = (id) => document.getElementById(id);
const percent = (w) => (100 * w).toFixed(1) + " %";
const times = (w) => (w * S).toFixed(1) + " ×";
const shown = (word) => (word.trim() === "" ? "␣" : word);
const short = (word) => {
  const letters = [...shown(word)];
  return letters.length > 12 ? letters.slice(0, 11).join("") + "…" : letters.join("");
};

// Two codes of twelve bits in three bytes; a code c is the weight (c / 4095)².
function unpacked(text, count) {
  const octets = atob(text), weights = new Float32Array(count + (count % 2));
  for (let i = 0, at = 0; i < count; i += 2, at += 3) {
    const bits = (octets.charCodeAt(at) << 16) | (octets.charCodeAt(at + 1) << 8)
      | octets.charCodeAt(at + 2);
    weights[i] = ((bits >> 12) / 4095) ** 2;
    weights[i + 1] = ((bits & 4095) / 4095) ** 2;
  }
  return weights;
}

// The maps of a layer: the mean of its heads, then each head.
function mapsOf(layer) {
  const size = L * S, all = unpacked(layer.codes, layer.heads * size);
  const maps = [], mean = new Float32Array(size);
  for (let h = 0; h < layer.heads; h++) maps.push(all.subarray(h * size, (h + 1) * size));
  for (const map of maps) map.forEach((w, i) => { mean[i] += w / layer.heads; });
  return [mean, ...maps];
}

const layers = data.layers.map(mapsOf);

// Colour says how many times its even share, 1 / S, a weight is: nothing below it, all at S times.
const dark = matchMedia("(prefers-color-scheme: dark)");
const STOPS = {
  light: [[252, 252, 251], [190, 214, 234], [94, 154, 200], [26, 92, 154], [8, 38, 82]],
  dark: [[29, 32, 37], [26, 66, 104], [34, 122, 158], [116, 190, 170], [246, 240, 170]],
};
let colours = [], pixels = [];  // the same as bytes of an image

function prepareColours() {
  const stops = dark.matches ? STOPS.dark : STOPS.light;
  colours = Array.from({ length: 256 }, (_, i) => {
    const at = Math.min(i / 255 * (stops.length - 1), stops.length - 1.001), n = Math.floor(at);
    return stops[n].map((from, c) => Math.round(from + (at - n) * (stops[n + 1][c] - from)));
  });
  pixels = new Uint32Array(Uint8Array.from(colours.flatMap((colour) => [...colour, 255])).buffer);
}

function stepOf(weight) {
  const share = weight > 0 && S > 1 ? 1 + Math.log(weight) / Math.log(S) : 0;
  return Math.round(255 * Math.max(0, Math.min(1, share)));
}

const css = (colour) => `rgb(${colour.join(" ")})`;

// Black or white, whichever stands out more: their contrasts are equal at a luminance of 0.179.
function inkOn(colour) {
  const [r, g, b] = colour.map((part) => (part / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}
