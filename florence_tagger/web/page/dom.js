// Elements of the page: found, and made without markup in strings.

export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with properties and children. */
export function element(name, properties = {}, ...children) {
  const { dataset = {}, ...others } = properties;
  const made = Object.assign(document.createElement(name), others);
  Object.assign(made.dataset, dataset);
  made.append(...children);
  return made;
}

/** An SVG element with attributes and children. */
export function svgElement(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Waits for an event of a target; its error event is an error. */
export function once(target, event) {
  return new Promise((resolve, reject) => {
    const heard = new AbortController(); // one of both is; the other is listened for no longer
    const listen = (name, act) => target.addEventListener(name, (one) => (heard.abort(), act(one)), { signal: heard.signal });
    listen(event, resolve);
    listen("error", () => reject(new Error(`no ${event}`)));
  });
}

/** A promise that fails unless another one is kept within some milliseconds. */
export function within(promise, milliseconds) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("late")), milliseconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

const STEPS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity };

/**
 * Makes buttons one stop of the Tab key, between which the arrow keys, Home and End move: the roving tabindex of the ARIA
 * Authoring Practices. `onMove` is called with the button that was gone to.
 */
export function rove(buttons, onMove = () => {}) {
  for (const [place, button] of buttons.entries()) {
    button.tabIndex = place ? -1 : 0;
    button.addEventListener("focus", () => stopAt(buttons, button));
    button.addEventListener("keydown", (event) => {
      if (!(event.key in STEPS)) return;
      event.preventDefault(); // the page would scroll
      const next = buttons[Math.min(Math.max(place + STEPS[event.key], 0), buttons.length - 1)];
      next.focus();
      if (next !== button) onMove(next);
    });
  }
}

/** Makes one of such buttons the one that the Tab key stops at. */
export function stopAt(buttons, stop) {
  for (const button of buttons) button.tabIndex = button === stop ? 0 : -1;
}
