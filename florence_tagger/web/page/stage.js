// A shot with its boxes, on the page and in a picture to save.

import { nameOf } from "./counting.js";
import { element, rove } from "./dom.js";
import { drawn } from "./media.js";
import { dress, lookOf } from "./palette.js";

const FIELDS = [
  ["top left", "top", "top right"],
  ["left", "centre", "right"],
  ["bottom left", "bottom", "bottom right"],
];
const CROWD = 24; // boxes; of more, the names are shown only where one points

/** The picture of a shot, or plain ground where there is none, with boxes and the tiles that it was looked at in over it. */
export function stageOf(picture, { width, height }, detections, tiles) {
  const frame = element("div", { className: picture ? "frame" : "frame unseen" });
  frame.style.aspectRatio = `${width} / ${height}`;
  frame.style.setProperty("--ratio", width / height);
  frame.classList.toggle("crowded", detections.length > CROWD);
  if (picture) frame.append(picture);
  const largestFirst = [...detections].sort((a, b) => area(b.box) - area(a.box)); // the small ones can be pointed at
  const boxes = largestFirst.map((one) => boxOf(one, width, height));
  rove(boxes);
  frame.append(...tiles.map((tile) => placed(element("span", { className: "tile" }), tile, width, height)), ...boxes);
  return frame;
}

const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);

/** Where the middle of a box is, in words. */
function fieldOf([x1, y1, x2, y2], width, height) {
  const third = (middle, size) => Math.min(Math.floor((3 * middle) / size), 2);
  return FIELDS[third((y1 + y2) / 2, height)][third((x1 + x2) / 2, width)];
}

function boxOf(one, width, height) {
  const { label, score, box: corners } = one;
  const [x1, y1, x2, y2] = corners;
  const tag = element("span", { textContent: nameOf(one) });
  const box = element("button", { type: "button", className: "box", dataset: { label } }, tag);
  box.setAttribute("aria-label", `${nameOf(one)}, score ${score.toFixed(2)}, ${fieldOf(corners, width, height)}`);
  box.title = `${label} ${score.toFixed(2)}`;
  box.classList.toggle("at-top", y1 < height * 0.06); // no room above for the name
  const atRight = x1 + x2 > width; // the name goes to where there is more room, and not beyond the picture
  box.classList.toggle("at-right", atRight);
  tag.style.maxWidth = `min(16rem, ${percent((atRight ? x2 : width - x1) / Math.max(x2 - x1, 1))})`;
  return dress(placed(box, corners, width, height), label);
}

/** An element where its corners are in the picture. */
function placed(one, [x1, y1, x2, y2], width, height) {
  Object.assign(one.style, {
    left: percent(x1 / width),
    top: percent(y1 / height),
    width: percent((x2 - x1) / width),
    height: percent((y2 - y1) / height),
  });
  return one;
}

const percent = (share) => `${100 * share}%`;

/** A canvas with the picture and its boxes. */
export function annotated(picture, { width, height }, detections) {
  const canvas = picture ? drawn(picture, width, height) : element("canvas", { width, height });
  const context = canvas.getContext("2d");
  const unit = Math.max(width, height) / 640;
  context.font = `600 ${14 * unit}px system-ui, sans-serif`;
  context.textBaseline = "top";
  for (const one of detections) drawBox(context, one, unit);
  return canvas;
}

function drawBox(context, one, unit) {
  const { label, box: [x1, y1, x2, y2] } = one;
  const name = nameOf(one);
  const { colour, ink, dashes } = lookOf(label);
  outline(context, [x1, y1, x2 - x1, y2 - y1], { colour: "#000a", width: 5 * unit, dashes: [] });
  outline(context, [x1, y1, x2 - x1, y2 - y1], { colour, width: 3 * unit, dashes: dashes.map((dash) => dash * unit) });
  const height = 19 * unit;
  const width = context.measureText(name).width + 8 * unit;
  const left = Math.max(Math.min(x1, context.canvas.width - width), 0);
  const top = Math.max(y1 - height, 0);
  context.fillStyle = colour;
  context.fillRect(left, top, width, height);
  context.fillStyle = ink;
  context.fillText(name, left + 4 * unit, top + 3 * unit);
}

function outline(context, rectangle, { colour, width, dashes }) {
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.setLineDash(dashes);
  context.strokeRect(...rectangle);
}
