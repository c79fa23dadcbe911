// A look for each label, the same in all files: a colour of Okabe and Ito, which the colour-blind can tell apart, and a
// pattern of dashes, so that colour is never alone.

const COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#f0e442", "#d55e00", "#cc79a7", "#0072b2", "#bbbbbb"];
const DARK = new Set(["#0072b2"]); // white is readable on these, black on the others
const DASHES = [
  { style: "solid", dashes: [] },
  { style: "dashed", dashes: [9, 5] },
  { style: "dotted", dashes: [2.5, 3.5] },
  { style: "double", dashes: [14, 4, 3, 4] },
];

const places = new Map();

/** The colour, the ink on it and the dashes of a label. */
export function lookOf(label) {
  if (!places.has(label)) places.set(label, places.size);
  const place = places.get(label);
  const round = Math.floor(place / COLOURS.length); // the colours come again with other dashes
  const colour = COLOURS[place % COLOURS.length];
  return { colour, ink: DARK.has(colour) ? "#fff" : "#000", ...DASHES[(place + round) % DASHES.length] };
}

/** Gives an element the look of a label; the style sheet does the rest. */
export function dress(element, label) {
  const { colour, ink, style } = lookOf(label);
  element.style.setProperty("--colour", colour);
  element.style.setProperty("--ink", ink);
  element.style.setProperty("--dashes", style);
  return element;
}
