// What can be taken along: counts as JSON or CSV in the forms of the command line, and files.

import { compare, countDocument } from "./counting.js";
import { element } from "./dom.js";

/** A list of `{"file", "content", "error"}`, as `count --json` writes it; what still waits is left out. */
export function asJson(documents, minScore) {
  return JSON.stringify(documents.filter(isEnded).map((one) => entryOf(one, minScore)), null, 2);
}

/** A line for each label of each file, as `count --csv` writes it: one without a label where there is none. */
export function asCsv(documents, minScore) {
  const lines = documents.filter(isEnded).flatMap((one) => linesOf(entryOf(one, minScore)));
  return [["file", "label", "count", "error"], ...lines].map((cells) => cells.map(cellOf).join(",") + "\r\n").join("");
}

/** Whether there is something to tell of a document. */
export const isEnded = ({ state }) => state === "done" || state === "failed";

function entryOf(one, minScore) {
  const { name, state, reason } = one;
  if (state === "failed") return { file: name, content: [], error: reason };
  const rows = countDocument(one, minScore).sort((a, b) => compare(a.label, b.label));
  return { file: name, content: rows.map(({ label, count }) => ({ [label]: count })), error: null };
}

function linesOf({ file, content, error }) {
  if (error !== null) return [[file, "", "", error]];
  if (!content.length) return [[file, "", 0, ""]];
  return content.flatMap(Object.entries).map(([label, count]) => [file, label, count, ""]);
}

/** A cell of CSV (RFC 4180). */
function cellOf(value) {
  const text = String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Saves a blob as a file. */
export function save(name, blob) {
  const href = URL.createObjectURL(blob);
  element("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

/** Puts text on the clipboard, also where a page without TLS may not use the newer way; whether it could. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = element("textarea", { value: text });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}
