// Elements, tables and pictures, made without markup in strings: labels and texts are anybody's words.

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function say(id, words, isFault = false) {
  const place = document.getElementById(id);
  place.textContent = words;
  place.classList.toggle("fault", isFault);
}

export const percent = (fraction) => `${(100 * fraction).toFixed(1)}%`;
export const bytes = (count) => (count < 1024 ? `${count} B` : count < 1048576 ? `${(count / 1024).toFixed(1)} KB` : `${(count / 1048576).toFixed(1)} MB`);

export function options(select, names, chosen) {
  select.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name, selected: name === chosen })));
}

// A table: columns are [name, isNumber], rows are lists of text or elements.
export function table(columns, rows) {
  const kind = (place) => (columns[place][1] ? "number" : "");
  const head = make("tr", {}, ...columns.map(([name], place) => make("th", { scope: "col", className: kind(place), textContent: name })));
  const body = rows.map((row) => make("tr", {}, ...row.map((cell, place) => named(make("td", { className: kind(place) }, cell), columns[place][0]))));
  return make("div", { className: "scroll", tabIndex: 0 }, make("table", { className: "cards" }, make("thead", {}, head), make("tbody", {}, ...body)));
}

// A cell that shows its column's name where the rows are cards, on a phone.
export function named(cell, name) {
  cell.dataset.name = name;
  return cell;
}

// A picture is drawn in the pixels that it will have, so that its letters keep their size; `again` draws it for another width.
const phone = matchMedia("(max-width: 40rem)");
export const onWidth = (again) => phone.addEventListener("change", again);
const wide = (full) => (phone.matches ? 320 : full);
const HIGH = 200, LEFT = 44, BELOW = 26;

// Lines over rounds 1 to `last`: each is {points: [[round, value]], className}; `flat` is a level to compare with.
export function lines(title, note, all, last, flat, chosen, format) {
  const points = all.flatMap((line) => line.points);
  const figure = make("figure", {}, make("figcaption", {}, title, make("span", { textContent: note ? ` ${note}` : "" })));
  if (!points.length) {
    figure.append(make("p", { className: "quiet", textContent: "Nothing measured yet." }));
    return figure;
  }
  const values = points.map((point) => point[1]).concat(flat === null ? [] : [flat]);
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low || Math.abs(high) || 1) * 0.08;
  [low, high] = [low - room, high + room];
  const first = 1, WIDE = wide(460);
  const x = (round) => LEFT + ((round - first) / (last - first)) * (WIDE - LEFT - 8);
  const y = (value) => (HIGH - BELOW) * (1 - (value - low) / (high - low)) + 6;
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH + 8}`, role: "img", "aria-label": `${title}: ${format(all[0].points.at(-1)?.[1] ?? values[0])} at last` });
  for (let tick = 0; tick <= 3; tick += 1) {
    const value = low + room + ((high - low - 2 * room) * tick) / 3;
    picture.append(svg("line", { class: "axis", x1: LEFT, x2: WIDE, y1: y(value), y2: y(value) }));
    picture.append(svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)));
  }
  const step = Math.max(1, Math.ceil((last - first) / 8));
  for (let round = first; round <= last; round += step) picture.append(svg("text", { x: x(round), y: HIGH + 4, "text-anchor": "middle" }, String(round)));
  if (chosen !== null && chosen >= first) picture.append(svg("line", { class: "chosen", x1: x(chosen), x2: x(chosen), y1: 0, y2: HIGH - BELOW + 6 }));
  if (flat !== null) picture.append(svg("line", { class: "raw", x1: LEFT, x2: WIDE, y1: y(flat), y2: y(flat) }, svg("title", {}, `zero-shot ${format(flat)}`)));
  for (const line of all) {
    picture.append(svg("polyline", { class: `line ${line.className ?? ""}`, points: line.points.map(([round, value]) => `${x(round)},${y(value)}`).join(" ") }));
    if (line.className) continue;
    for (const [round, value] of line.points) picture.append(svg("circle", { class: "dot", cx: x(round), cy: y(value), r: 2.5 }, svg("title", {}, `round ${round}: ${format(value)}`)));
  }
  figure.append(picture);
  return figure;
}

// A heat map of (layers, writes) numbers from layer `first` up: strength by opacity, sign by colour.
export function heat(title, note, values, centre, first) {
  const writes = ["attention", "MLP"];
  const off = values.map((row) => row.map((value) => value - centre));
  const most = Math.max(...off.flat().map(Math.abs)) || 1;
  const all = wide(920), cell = (all - 70) / values.length, high = 22;
  const picture = svg("svg", { viewBox: `0 0 ${all} ${2 * high + 22}`, role: "img", "aria-label": `${title}, ${values.length} layers, largest ${most.toPrecision(3)}` });
  writes.forEach((name, write) => {
    picture.append(svg("text", { x: 62, y: write * high + 15, "text-anchor": "end" }, name));
    off.forEach((row, layer) => {
      const value = row[write];
      picture.append(
        svg("rect", { class: `cell ${value < 0 ? "down" : "up"}`, x: 70 + layer * cell, y: write * high, width: cell, height: high, "fill-opacity": (0.04 + 0.96 * (Math.abs(value) / most)).toFixed(3) },
          svg("title", {}, `layer ${first + layer}, ${name}: ${values[layer][write].toPrecision(4)}`)));
    });
  });
  const step = Math.ceil(values.length / (phone.matches ? 8 : 16));
  for (let layer = 0; layer < values.length; layer += step) picture.append(svg("text", { x: 70 + (layer + 0.5) * cell, y: 2 * high + 15, "text-anchor": "middle" }, String(first + layer)));
  return make("figure", {}, make("figcaption", {}, title, make("span", { textContent: ` ${note}; strongest ±${most.toPrecision(3)}` })), picture);
}
