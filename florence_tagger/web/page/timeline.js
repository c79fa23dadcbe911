// The frames of a video or the pages of a file: a strip to choose from, and how the counts go over time.

import { above, countLabels } from "./counting.js";
import { element, rove, stopAt, svgElement } from "./dom.js";
import { drawn } from "./media.js";
import { lookOf } from "./palette.js";

const THUMB = 96; // pixels, the longer side
const WIDTH = 1000;
const HEIGHT = 100; // of the plot's own units, which are stretched to its place

/** Where a shot is in its document, in words. */
export function placeOf({ time, page }) {
  if (page !== undefined) return `page ${page}`;
  const minutes = Math.floor(time / 60);
  return `${minutes}:${(time - 60 * minutes).toFixed(time % 1 ? 1 : 0).padStart(time % 1 ? 4 : 2, "0")}`;
}

/** The same within a sentence. */
export const whereOf = (shot) => `${shot.page === undefined ? "at" : "on"} ${placeOf(shot)}`;

/** A button for each shot. Its picture comes when the browser has it. */
export function stripOf(shots, media, choose) {
  const buttons = shots.map((shot) => thumbOf(shot, media, () => choose(shot)));
  rove(buttons, (button) => button.click());
  return buttons;
}

function thumbOf(shot, media, onclick) {
  const scale = THUMB / Math.max(media.width, media.height);
  const [width, height] = [media.width * scale, media.height * scale].map(Math.ceil);
  const picture = element("canvas", { width, height });
  media.at(shot).then((source) => source && picture.replaceWith(drawn(source, width, height)));
  return element("button", { type: "button", onclick }, picture, element("span", { textContent: placeOf(shot) }));
}

/** Tells in a strip which shot is shown and how much is in each. */
export function updateStrip(buttons, shots, shown, minScore) {
  for (const [place, button] of buttons.entries()) {
    const number = above(shots[place], minScore).length;
    button.setAttribute("aria-pressed", shots[place] === shown);
    button.setAttribute("aria-label", `${placeOf(shots[place])}: ${number} found`);
    if (shots[place] !== shown) continue;
    stopAt(buttons, button);
    bringIntoView(button);
  }
}

/** Moves the strip, and not the page. */
function bringIntoView(button) {
  const strip = button.parentElement;
  strip.scrollLeft = button.offsetLeft - (strip.clientWidth - button.clientWidth) / 2;
}

/** The counts of each label over the shots, as lines, with the shown one marked. */
export function plotOf(shots, rows, shown, minScore, choose) {
  const counts = shots.map((shot) => countLabels(above(shot, minScore)));
  const most = Math.max(1, ...rows.map((row) => row.most));
  const x = xOf(shots);
  const y = (count) => HEIGHT - (HEIGHT - 8) * (count / most) - 2;
  const lines = rows.flatMap(({ label }) =>
    linesOf(label, shots.map((shot, place) => `${x(shot)},${y(counts[place].get(label) ?? 0)}`)),
  );
  const marker = svgElement("line", { class: "marker", x1: x(shown), x2: x(shown), y1: 0, y2: HEIGHT });
  const drawing = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" };
  const title = `Counts over ${shown.page === undefined ? "time" : "pages"}`;
  const plot = svgElement("svg", { ...drawing, "aria-label": `${title}. ${described(rows)}` }, marker, ...lines);
  plot.addEventListener("click", (event) => choose(nearest(shots, x, (event.offsetX / plot.clientWidth) * WIDTH)));
  const ends = { most, least: 0, title, first: placeOf(shots[0]), last: placeOf(shots.at(-1)) };
  return [plot, ...Object.entries(ends).map(([className, textContent]) => element("span", { className, textContent }))];
}

/** Where a shot is on the plot. */
function xOf(shots) {
  const when = (shot) => shot.time ?? shot.frame;
  const span = when(shots.at(-1)) || 1;
  return (shot) => (when(shot) / span) * WIDTH;
}

/** A label's line, on a wider one that sets it off from any ground. */
function linesOf(label, places) {
  const { colour, dashes } = lookOf(label);
  const line = { points: places.join(" "), "stroke-dasharray": dashes.join(" "), "data-label": label };
  return [svgElement("polyline", { ...line, class: "edge" }), svgElement("polyline", { ...line, stroke: colour })];
}

const nearest = (shots, x, wanted) =>
  shots.reduce((best, shot) => (Math.abs(x(shot) - wanted) < Math.abs(x(best) - wanted) ? shot : best));

const described = (rows) => rows.map(({ label, most, shot }) => `${label}: most, ${most}, ${whereOf(shot)}`).join("; ");
