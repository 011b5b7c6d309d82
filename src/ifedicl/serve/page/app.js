// Which view is shown, and what all of them need.

import { ask, onKey } from "./api.js";
import { say } from "./draw.js";
import * as adapters from "./adapters.js";
import * as classify from "./classify.js";
import * as runs from "./runs.js";

const views = { classify, adapters, runs };

function show() {
  const name = location.hash.slice(1) in views ? location.hash.slice(1) : "classify";
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  for (const [other, view] of Object.entries(views)) if (other !== name) view.hide?.();
  document.title = `${document.getElementById(`${name}-title`).textContent} · ifedicl`;
  open(name);
}

async function open(name) {
  try {
    const served = await ask("v1/adapters");
    document.getElementById("model").textContent = `${served.model.name}, ${served.model.dtype}`;
    await views[name].show(served.adapters, served.limits);
  } catch (fault) {
    say(`${name}-status`, fault.message, true);
  }
}

for (const view of Object.values(views)) view.prepare?.();
onKey(show);
addEventListener("hashchange", show);
show();
