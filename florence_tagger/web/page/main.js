// The page: files in, one request after the other, results out.

import { countDocument, isDistinct, shotsOf } from "./counting.js";
import { byId, element } from "./dom.js";
import { asCsv, asJson, copy, isEnded, save } from "./exports.js";
import { dress } from "./palette.js";
import { countObjects, ServiceError, UNREACHED } from "./service.js";
import { whereOf } from "./timeline.js";
import { View } from "./view.js";

const documents = []; // {file, name, state: waiting, working, done or failed; reason, asked, found, shots, shot}
let shown = null; // one of them
let view = null; // of the shown one, if it is done
let minScore = 0;
let pinned = null; // the label that stays lit
let working = false;
let stopper = null; // of the request under way

// ---- files in -------------------------------------------------------------------------------------------------------

function add(files) {
  const added = [...(files ?? [])].map((file) => ({ file, name: file.name, state: "waiting", shots: [] }));
  if (!added.length) return;
  documents.push(...added);
  show(added[0]);
  work();
}

/** Adds what was dropped. */
function addDropped({ files }) {
  if (files.length) add(files);
  else tell("That was no file. Save the picture, then drop or choose it.");
}

async function addSample(name) {
  try {
    const response = await fetch(`/page/samples/${name}`);
    if (!response.ok) return tell(`The service answered ${response.status}.`);
    add([new File([await response.blob()], name, { type: response.headers.get("Content-Type") })]);
  } catch {
    tell(UNREACHED);
  }
}

// ---- work -----------------------------------------------------------------------------------------------------------

/** Counts what waits, one file after the other. */
async function work() {
  if (working || !waiting().length || textIsMissing()) return;
  working = true;
  tell(`Counting ${plural(waiting().length, "file")}.`);
  const wanted = task(); // of all files of a run
  while (waiting().length) await count(waiting()[0], wanted);
  working = false;
  renderFiles();
  if (byId("work").contains(document.activeElement)) byId("again").focus(); // the button for stopping goes
  byId("work").hidden = true;
  tell(summary());
}

const waiting = () => documents.filter(({ state }) => state === "waiting");

async function count(one, wanted) {
  one.state = "working";
  stopper = new AbortController();
  tellProgress(one, 0);
  renderFiles();
  const hooks = {
    signal: stopper.signal,
    onUpload: (share) => tellProgress(one, share),
    onFull: () => tellFull(one),
    askForKey,
  };
  try {
    const found = await countObjects(one.file, wanted, hooks);
    const shots = shotsOf(found);
    const shot = shots.reduce((best, other) => (other.detections.length > best.detections.length ? other : best));
    Object.assign(one, { state: "done", asked: wanted, found, shots, shot });
  } catch (error) {
    if (error === stopper.signal.reason) stopped(one);
    else fail(one, error instanceof ServiceError ? error.message : "The service's answer can't be read.");
  }
  if (documents.includes(one)) renderFiles();
  if (one === shown) renderShown();
}

function fail(one, reason) {
  Object.assign(one, { state: "failed", reason, shots: [] });
}

/** What was counted before keeps its result. */
function stopped(one) {
  if (one.shots.length) one.state = "done";
  else fail(one, "Stopped.");
}

function task() {
  const isText = !byId("text").hidden;
  const names = byId("classes").value.split(",").map((name) => name.trim()).filter(Boolean);
  return {
    prompt: byId("prompt").value,
    text: isText ? byId("text").value.trim() : "",
    classes: isText || !names.length ? null : names, // a text says itself what to look for
    video_count: byId("video-count").value,
    tiles: byId("tiles").value,
  };
}

function textIsMissing() {
  const missing = !byId("text").hidden && !byId("text").value.trim();
  if (missing) {
    tell("Say what to look for, then count.");
    byId("text").focus();
  }
  return missing;
}

function countAgain(event) {
  event.preventDefault();
  if (working || textIsMissing()) return;
  const pressed = document.activeElement === event.submitter; // which is disabled now
  for (const one of documents) one.state = "waiting";
  work();
  if (pressed) byId("stop").focus();
}

function stop() {
  stopper.abort(new ServiceError("Stopped."));
  const queued = waiting();
  queued.forEach(stopped);
  renderFiles();
  if (queued.includes(shown)) renderShown();
}

function clear() {
  if (working) stop();
  documents.length = 0;
  show(null);
  tell("");
  byId("files").focus();
}

/** Asks for the API key; nothing where none is given. */
function askForKey(refused) {
  const dialog = byId("key");
  byId("key-help").textContent = refused ? "The service did not accept this key." : "It is kept until this tab is closed.";
  byId("key-text").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const answer = () => {
      const key = dialog.returnValue === "use" ? byId("key-text").value : "";
      if (!key) stop(); // the other files need it, too
      resolve(key);
    };
    dialog.addEventListener("close", answer, { once: true });
  });
}

