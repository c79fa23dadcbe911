// What is seen of a document: a shot with its boxes, and of several shots the strip and the plot.

import { above, countDocument } from "./counting.js";
import { byId, element } from "./dom.js";
import { openMedia } from "./media.js";
import { annotated, stageOf } from "./stage.js";
import { placeOf, plotOf, stripOf, updateStrip } from "./timeline.js";

export class View {
  #name;
  #asked;
  #shots;
  #shot; // that is to be seen
  #minScore;
  #choose;
  #onDrawn;
  #media = null; // once it is open
  #coming = new Set(); // shots whose pictures the browser is asked for
  #onStage = null; // {shot, picture}
  #strip = [];
  #closed = false;

  /** Opens a counted file. `choose` is called with a shot that is pointed at, `onDrawn` after each change of what is seen. */
  constructor({ file, shots, asked }, { choose, onDrawn }) {
    [this.#name, this.#shots, this.#choose, this.#onDrawn] = [file.name, shots, choose, onDrawn];
    this.#asked = asked;
    byId("stage").replaceChildren(element("p", { className: "help opening", textContent: "Opening…" }));
    byId("strip").replaceChildren();
    byId("timeline").hidden = !this.#hasTimeline;
    openMedia(file, shots).then((media) => this.#opened(media));
  }

  get #hasTimeline() {
    return this.#shots.length > 1;
  }

  #opened(media) {
    if (this.#closed) return media.close();
    this.#media = media;
    this.#fetch(); // before the strip's pictures
    if (this.#hasTimeline) {
      this.#strip = stripOf(this.#shots, media, this.#choose);
      byId("strip").replaceChildren(...this.#strip);
      updateStrip(this.#strip, this.#shots, this.#shot, this.#minScore);
    }
  }

  /** Shows a shot with its boxes of at least this score; until the browser has its picture, the shot before stays on stage. */
  show(shot, minScore) {
    [this.#shot, this.#minScore] = [shot, minScore];
    if (this.#hasTimeline) this.#drawTimeline();
    if (this.#onStage) this.#drawStage();
    if (this.#media && this.#onStage?.shot !== shot) this.#fetch();
    this.#onDrawn();
  }

  async #fetch() {
    const shot = this.#shot;
    if (this.#coming.has(shot)) return;
    this.#coming.add(shot);
    const picture = await this.#media.at(shot, true);
    this.#coming.delete(shot);
    if (this.#closed || this.#shot !== shot) return; // another one was chosen meanwhile
    this.#onStage = { shot, picture };
    this.#drawStage();
    this.#onDrawn();
  }

  #drawStage() {
    const { shot, picture } = this.#onStage;
    const detections = above(shot, this.#minScore);
    const place = this.#hasTimeline ? `, ${placeOf(shot)}` : "";
    byId("stage").setAttribute("aria-label", `${this.#name}${place}: ${detections.length} found`);
    byId("tiles-shown").hidden = !shot.tiles.length;
    byId("stage").replaceChildren(stageOf(picture, this.#media, detections, shot.tiles));
  }

  #drawTimeline() {
    const rows = countDocument({ shots: this.#shots, asked: this.#asked }, this.#minScore).filter(({ most }) => most);
    byId("plot").replaceChildren(...plotOf(this.#shots, rows, this.#shot, this.#minScore, this.#choose));
    updateStrip(this.#strip, this.#shots, this.#shot, this.#minScore);
  }

  /** What is to be known of how the file is shown. */
  get note() {
    if (this.#media?.unseen) return "This browser can't show the file; the boxes are where things were found.";
    if (this.#media?.partly) return "This browser can show the first picture of the file alone.";
    return "";
  }

  /** What is on the stage as a canvas, and its shot; null where the file is still being opened. */
  annotated() {
    if (!this.#onStage) return null;
    const { shot, picture } = this.#onStage;
    return { shot, canvas: annotated(picture, this.#media, above(shot, this.#minScore)) };
  }

  /** Lets go of the file. */
  close() {
    this.#closed = true;
    this.#media?.close();
  }
}
