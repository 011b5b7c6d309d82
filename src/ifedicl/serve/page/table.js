// Files of texts to rows and columns, and results to CSV.

// RFC 4180, with any line end; a quote within quotes is doubled.
export function separated(content, comma) {
  const rows = [];
  let row = [], cell = "", quoted = false;
  for (let place = 0; place < content.length; place += 1) {
    const letter = content[place];
    if (quoted) {
      if (letter !== '"') cell += letter;
      else if (content[place + 1] === '"') { cell += '"'; place += 1; }
      else quoted = false;
    } else if (letter === '"' && cell === "") quoted = true;
    else if (letter === comma) { row.push(cell); cell = ""; }
    else if (letter === "\n" || letter === "\r") {
      if (letter === "\r" && content[place + 1] === "\n") place += 1;
      row.push(cell); rows.push(row); row = []; cell = "";
    } else cell += letter;
  }
  if (cell !== "" || row.length) { row.push(cell); rows.push(row); }
  return rows.filter((own) => own.some((value) => value.trim()));
}

function fromObjects(content) {
  const objects = content.split("\n").filter((line) => line.trim()).map((line, place) => {
    try {
      return JSON.parse(line);
    } catch {
      throw new Error(`line ${place + 1} is not JSON; a JSONL file holds one object a line`);
    }
  });
  const columns = [...new Set(objects.flatMap((item) => (typeof item === "object" && item ? Object.keys(item) : ["text"])))];
  const cell = (item, column) => String((typeof item === "object" && item ? item[column] : column === "text" ? item : "") ?? "");
  return { columns, rows: objects.map((item) => columns.map((column) => cell(item, column))) };
}

// A file's columns and rows; throws an Error that says what is wrong.
export async function opened(file) {
  let content;
  try {
    content = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} is not UTF-8 text; convert it first`);
  }
  const ending = file.name.split(".").pop().toLowerCase();
  if (ending === "jsonl" || ending === "ndjson") return fromObjects(content);
  if (ending === "csv" || ending === "tsv") {
    const [columns, ...rows] = separated(content, ending === "csv" ? "," : "\t");
    if (!columns) throw new Error(`${file.name} is empty`);
    return { columns, rows };
  }
  if (ending === "txt") return { columns: ["text"], rows: content.split(/\r?\n/).filter((line) => line.trim()).map((line) => [line]) };
  throw new Error(`${file.name}: give a .csv, .tsv, .jsonl or .txt file`);
}

// A spreadsheet would run a cell that begins with one of these as a formula; with an apostrophe it is a text.
const FORMULA = /^[=+\-@\t\r]/;

export function csv(rows) {
  const text = (value) => (FORMULA.test(value) ? `'${value}` : String(value));
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${text(value).replaceAll('"', '""')}"` : text(value));
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

export function download(name, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "text/csv;charset=utf-8" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
