// What can be taken along: counts as JSON or CSV, and files.

import { compare, countDocument } from "./counting.js";
import { element } from "./dom.js";

/** The documents' counts in the form of the command line's --json. */
export function asJson(documents, minScore) {
  return JSON.stringify(documents.map((one) => entryOf(one, minScore)), null, 2);
}

function entryOf({ name, shots, reason }, minScore) {
  const content = countsOf(shots, minScore).map(({ label, count }) => ({ [label]: count }));
  return { file: name, content: reason ? null : content, error: reason || null };
}

/** A line for each label of each document. */
export function asCsv(documents, minScore) {
  const lines = documents.flatMap(({ name, shots }) =>
    countsOf(shots, minScore).map(({ label, count }) => [name, label, count]),
  );
  return [["file", "label", "count"], ...lines].map((cells) => cells.map(cellOf).join(",") + "\r\n").join("");
}

const countsOf = (shots, minScore) => countDocument(shots, minScore).sort((a, b) => compare(a.label, b.label));

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

/** Puts text on the clipboard, also where a page without TLS may not use the newer way. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = element("textarea", { value: text });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
