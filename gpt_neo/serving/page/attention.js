"use strict";
// The attention of one layer and head as a picture: rows look at columns, which are the tokens before them.

const EXPLAIN = {
  global: "global: a token weighs every token before it; each row sums to 1.",
  local: "local: a token weighs only a window of tokens before it, between the dashed lines; each row sums to 1.",
  gla: "gla: a state that decays takes the place of weights. Shown is what each earlier token still adds to the state, " +
    "as the query reads it: blue adds, orange subtracts. The strip on the right is what the state keeps at each token.",
  linear: "linear: weights without a softmax over tokens, each row made to sum to 1.",
};
const view = { data: null, wanted: 0 };

function fill(select, entries) {
  const before = select.value;
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
  if (entries.some(([value]) => String(value) === before)) select.value = before;
}

function layerOf() {
  return page.model && page.model.layers.find((layer) => String(layer.layer) === $("layer").value);
}

function fillHeads() {
  const layer = layerOf();
  if (layer) fill($("head"), Array.from({ length: layer.heads }, (_, i) => [i, String(i)]));
}

async function show() {
  const layer = layerOf();
  const tokens = page.tokens.map((token) => token.id);
  if (!layer || !tokens.length || page.running) return;
  const wanted = ++view.wanted;
  try {
    const cut = tokens.slice(0, page.model.picture_tokens);
    const body = { tokens: cut, layer: layer.layer, head: Number($("head").value) };
    const data = await (await ask("attention", body)).json();
    if (wanted !== view.wanted) return;
    view.data = data;
    $("kind").hidden = false;
    $("kind").className = "badge " + data.kind;
    $("kind").textContent = data.kind + (data.radius ? `, window ${data.radius}` : "");
    const rest = tokens.length - cut.length;
    $("explain").textContent = EXPLAIN[data.kind] + (rest === 0 ? "" : rest === 1 ? " The last token is left out." : ` The last ${rest} tokens are left out.`);
    draw();
  } catch (error) {
    forget();
    $("explain").textContent = error.message;
  }
}

// A picture of another text than the one above it would mislead.
function forget() {
  view.wanted++;
  view.data = null;
  $("picture").hidden = $("kind").hidden = true;
  $("cell").textContent = "";
  $("explain").textContent = "Generate a text, then choose a layer and a head.";
}

// Colours come from the page's own, so that the picture is dark when the page is.
function draw() {
  const { data } = view;
  if (!data) return;
  const style = getComputedStyle(document.documentElement);
  const count = data.tokens.length, canvas = $("picture"), strip = data.decay ? 3 : 0;
  const cell = Math.max(2, Math.min(16, Math.floor(1152 / (count + strip))));
  canvas.width = (count + strip) * cell;
  canvas.height = count * cell;
  canvas.hidden = false;
  canvas.setAttribute("aria-label", `attention of layer ${data.layer}, head ${data.head}, ${data.kind}`);
  const paper = canvas.getContext("2d");
  paper.fillStyle = style.getPropertyValue("--panel");
  paper.fillRect(0, 0, canvas.width, canvas.height);
  const plus = style.getPropertyValue("--" + data.kind), minus = "#d9731a";
  const adding = data.kind === "gla" ? style.getPropertyValue("--global") : plus;
  data.weights.forEach((row, t) => {
    const most = Math.max(...row.map(Math.abs)) || 1;
    row.forEach((weight, u) => {
      paper.globalAlpha = Math.sqrt(Math.abs(weight) / most);
      paper.fillStyle = weight < 0 ? minus : adding;
      paper.fillRect(u * cell, t * cell, cell, cell);
    });
  });
  (data.decay || []).forEach((kept, t) => {
    paper.globalAlpha = kept;
    paper.fillStyle = style.getPropertyValue("--gla");
    paper.fillRect((count + 1) * cell, t * cell, 2 * cell, cell);
  });
  paper.globalAlpha = 1;
  if (data.radius && data.radius < count) {
    paper.strokeStyle = style.getPropertyValue("--quiet");
    paper.setLineDash([cell, cell]);
    paper.beginPath();
    paper.moveTo(0, data.radius * cell);
    paper.lineTo((count - data.radius) * cell, count * cell);
    paper.moveTo(cell, 0);
    paper.lineTo(count * cell, (count - 1) * cell);
    paper.stroke();
    paper.setLineDash([]);
  }
  mark();
}

// The row of the chosen token, in words.
function mark() {
  const { data } = view, t = page.chosen;
  if (!data) return;
  if (!data.weights[t]) {
    $("cell").textContent = t < 0 ? "" : "The picture ends before this token.";
    return;
  }
  const ranked = data.weights[t].map((weight, u) => [weight, u]).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0]));
  const best = ranked.slice(0, 5).map(([weight, u]) => `“${visible(data.tokens[u])}” (${u + 1}) ${weight.toFixed(3)}`);
  const kept = data.decay ? `; the state keeps ${(100 * data.decay[t]).toFixed(1)} % at this token` : "";
  $("cell").textContent = `token ${t + 1} “${visible(data.tokens[t])}” looks at ${best.join(", ")}${kept}`;
}

$("layer").addEventListener("change", () => { fillHeads(); show(); });
$("head").addEventListener("change", show);
for (const kind of ["pointermove", "pointerdown"]) {
  $("picture").addEventListener(kind, (event) => {
    const box = $("picture").getBoundingClientRect();
    const t = Math.floor((event.clientY - box.top) / box.height * view.data.tokens.length);
    if (t !== page.chosen) choose(Math.max(0, Math.min(page.tokens.length - 1, t)));
  });
}
$("picture").addEventListener("keydown", (event) => {
  const to = { ArrowDown: page.chosen + 1, ArrowUp: page.chosen - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose(Math.max(0, Math.min(page.tokens.length - 1, to)));
});
document.addEventListener("model", () => {
  fill($("layer"), page.model.layers.map(({ layer, kind }) => [layer, `${layer} · ${kind}`]));
  fillHeads();
});
document.addEventListener("begin", forget);
document.addEventListener("text", show);
document.addEventListener("token", mark);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
