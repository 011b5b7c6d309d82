// A run, while it goes on and after: rounds, loss, held-out accuracy, bytes, who answered.

import { ask, sleep } from "./api.js";
import { bytes, lines, make, onWidth, options, percent, say, table } from "./draw.js";

const EVERY = 1, QUIET = 60, MANY = 100_000;
const place = (id) => document.getElementById(id);
let watching = 0, shown = null;

export function prepare() {
  place("shown-run").addEventListener("change", () => watch(place("shown-run").value));
  onWidth(() => shown && draw(shown));
}

export function hide() {
  watching += 1;
}

export async function show() {
  const { runs } = await ask("v1/runs");
  if (!runs.length) {
    say("runs-status", "There is no run to show. Start the server with --runs FOLDER to watch the runs in it.");
    return;
  }
  options(place("shown-run"), runs.map((run) => run.name), place("shown-run").value || runs[0].name);
  watch(place("shown-run").value);
}

// Follows the file of a run until another is chosen or the view is left.
async function watch(name) {
  watching += 1;
  const mine = watching;
  let run = fresh(), since = 0, generation = null;
  while (mine === watching) {
    try {
      const before = generation === null ? "" : `&generation=${generation}`;
      const piece = await ask(`v1/runs/${name.split("/").map(encodeURIComponent).join("/")}?since=${since}${before}`);
      if (mine !== watching) return;
      if (piece.generation !== generation) [run, since] = [fresh(), 0]; // these are the first lines of another file
      const long = piece.next - since > MANY;
      generation = piece.generation;
      since = piece.next;
      for (const line of piece.lines) read[line.event]?.(run, line);
      if (piece.lines.length || !place("run-view").hasChildNodes()) draw(run);
      status(run, piece.age_seconds);
      if (long) continue; // an old run comes in pieces
    } catch (fault) {
      say("runs-status", fault.message, true);
    }
    await sleep(EVERY);
  }
}

const fresh = () => ({ task: "", rounds: 0, history: [], clients: new Map(), zeroShot: null, step: null, finished: null, tests: [] });
const client = (run, name) => {
  if (!run.clients.has(name)) run.clients.set(name, { up: 0, down: 0, answers: 0, failures: 0, last: "" });
  return run.clients.get(name);
};
const loss = (tally) => tally.loss_sum / tally.examples;
const accuracy = (tally) => tally.correct / tally.examples;

const read = {
  run(run, line) { run.task = line.task; for (const name of line.clients) client(run, name); },
  step(run, line) { run.step = { ...line, answered: 0 }; },
  exchange(run, line) {
    const own = client(run, line.client);
    own.up += line.bytes_up;
    own.down += line.bytes_down;
    own.last = line.failure ? `${line.step}: ${line.failure}` : line.step;
    if (line.failure) own.failures += 1;
    else own.answers += 1;
    if (run.step) run.step.answered += 1;
  },
  round(run, line) { run.rounds = line.rounds; run.history.push(line); },
  zero_shot(run, line) { run.zeroShot = line.held_out; },
  finished(run, line) { run.finished = line; },
  test(run, line) { run.tests.push(line); },
};

function status(run, age) {
  const at = run.history.at(-1)?.round ?? 0;
  if (run.finished) say("runs-status", `Finished after ${at} rounds; round ${run.finished.chosen_round} was chosen.`);
  else if (age > QUIET) say("runs-status", `Nothing new for ${Math.round(age)} seconds: it has stopped, or a step takes long. A stopped run goes on with --resume.`);
  else say("runs-status", run.step ? `Running: round ${run.step.round + 1}${run.rounds ? ` of ${run.rounds}` : ""}, ${run.step.step}, ${run.step.answered} of ${run.step.clients} clients have answered.` : "Running.");
  place("runs-status").classList.toggle("live", !run.finished && age <= QUIET);
}

function draw(run) {
  shown = run;
  const evaluated = run.history.filter((line) => line.held_out?.examples);
  const held = (value) => [{ points: evaluated.map((line) => [line.round, value(line.held_out)]) }];
  const training = { className: "training", points: run.history.filter((line) => line.train_loss !== null).map((line) => [line.round, line.train_loss]) };
  const raw = run.zeroShot?.examples ? run.zeroShot : null, chosen = run.finished?.chosen_round ?? null;
  const last = Math.max(2, run.rounds, run.history.at(-1)?.round ?? 0);
  const counted = evaluated.length && evaluated.every((line) => !line.held_out.loss_sum); // noisy counts come without losses
  const bar = make("progress", { max: run.rounds || 1, value: run.history.at(-1)?.round ?? 0 });
  bar.setAttribute("aria-label", "rounds");
  place("run-view").replaceChildren(
    make("p", { className: "quiet", textContent: run.task }),
    bar,
    make("div", { className: "pair" },
      ...(counted ? [] : [lines("Loss on held-out text", training.points.length ? "and, thin, in training" : "", [...held(loss), training], last, raw && loss(raw), chosen, (value) => value.toFixed(2))]),
      lines("Right on held-out text", raw ? "dashed: zero-shot" : "", held(accuracy), last, raw && accuracy(raw), chosen, percent)),
    ...outcome(run),
    make("h3", { textContent: "Clients" }),
    clientTable(run, evaluated),
  );
}

function outcome(run) {
  const said = [];
  const gate = run.finished?.gate;
  if (gate) said.push(`Gate ${gate.open ? "open, the adapter is used" : "shut, the raw model is used"}: ${percent(accuracy(gate.adapter))} right against ${percent(accuracy(gate.raw))} of the raw model, on ${gate.adapter.examples} held-out texts.`);
  for (const test of run.tests) said.push(`Test text, ${test.name}: ${percent(test.accuracy)} of ${test.examples} right (${percent(test.interval[0])} to ${percent(test.interval[1])}).`);
  return said.map((words) => make("p", { textContent: words }));
}

function clientTable(run, evaluated) {
  const latest = evaluated.at(-1)?.by_client ?? {}, took = new Set(run.history.at(-1)?.clients ?? []);
  const rows = [...run.clients].map(([name, own]) => [
    name, took.has(name) ? "yes" : "no", name in latest && latest[name].examples ? percent(accuracy(latest[name])) : "",
    bytes(own.up), bytes(own.down), String(own.answers), String(own.failures), own.last,
  ]);
  return table([["Client"], ["In the last round"], ["Right on its held-out text", true], ["Sent", true], ["Received", true], ["Answers", true], ["Failures", true], ["Last"]], rows);
}
