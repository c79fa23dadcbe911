// What the browser can show of a file: {width, height, at(shot, urgent), close()}, where `at` promises a picture, or null
// where there is none; `unseen` where it can show nothing, `partly` where it can show the first picture alone.

import { element, once, within } from "./dom.js";

const AFTER = 0.001; // seconds; the service's times are rounded, and a frame must have begun
const PATIENCE = 10_000; // ms, with a browser that says neither that it can nor that it can't

/** Opens a file in the first way that works; where none does, boxes are shown alone. */
export async function openMedia(file, shots) {
  const url = URL.createObjectURL(file);
  for (const open of waysOf(shots)) {
    try {
      const media = await open(url, file);
      const { at, drop } = inTurns(media.at);
      const close = () => {
        drop();
        media.close?.();
        URL.revokeObjectURL(url);
      };
      return { ...media, at, close };
    } catch {
      continue;
    }
  }
  URL.revokeObjectURL(url);
  return unseen(shots);
}

function waysOf(shots) {
  if (shots[0].time !== undefined) return [openVideo, openAnimation, openFirst];
  return shots.length > 1 ? [openFirst] : [openPicture, openVideo]; // videos of one frame have no times
}

async function openPicture(url) {
  const picture = element("img", { src: url, alt: "" });
  await picture.decode();
  return { width: picture.naturalWidth, height: picture.naturalHeight, at: async () => picture };
}

/** What is promised; where it fails, what was begun is let go of. */
const orClose = (promise, close) =>
  promise.catch((error) => {
    close();
    throw error;
  });

/** The first picture of several, held still. */
async function openFirst(url) {
  const { width, height, at } = await openPicture(url);
  const picture = drawn(await at(), width, height);
  return { width, height, partly: true, at: async (shot) => (shot.frame ? null : picture) };
}

async function openVideo(url) {
  const video = element("video", { muted: true, preload: "auto", playsInline: true, src: url });
  const close = () => {
    video.removeAttribute("src");
    video.load(); // lets go of what it has decoded
  };
  const loaded = once(video, "loadeddata").then(() => {
    if (!video.videoWidth) throw new Error("no pictures, but perhaps sound");
  });
  await orClose(within(loaded, PATIENCE), close);
  return { width: video.videoWidth, height: video.videoHeight, at: (shot) => frameAt(video, shot.time ?? 0), close };
}

async function frameAt(video, time) {
  const seeked = once(video, "seeked");
  video.currentTime = Math.min(time + AFTER, video.duration);
  await within(seeked, PATIENCE);
  return drawn(video, video.videoWidth, video.videoHeight);
}

/** Animations are decoded by hand: a canvas only ever gets the first picture of an element. Without TLS there is no decoder. */
async function openAnimation(url, file) {
  if (!(await ImageDecoder.isTypeSupported(file.type))) throw new Error("no animation that is known here");
  const decoder = new ImageDecoder({ data: await file.arrayBuffer(), type: file.type });
  const close = () => decoder.close();
  return { ...(await orClose(picturesOf(decoder), close)), close };
}

async function picturesOf(decoder) {
  await within(Promise.all([decoder.tracks.ready, decoder.completed]), PATIENCE);
  const starts = await startsOf(decoder);
  const [width, height] = await decoded(decoder, 0, (image) => [image.displayWidth, image.displayHeight]);
  const at = (shot) => {
    const place = starts.findLastIndex((start) => start <= shot.time + AFTER);
    return decoded(decoder, place, (image) => drawn(image, width, height));
  };
  return { width, height, at };
}

/** When each frame of an animation begins, in seconds. */
async function startsOf(decoder) {
  const starts = [];
  for (let place = 0; place < decoder.tracks.selectedTrack.frameCount; place++) {
    starts.push(await decoded(decoder, place, (image) => image.timestamp / 1e6));
  }
  return starts;
}

/** What `use` makes of a frame of an animation. */
async function decoded(decoder, frameIndex, use) {
  const { image } = await decoder.decode({ frameIndex });
  try {
    return use(image);
  } finally {
    image.close();
  }
}

/** `at` for one shot after the other, as a video can seek; urgent ones come before all that wait. A failure is null. */
function inTurns(at) {
  const waiting = [];
  let busy = false;
  const work = async () => {
    if (busy) return;
    busy = true;
    while (waiting.length) await waiting.shift()();
    busy = false;
  };
  const wait = (shot, urgent = false) =>
    new Promise((resolve) => {
      const turn = () => Promise.resolve(shot).then(at).catch(() => null).then(resolve);
      if (urgent) waiting.unshift(turn);
      else waiting.push(turn);
      work();
    });
  return { at: wait, drop: () => waiting.splice(0) };
}

/** A canvas of a source. */
export function drawn(source, width, height) {
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").drawImage(source, 0, 0, width, height);
  return canvas;
}

/** As large as the boxes in it. */
function unseen(shots) {
  const boxes = shots.flatMap(({ detections }) => detections.map(({ box }) => box));
  const most = (side) => boxes.reduce((size, box) => Math.max(size, box[side]), 1);
  return { width: most(2), height: most(3), unseen: true, at: async () => null, close: () => {} };
}
