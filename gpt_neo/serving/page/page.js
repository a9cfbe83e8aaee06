"use strict";
// The prompt, its parameters, and the text as it streams: one span per token, with what the model thought of it.

const $ = (id) => document.getElementById(id);
const page = { model: null, tokens: [], length: 0, chosen: -1, running: null };
const SETTINGS = ["max_tokens", "temperature", "top_p", "top_k", "presence_penalty", "frequency_penalty", "seed"];
const ALTERNATIVES = 8;
const BROKEN_OFF = "the connection to the server broke off before the text's end";
const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function headers() {
  const found = { "Content-Type": "application/json" };
  const key = $("key").value;
  if (/[^ -~]/.test(key)) throw new Error("the token is not right: it has other characters than those of ASCII");
  if (key) found.Authorization = "Bearer " + key;
  return found;
}

async function ask(path, body, signal) {
  const answer = await reached("the server does not answer", fetch(path, {
    method: body ? "POST" : "GET", headers: headers(), body: body && JSON.stringify(body), signal,
  }));
  if (answer.ok) return answer;
  if (answer.status === 401) $("key-field").hidden = false;
  let message = answer.statusText;
  try { message = (await answer.json()).error.message; } catch { /* not JSON: the status has to do */ }
  throw new Error(message);
}

// What browsers say of a lost connection is not for people, and each says something else.
async function reached(message, answer) {
  try {
    return await answer;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(message);
  }
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").className = wrong ? "error" : "quiet";
}

async function loadModel() {
  page.model = (await (await ask("v1/models")).json()).data[0];
  $("model").textContent = page.model.id;
  $("max_tokens").defaultValue = Math.min(64, Math.ceil(page.model.max_model_len / 2));  // room for a prompt
  document.dispatchEvent(new CustomEvent("model"));
}

function request() {
  const body = { prompt: $("prompt").value, stream: true, echo: true, logprobs: ALTERNATIVES, return_token_ids: true };
  for (const name of SETTINGS) {
    const { value, validity } = $(name);
    if (validity.badInput) throw new Error(`${name} is no number`); // its value is empty, as if nothing were asked for
    if (value === "") continue;
    body[name] = Number(value);
    if (Number.isInteger(body[name]) && !Number.isSafeInteger(body[name]))
      throw new Error(`${name} is ${value}; this page sends whole numbers of at most ${Number.MAX_SAFE_INTEGER}`);
  }
  if ($("stop").value) body.stop = [$("stop").value.replaceAll("\\n", "\n")];
  return body;
}

