// One adapter: its numbers by layer, its figures, where it comes from, what each client sent.

import { ask } from "./api.js";
import { bytes, heat, make, onWidth, options, percent, say, table } from "./draw.js";

const place = (id) => document.getElementById(id);
let shown = null;

export function prepare() {
  place("shown-adapter").addEventListener("change", load);
  onWidth(() => shown && draw());
}

export async function show(adapters) {
  options(place("shown-adapter"), adapters.map((own) => own.name), place("shown-adapter").value);
  if (adapters.length) await load();
  else say("adapters-status", "No adapter is served at the moment.");
}

async function load() {
  try {
    shown = await ask(`v1/adapters/${encodeURIComponent(place("shown-adapter").value)}`);
  } catch (fault) {
    say("adapters-status", fault.message, true);
    return;
  }
  say("adapters-status", "");
  draw();
}

function draw() {
  const own = shown;
  place("adapter-view").replaceChildren(facts(own), ...maps(own), ...figures(own), ...clients(own), provenance(own));
}

function facts(own) {
  const told = {
    task: own.task,
    kind: own.kind,
    "asked at": make("code", { textContent: `POST ${own.asked_at}` }),
    prompt: make("code", { textContent: JSON.stringify(own.template) }),
    ...Object.fromEntries(Object.entries(own.answers).filter(([name]) => name !== "kind").map(([name, value]) => [name.replaceAll("_", " "), [value].flat().join(", ")])),
    version: `${own.version}, from ${own.origin === "store" ? "the task cache" : "a folder"}`,
    numbers: `${own.coefficients.toLocaleString("en")} calibrated${own.readout ? ", and a readout" : ""}`,
  };
  for (const [name, value] of Object.entries(own.figures)) {
    if (value !== null) told[name.replaceAll("_", " ")] = name === "stored" ? new Date(1000 * value).toISOString().slice(0, 16).replace("T", " ") : typeof value === "number" && !Number.isInteger(value) ? value.toFixed(3) : String(value);
  }
  return make("dl", {}, ...Object.entries(told).flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", {}, value)]));
}

function maps(own) {
  const made = [
    heat("λ, how much context is added", "by layer; blue above 0, orange below", own.context_scale, 0, own.first_layer),
    heat("β − 1, how much each write is stretched", "blue above 1, orange below", own.activation_scale, 1, own.first_layer),
  ];
  if (own.subspace_core) made.push(heat("‖Γ‖, how far it moves within the context subspace", "", own.subspace_core, 0, own.first_layer));
  return [make("h3", { textContent: "Coefficients" }), ...made];
}

function figures(own) {
  const title = make("h3", { textContent: "Right answers by label" });
  if (!own.per_class.length) return [title, make("p", { className: "quiet", textContent: "Not known: the run that made it had no test text, or its folder is not beside the adapter." })];
  const rate = (right, count) => (count ? `${percent(right / count)} (${right})` : "");
  const change = (item) => (item.zero_shot_right === null || !item.examples ? "" : `${item.right < item.zero_shot_right ? "−" : "+"}${(100 * Math.abs(item.right - item.zero_shot_right) / item.examples).toFixed(1)} points`);
  const rows = own.per_class.map((item) => [item.label, String(item.examples), item.zero_shot_right === null ? "" : rate(item.zero_shot_right, item.examples), rate(item.right, item.examples), change(item)]);
  return [title, table([["Label"], ["Test texts", true], ["Zero-shot", true], ["Adapter", true], ["Change", true]], rows)];
}

function clients(own) {
  const title = make("h3", { textContent: "What each client sent" });
  if (!own.clients.length) return [title, make("p", { className: "quiet", textContent: "Not known here: the run's folder is not beside the adapter." })];
  const steps = [...new Set(own.clients.flatMap((client) => Object.keys(client.sent_bytes)))];
  const rows = own.clients.map((client) => [client.client, ...steps.map((step) => (step in client.sent_bytes ? bytes(client.sent_bytes[step]) : "")), bytes(client.received_bytes), String(client.failures)]);
  return [title, table([["Client"], ...steps.map((step) => [step, true]), ["received", true], ["failures", true]], rows)];
}

function provenance(own) {
  return make("details", {}, make("summary", { textContent: "Provenance" }), make("pre", { textContent: JSON.stringify(own.provenance, null, 2) }));
}
