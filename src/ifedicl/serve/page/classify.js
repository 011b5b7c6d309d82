// Paste or drop texts; labels and probabilities beside each other.

import { ask, pieces, sleep } from "./api.js";
import { make, named, options, percent, say } from "./draw.js";
import { csv, download, opened } from "./table.js";

const PIECE = 32, FEW = 4; // in a request; FEW where there are no labels, since answers that are written take longer
const SHOWN = 200, ALL = 5, CHOICES = 3; // up to ALL labels are shown all, of more the first CHOICES
const place = (id) => document.getElementById(id);
let served = [], limits = null, file = null, done = null;

export function prepare() {
  place("classify-form").addEventListener("submit", (event) => { event.preventDefault(); label(); });
  place("texts").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); label(); }
  });
  place("adapter").addEventListener("change", describe);
  place("file").addEventListener("change", () => { if (place("file").files[0]) take(place("file").files[0]); });
  place("close-file").addEventListener("click", () => { close(); place("texts").focus(); });
  place("download").addEventListener("click", save);
  for (const sample of document.querySelectorAll("#samples button")) {
    sample.addEventListener("click", () => { close(); place("texts").value = sample.textContent; label(); });
  }
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", () => document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (!event.dataTransfer.files[0]) return;
    location.hash = "#classify";
    take(event.dataTransfer.files[0]);
  });
}

export function show(adapters, own) {
  served = adapters;
  limits = own;
  options(place("adapter"), adapters.map((own) => own.name), place("adapter").value);
  describe();
}

const asked = () => served.find((item) => item.name === place("adapter").value);
const takesQuestions = () => asked()?.takes === "questions";

function describe() {
  const own = asked(), questions = takesQuestions();
  place("labels").textContent = own ? `${own.task}: ${own.labels.join(", ") || own.kind}; version ${own.version}` : "no adapter is served at the moment";
  place("texts-label").textContent = questions ? "One question" : "Texts, one a line";
  place("choices").hidden = !questions;
  place("from-file").hidden = place("samples").hidden = questions;
  if (questions) close();
}

async function take(picked) {
  if (takesQuestions()) {
    say("classify-status", "This adapter takes one question here, with its options. For a file of them: ifedicl classify --file.", true);
    return;
  }
  try {
    file = { name: picked.name, ...(await opened(picked)) };
  } catch (fault) {
    say("classify-status", fault.message, true);
    return;
  }
  options(place("column"), file.columns, file.columns.includes("text") ? "text" : file.columns[0]);
  place("column").hidden = place("column-label").hidden = file.columns.length < 2;
  place("opened-name").textContent = `${file.name}: ${file.rows.length} texts`;
  place("opened").hidden = false;
  place("texts").disabled = true;
  say("classify-status", "");
  place("go").focus();
}

function close() {
  file = null;
  place("file").value = "";
  place("opened").hidden = true;
  place("texts").disabled = false;
}

function wanted() {
  if (takesQuestions()) {
    const text = place("texts").value.trim(), own = lines("own-options");
    return text || own.length ? [{ text, options: own }] : [];
  }
  if (!file) return lines("texts");
  const column = file.columns.indexOf(place("column").value);
  return file.rows.map((row) => row[column] ?? "").filter((text) => text.trim());
}

const lines = (name) => place(name).value.split("\n").map((line) => line.trim()).filter(Boolean);

