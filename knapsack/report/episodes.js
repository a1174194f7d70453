// Two episodes of a task side by side. What models wrote becomes text nodes, never markup.
"use strict";

const at = (id) => document.getElementById(id);
const make = (tag, text = "", more = {}) => Object.assign(document.createElement(tag), { textContent: text }, more);
const number = (value) => value.toLocaleString("en");
let cells, told;

async function unpack() {
  const bytes = Uint8Array.from(atob(at("data").textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/* What the address asks for; what it leaves open, or what is not there, is chosen. */
function asked() {
  const [place, query] = location.hash.slice(1).split("?");
  const [name, task] = place.split("/").map(decodeURIComponent);
  const more = new URLSearchParams(query);
  const cause = more.get("cause") ?? "";
  const first = cells.find((cell) => cell.name === name) ?? cells.find((cell) => tasksOf(cell, cause).length) ?? cells[0];
  return settled(first, cells.find((cell) => cell.name === more.get("beside")), cause, task, Number(more.get("turn")));
}

function settled(first, second, cause, task, turn = 0) {
  const tasks = tasksOf(first, cause);
  if (!tasks.length) return settled(first, second, "", task, turn);
  const beside = second?.setting === first.setting ? second : partner(first);
  return { first, second: beside, cause, task: tasks.includes(task) ? task : tasks[0], turn };
}

const tasksOf = (cell, cause) =>
  Object.keys(cell.episodes).filter((task) => !cause || cell.episodes[task].cause === cause);

/* The model in the runtime it was trained with, else in another runtime, else any other cell of the same tasks. */
function partner(cell) {
  const others = cells.filter((other) => other.setting === cell.setting && other !== cell);
  const own = others.filter((other) => other.model === cell.model);
  return own.find((other) => other.runtime === cell.model) ?? own[0] ?? others[0] ?? cell;
}

function options(id, values, chosen) {
  at(id).replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

function show({ first, second, cause, task, turn }) {
  const here = cells.filter((cell) => cell.setting === first.setting);
  options("setting", [...new Set(cells.map((cell) => cell.setting))].map((name) => [name, name]), first.setting);
  for (const [id, chosen] of [["first", first], ["second", second]])
    options(id, here.map((cell) => [cell.name, `${cell.label} (${cell.model} model, ${cell.runtime} runtime)`]), chosen.name);
  const causes = [...new Set(Object.values(first.episodes).map((one) => one.cause).filter(Boolean))].sort();
  const counted = causes.map((name) => [name, `${name} (${tasksOf(first, name).length})`]);
  options("cause", [["", `all (${tasksOf(first, "").length})`], ...counted], cause);
  const tasks = tasksOf(first, cause);
  const score = (cell, one) => cell.episodes[one]?.score.toFixed(2) ?? "not played";
  options("task", tasks.map((one) => [one, `${one}: ${score(first, one)} | ${score(second, one)}`]), task);
  at("previous").disabled = task === tasks[0];
  at("next").disabled = task === tasks.at(-1);
  at("now").textContent = `Task ${tasks.indexOf(task) + 1} of ${tasks.length}: ${task}, ${first.setting}`;
  at("pair").replaceChildren(...column(first, task, "first", 1), ...column(second, task, "second", 2));
  const query = new URLSearchParams({ beside: second.name });
  if (cause) query.set("cause", cause);
  if (turn) query.set("turn", turn);
  history.replaceState(null, "", `#${encodeURIComponent(first.name)}/${encodeURIComponent(task)}?${query}`);
  if (turn) at(`first-${turn}`)?.scrollIntoView();
}

/* An episode as the cells of a grid's column, a row for each turn. */
function column(cell, task, side, place) {
  const episode = cell.episodes[task];
  const parts = [head(cell, episode, side), ...(episode?.turns ?? []).map((one, index) => turnOf(one, index, episode, side))];
  parts.forEach((part, row) => (part.style.gridArea = `${row + 1} / ${place}`));
  return parts;
}

function head(cell, episode, side) {
  const part = make("div", "", { className: "head" });
  part.append(make("h2", `${cell.label}: ${cell.model} model, ${cell.runtime} runtime`));
  if (!episode) return part.append(make("p", "This cell has no completed episode of the task.")), part;
  const tokens = episode.turns.reduce((sum, one) => sum + one.tokens[0] + one.tokens[1], 0);
  const facts = `score ${episode.score.toFixed(2)}, ${episode.turns.length} turns, ${number(tokens)} tokens, ${episode.end}`;
  part.append(make("p", facts));
  if (episode.cause) {
    const why = make("p", `Below the teacher (${episode.teacher_score.toFixed(2)}): `);
    const link = make("button", `${episode.cause}, turn ${episode.turn + 1}`, { type: "button" });
    link.onclick = () => at(`${side}-${episode.turn + 1}`).scrollIntoView();
    part.append((why.append(link), why));
  }
  const opening = make("details");
  opening.append(make("summary", "What the model was told"), ...episode.told.map((text) => box(told[text])));
  part.append(opening);
  return part;
}

const box = (text, kind = "") => {
  const part = make("pre", "", { tabIndex: 0, className: kind });
  part.append(text);
  return part;
};

function turnOf(turn, index, episode, side) {
  const part = make("section", "", { id: `${side}-${index + 1}`, className: "turn" });
  const [prompt, completion] = turn.tokens.map(number);
  part.append(make("h3", `Turn ${index + 1}`), make("p", `${prompt} tokens read, ${completion} written`, { className: "quiet" }));
  if (episode.cause && episode.turn === index)
    part.append(make("p", `This turn shows the cause: ${episode.cause}.`, { className: "cause" }));
  if (turn.words) part.append(turn.code === null ? box(turn.words) : make("p", turn.words));
  if (turn.code !== null) part.append(box(marked(turn), "code"));
  if (turn.lost) part.append(make("p", `Lost: ${turn.lost}`, { className: "lost" }));
  if (turn.again.length) part.append(make("p", `Written down again: ${turn.again.join(", ")}`, { className: "again" }));
  if (turn.output.trim()) part.append(box(turn.output, "seen"));
  if (turn.error) part.append(box(turn.error, "seen error"));
  if (!turn.output.trim() && !turn.error) part.append(make("p", "(prints nothing)", { className: "quiet" }));
  return part;
}

/* The code, with the lost name and those that it writes down again marked wherever they stand. */
function marked(turn) {
  const code = document.createDocumentFragment();
  for (const word of turn.code.split(/([\p{L}_][\p{L}\p{N}_]*)/u)) {
    const kind = word === turn.lost ? "lost" : turn.again.includes(word) ? "again" : "";
    code.append(kind ? make("mark", word, { className: kind }) : word);
  }
  return code;
}

function chosen() {
  const cell = (id) => cells.find((one) => one.name === at(id).value);
  return [cell("first"), cell("second"), at("cause").value, at("task").value];
}

function step(by) {
  at("task").selectedIndex += by;
  show(settled(...chosen()));
}

function moved() {
  const there = (cell) =>
    cells.find((one) => one.setting === at("setting").value && one.label === cell.label) ??
    cells.find((one) => one.setting === at("setting").value);
  const [first, second, cause, task] = chosen();
  show(settled(there(first), there(second), cause, task));
}

unpack().then((content) => {
  ({ cells, told } = content);
  if (!cells.length) return (at("now").textContent = "No episode is completed.");
  at("setting").onchange = moved;
  for (const id of ["first", "second", "cause", "task"]) at(id).onchange = () => step(0);
  at("previous").onclick = () => step(-1);
  at("next").onclick = () => step(1);
  window.onhashchange = () => show(asked());
  at("choose").hidden = false;
  show(asked());
});