async function generate() {
  if (page.running) return;
  const running = (page.running = new AbortController());
  page.tokens = [];
  page.length = 0;
  choose(-1);
  $("text").replaceChildren();
  document.dispatchEvent(new CustomEvent("begin"));
  $("generate").disabled = true;
  $("halt").disabled = false;
  say("reading the prompt");
  const began = performance.now();
  let made = 0, first = 0, why = "", whole = false;
  try {
    if (!page.model) await loadModel();
    const answer = await ask("v1/completions", request(), running.signal);
    for await (const data of events(answer.body)) {
      whole = data === "[DONE]";
      if (whole) break;
      const body = JSON.parse(data);
      if (body.error) throw new Error(body.error.message);
      const isPrompt = page.tokens.length === 0;
      add(body.choices[0], isPrompt);
      if (!isPrompt) {
        made += body.choices[0].logprobs.tokens.length;
        first = first || performance.now();
      }
      why = body.choices[0].finish_reason || why;
      if (made > 1) say(`${made} tokens, ${((made - 1) / (performance.now() - first) * 1000).toFixed(1)} per second`);
    }
    if (!whole) throw new Error(BROKEN_OFF);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    say(`${counted(made, "token")} in ${seconds} s; ended by ${why === "stop" ? "the text's end or the stop string" : "length"}`);
  } catch (error) {
    if (error.name === "AbortError") say(`stopped after ${counted(made, "token")}`);
    else say(error.message, true);
  }
  page.running = null;
  $("generate").disabled = false;
  $("halt").disabled = true;
  document.dispatchEvent(new CustomEvent("text"));
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reached(BROKEN_OFF, reader.read());
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

// Offsets count characters, JavaScript's strings count halves of some; a span is what lies between two offsets.
function add(choice, isPrompt) {
  const { tokens, token_logprobs, top_logprobs, text_offset } = choice.logprobs;
  const characters = Array.from(choice.text), base = page.length;
  page.length += characters.length;
  // What was held back, as it might have begun a stop string, belongs to the token before.
  const before = characters.slice(0, tokens.length ? text_offset[0] - base : characters.length).join("");
  if (before && page.tokens.length) page.tokens[page.tokens.length - 1].span.textContent += before;
  tokens.forEach((name, i) => {
    const end = i + 1 < tokens.length ? text_offset[i + 1] - base : characters.length;
    const span = document.createElement("span");
    span.className = "token" + (isPrompt ? " prompt" : "");
    span.textContent = characters.slice(text_offset[i] - base, end).join("");
    span.dataset.index = page.tokens.length;
    page.tokens.push({ name, id: choice.token_ids[i], logprob: token_logprobs[i], top: top_logprobs[i], span });
    paint(page.tokens[page.tokens.length - 1]);
    $("text").append(span);
  });
}

function paint(token) {
  const shown = $("colour").checked && token.logprob !== null;
  const share = 100 * Math.exp(token.logprob / 2); // the square root, or nearly all would look alike
  token.span.style.backgroundColor =
    shown ? `color-mix(in hsl, hsl(var(--high)) ${share.toFixed(2)}%, hsl(var(--low)))` : "";
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return (share >= 0.1 ? share.toFixed(1) : share.toPrecision(1)) + " %"; // 0.02 %, not 2e-2 %
}

function visible(name) {
  return name.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣");
}

function choose(index) {
  if (page.tokens[page.chosen]) page.tokens[page.chosen].span.classList.remove("chosen");
  page.chosen = index;
  const token = page.tokens[index];
  if (!token) return $("detail").replaceChildren();
  token.span.classList.add("chosen");
  const title = document.createElement("p");
  title.textContent = `token ${index + 1}: “${visible(token.name)}”` +
    (token.logprob === null ? ", the first: nothing comes before it" : `, probability ${percent(token.logprob)}`);
  const table = document.createElement("table");
  const rows = Object.entries(token.top || {}).sort((a, b) => b[1] - a[1]);
  for (const [name, logprob] of rows) {
    const row = table.insertRow();
    row.className = name === token.name ? "taken" : "";
    row.insertCell().textContent = visible(name);
    row.insertCell().textContent = percent(logprob);
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.style.width = 12 * Math.exp(logprob) + "rem";
    row.insertCell().append(bar);
  }
  $("detail").replaceChildren(title, table);
  document.dispatchEvent(new CustomEvent("token"));
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
$("halt").addEventListener("click", () => page.running && page.running.abort());
$("colour").addEventListener("change", () => page.tokens.forEach(paint));
for (const kind of ["pointerover", "pointerdown"]) {
  $("text").addEventListener(kind, (event) => {
    const index = event.target.dataset.index;
    if (index !== undefined) choose(Number(index));
  });
}
$("text").addEventListener("keydown", (event) => {
  const last = page.tokens.length - 1;
  const to = { ArrowRight: page.chosen + 1, ArrowLeft: page.chosen - 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose(Math.max(0, Math.min(last, to)));
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && page.running) page.running.abort();
  if (event.key === "Enter" && event.ctrlKey) { event.preventDefault(); $("form").requestSubmit(); }
});
$("key").addEventListener("change", () => loadModel().then(() => say("ready"), (error) => say(error.message, true)));
// After both files have run, so that whoever listens is there.
window.addEventListener("load", () => loadModel().catch((error) => say(error.message, true)));
