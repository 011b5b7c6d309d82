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

// Texts in pieces that the server takes in one request: not too many, and not too many bytes.
export function* pieces(texts, request, limits, wanted) {
  const most = Math.max(1, Math.min(wanted, request.zero_shot ? limits.texts_with_zero_shot : limits.texts));
  const bytes = (value) => new TextEncoder().encode(JSON.stringify(value)).length + 1; // and a comma
  const room = limits.body_bytes - bytes({ ...request, texts: [] });
  let piece = [], held = 0;
  for (const text of texts) {
    const own = bytes(text);
    if (piece.length && (piece.length === most || held + own > room)) {
      yield piece;
      [piece, held] = [[], 0];
    }
    piece.push(text);
    held += own;
  }
  if (piece.length) yield piece;
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
