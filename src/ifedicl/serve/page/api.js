// Requests to the server that this page came from, and its key where it asks for one.

let key = "";

export class Refused extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export async function ask(path, body) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = body === undefined ? { headers } : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused(0, "The server does not answer. Is it still running?");
  }
  if (answer.ok) return answer.json();
  const said = await answer.json().then((fault) => fault.error.message, () => answer.statusText);
  if (answer.status === 401) askForKey();
  throw new Refused(answer.status, said, Number(answer.headers.get("Retry-After")) || 0);
}

function askForKey() {
  document.getElementById("key-form").hidden = false;
  document.getElementById("key").focus();
}

export function onKey(then) {
  document.getElementById("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key = document.getElementById("key").value.trim();
    document.getElementById("key-form").hidden = true;
    then();
  });
}

export const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