async function label() {
  if (place("go").disabled) return; // it is at work
  const texts = wanted();
  if (!texts.length) {
    say("classify-status", "There is no text yet: type or paste one, or open a file.", true);
    return;
  }
  const compare = place("compare").checked, name = place("adapter").value || undefined; // without a name: the only one
  const { asked_at = "/v1/classify", takes = "texts", labels = [""] } = asked() ?? {};
  done = { name: "", compare, texts: [], results: [], raw: [] };
  place("go").disabled = true;
  const start = performance.now();
  try {
    limits ??= (await ask("v1/adapters")).limits;
    const request = { adapter: name, zero_shot: compare };
    for (const piece of pieces(texts, request, limits, labels.length ? PIECE : FEW)) {
      say("classify-status", `${done.texts.length} of ${texts.length} labelled`);
      const answer = await patient(asked_at.slice(1), { ...request, [takes]: piece });
      const first = done.texts.length === 0;
      done.name = answer.adapter.name;
      done.texts.push(...piece);
      done.results.push(...answer.results);
      done.raw.push(...(answer.zero_shot ?? []));
      if (first) draw();
    }
    say("classify-status", `${texts.length} ${texts.length === 1 ? "text" : "texts"} labelled in ${((performance.now() - start) / 1000).toFixed(1)} seconds`);
  } catch (fault) {
    say("classify-status", fault.message, true);
  }
  place("go").disabled = false;
  draw();
}

// A busy server says when to come back.
async function patient(path, request) {
  for (;;) {
    try {
      return await ask(path, request);
    } catch (fault) {
      if (fault.status !== 429) throw fault;
      await sleep(fault.retryAfter || 1);
    }
  }
}

function draw() {
  place("results").hidden = done.results.length === 0;
  const names = done.compare ? ["Text", "Zero-shot", done.name] : ["Text", done.name];
  const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col", textContent: name })));
  const rows = done.results.slice(0, SHOWN).map((own, at) => {
    const text = done.texts[at];
    const cells = [make("td", { textContent: shown(text) })];
    if (done.compare) cells.push(named(choices(done.raw[at], text), "Zero-shot"));
    cells.push(named(choices(own, text), done.name));
    return make("tr", { className: done.compare && said(done.raw[at]) !== said(own) ? "differs" : "" }, ...cells);
  });
  place("table").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
  place("more").textContent = done.results.length > SHOWN ? `The first ${SHOWN} of ${done.results.length} are shown; the CSV holds all.` : "";
  const differ = done.raw.filter((raw, at) => said(raw) !== said(done.results[at])).length;
  place("agreement").textContent = done.compare && done.results.length ? `the two differ on ${differ} of ${done.results.length} (underlined)` : "";
}

// What is the same in the answers of all kinds: a text or a question, what is said of it, and how probable each answer is.
const shown = (text) => text.text ?? text;
const said = (answer) => answer.label ?? answer.option ?? answer.labels?.join(", ") ?? answer.answer;

function probable(answer, text) {
  if ("confidence" in answer) return [[answer.answer, answer.confidence]];
  if (text.options) return text.options.map((option, at) => [option, answer.probabilities[at]]);
  return Object.entries(answer.probabilities);
}

function choices(answer, text) {
  const all = probable(answer, text).sort((one, other) => other[1] - one[1]);
  const ranked = all.length > ALL ? all.slice(0, CHOICES) : all;
  const left = all.length > ranked.length ? [make("div", { className: "quiet", textContent: `top ${CHOICES} of ${all.length}` })] : [];
  return make("td", {}, ...ranked.map(([name, probability]) => {
    const bar = make("i");
    bar.style.width = percent(probability);
    return make("div", { className: "choice" }, bar, make("span", { textContent: name }), make("span", { textContent: percent(probability) }));
  }), ...left);
}

function save() {
  const named = (answer, text) => ("confidence" in answer ? [["confidence", answer.confidence]] : probable(answer, text).map(([name, p]) => [`p(${name})`, p]));
  const row = (answer, text) => [said(answer), ...named(answer, text).map(([, p]) => p.toFixed(6))];
  const columns = ["label", ...named(done.results[0], done.texts[0]).map(([name]) => name)];
  const head = ["text", ...columns, ...(done.compare ? columns.map((name) => `zero_shot_${name}`) : [])];
  const rows = done.results.map((own, at) => {
    const text = done.texts[at];
    return [shown(text), ...row(own, text), ...(done.compare ? row(done.raw[at], text) : [])];
  });
  download(`${done.name}-labels.csv`, csv([head, ...rows]));
}