// ---- words ----------------------------------------------------------------------------------------------------------

function tell(text) {
  byId("told").textContent = text;
}

function tellProgress(one, sent) {
  const [place, number] = [documents.indexOf(one), documents.length];
  const progress = byId("progress");
  byId("work").hidden = false;
  byId("working").textContent = `${sent < 1 ? "Sending" : "Counting"} ${one.name}` + (number > 1 ? ` (${place + 1} of ${number})` : "");
  if (number > 1) progress.value = (place + sent / 2) / number;
  else if (sent < 1) progress.value = sent;
  else progress.removeAttribute("value"); // how long one file takes is not known
}

function tellFull(one) {
  byId("working").textContent = `The service is busy or starting; ${one.name} is sent again in a moment`;
  byId("progress").removeAttribute("value");
}

const plural = (number, one) => `${number} ${one}${number === 1 ? "" : "s"}`;

function summary() {
  const failed = documents.filter(({ state }) => state === "failed").length;
  const counted = documents.length - failed;
  if (!documents.length) return "";
  if (documents.length > 1) return `${plural(counted, "file")} counted` + (failed ? `, ${failed} not.` : ".");
  const [one] = documents;
  return failed ? `${one.name} could not be counted.` : toldOf(one);
}

const toldOf = (one) => `${one.name}: ${totalOf(one)}.`;

function totalOf(one) {
  const rows = countDocument(one, minScore);
  const total = rows.reduce((sum, { count }) => sum + count, 0);
  const what = isDistinct(one) ? "different object" : "object";
  return rows.length ? `${plural(total, what)}, ${plural(rows.length, "label")}` : "Nothing found";
}

function aboutOf({ model, device, seconds }) {
  return (model ? `Counted by ${model} on ${inShort(device)}` : "Counted") + ` in ${seconds.toFixed(seconds < 10 ? 2 : 0)} s.`;
}

/** "vision on CPU, encoder on CPU" is CPU. */
function inShort(device) {
  const devices = new Set(device.split(", ").map((part) => part.split(" on ").at(-1)));
  return devices.size === 1 ? [...devices][0] : device;
}

function noteOf({ truncated, incomplete }) {
  const notes = [view.note];
  if (truncated) notes.push("There is more to see than the model could tell; these counts may be too low.");
  if (incomplete) notes.push("This file is damaged or slow to decode; it was counted by what could be decoded.");
  return notes.filter(Boolean).join(" ");
}

// ---- results out ----------------------------------------------------------------------------------------------------

function show(one) {
  if (one === shown) return;
  shown = one;
  renderFiles();
  renderShown();
}

function showShot(shot) {
  shown.shot = shot;
  view.show(shot, minScore);
}

function renderFiles() {
  const buttons = () => [...byId("list").querySelectorAll("button")];
  const focused = buttons().indexOf(document.activeElement);
  byId("results").hidden = !documents.length;
  byId("again").disabled = working || !documents.length;
  for (const name of ["copy", "csv"]) byId(name).disabled = !documents.some(isEnded);
  document.body.classList.toggle("counting", documents.length > 0);
  byId("list").replaceChildren(...documents.map(fileItem));
  buttons()[focused]?.focus();
}

function fileItem(one) {
  const button = element("button", { type: "button", onclick: () => show(one), dataset: { state: one.state } });
  button.append(element("span", { textContent: one.name }), element("b", { textContent: stateOf(one) }));
  button.setAttribute("aria-pressed", one === shown);
  return element("li", {}, button);
}

function stateOf(one) {
  if (one.state === "done") return countDocument(one, minScore).reduce((sum, { count }) => sum + count, 0);
  return { waiting: "waits", working: "…", failed: "failed" }[one.state];
}

function renderShown() {
  const done = shown?.state === "done";
  const failed = shown?.state === "failed";
  byId("found").hidden = !done;
  byId("reason").hidden = !failed;
  byId("reason").textContent = failed ? `${shown.name}: ${shown.reason}` : "";
  view?.close();
  view = null;
  if (!done) return;
  byId("about").textContent = aboutOf(shown.found);
  renderCounts();
  view = new View(shown, { choose: showShot, onDrawn: renderAround });
  view.show(shown.shot, minScore);
}

/** What follows the boxes: the note, and what stands out. */
function renderAround() {
  const note = noteOf(shown.found);
  byId("note").hidden = !note;
  byId("note").textContent = note;
  renderPinned();
}

function renderCounts() {
  const rows = countDocument(shown, minScore);
  const most = rows[0]?.count || 1;
  byId("total").textContent = totalOf(shown);
  byId("count-head").textContent = isDistinct(shown) ? "Different ones" : "Count";
  byId("rows").replaceChildren(...rows.map((row) => rowOf(row, most)));
}

function rowOf({ label, count, shot, most: inOne }, most) {
  const isPlace = shown.shots.length > 1 && shot;
  const button = element("button", { type: "button" }, element("span", { className: "swatch" }), label);
  button.onclick = () => {
    pin(label);
    if (isPlace) showShot(shot);
  };
  if (isPlace) button.append(element("small", { textContent: `${inOne} ${whereOf(shot)}` }));
  const bar = element("span", { className: "bar" });
  bar.style.width = `${(100 * count) / most}%`;
  const cells = [element("th", { scope: "row" }, button), element("td", {}, bar), element("td", { textContent: count })];
  return dress(element("tr", { dataset: { label } }, ...cells), label);
}

function setThreshold(event) {
  minScore = Number(event.target.value);
  byId("least").textContent = minScore.toFixed(2);
  renderFiles();
  if (!view) return;
  renderCounts();
  view.show(shown.shot, minScore);
}

/** Says what the new threshold leaves, once it stays. */
function tellThreshold() {
  if (view) tell(toldOf(shown));
}

// ---- boxes and rows -------------------------------------------------------------------------------------------------

/** Makes the boxes, the row and the line of a label stand out; of none, all are alike. */
function light(label) {
  const labelled = [...byId("found").querySelectorAll("[data-label]")];
  const some = labelled.some(({ dataset }) => dataset.label === label);
  byId("found").classList.toggle("some-lit", some);
  for (const one of labelled) one.classList.toggle("lit", one.dataset.label === label);
}

function lightUnder({ target }) {
  light(target.closest?.("[data-label]")?.dataset.label ?? pinned);
}

function pin(label) {
  pinned = pinned === label ? null : label;
  renderPinned();
}

function renderPinned() {
  for (const button of byId("found").querySelectorAll(".box, tbody button")) {
    button.setAttribute("aria-pressed", button.closest("[data-label]").dataset.label === pinned);
  }
  light(pinned);
}

// ---- exports --------------------------------------------------------------------------------------------------------

async function copyJson() {
  tell((await copy(asJson(documents, minScore))) ? "Copied." : "This browser does not let the page copy.");
}

function saveCsv() {
  save("counts.csv", new Blob([asCsv(documents, minScore)], { type: "text/csv" }));
}

function savePng() {
  const { name, shots } = shown;
  const seen = view.annotated();
  if (!seen) return tell("The picture is not open yet.");
  const { shot, canvas } = seen;
  const place = shots.length > 1 ? `-${shot.page ?? shot.frame}` : "";
  canvas.toBlob((blob) => {
    if (blob) save(`${name.replace(/\.\w+$/, "")}${place}-counted.png`, blob);
    else tell("This picture is too large for the browser to save.");
  });
}

// ---- wiring ---------------------------------------------------------------------------------------------------------

byId("files").addEventListener("change", ({ target }) => {
  add(target.files);
  target.value = ""; // the same file may be chosen again
});
for (const button of document.querySelectorAll("[data-sample]")) {
  button.addEventListener("click", ({ detail }) => detail < 2 && addSample(button.dataset.sample)); // twice is meant once
}
document.addEventListener("paste", ({ clipboardData }) => add(clipboardData?.files));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  addDropped(event.dataTransfer);
});
byId("prompt").addEventListener("change", ({ target }) => {
  const { text } = target.selectedOptions[0].dataset;
  byId("text").hidden = !text;
  byId("text").placeholder = text ?? "";
  byId("classes").disabled = Boolean(text); // a text says itself what to look for
  if (!text) work(); // what waited for a text
});
byId("task").addEventListener("submit", countAgain);
byId("stop").addEventListener("click", stop);
byId("clear").addEventListener("click", clear);
byId("threshold").addEventListener("input", setThreshold);
byId("threshold").addEventListener("change", tellThreshold);
for (const event of ["pointerover", "focusin"]) byId("found").addEventListener(event, lightUnder);
for (const event of ["pointerleave", "focusout"]) byId("found").addEventListener(event, () => light(pinned));
byId("stage").addEventListener("click", ({ target }) => {
  const box = target.closest(".box");
  if (box) pin(box.dataset.label);
});
byId("show-tiles").addEventListener("change", ({ target }) => {
  byId("stage").classList.toggle("without-tiles", !target.checked);
});
byId("copy").addEventListener("click", copyJson);
byId("csv").addEventListener("click", saveCsv);
byId("png").addEventListener("click", savePng);
