// What the browser can show of a file: {width, height, at(shot)}, where `at` gives an element, or null where it can't;
// `unseen` where it can show nothing.

import { element, once } from "./dom.js";
import { isTimed } from "./counting.js";

const AFTER = 0.001; // seconds; the service's times are rounded, and a frame must have begun

/** Opens a file in the first way that works; where none does, boxes are shown alone. */
export async function openMedia(file, detections) {
  const url = URL.createObjectURL(file);
  const moves = isTimed(detections);
  const ways = moves ? [() => openVideo(url), () => openAnimation(file)] : [() => openPicture(url), () => openVideo(url)];
  for (const open of ways) {
    try {
      return await open();
    } catch {
      continue;
    }
  }
  return unseen(detections);
}

async function openPicture(url) {
  const picture = element("img", { src: url, alt: "" });
  await picture.decode();
  return { width: picture.naturalWidth, height: picture.naturalHeight, at: async (shot) => (shot.frame ? null : picture) };
}

async function openVideo(url) {
  const video = element("video", { muted: true, preload: "auto", playsInline: true, src: url });
  await once(video, "loadeddata");
  if (!video.videoWidth) throw new Error("no pictures, but perhaps sound");
  let turn = Promise.resolve(); // one seek at a time
  const at = (shot) => (turn = turn.then(() => frameAt(video, shot.time ?? 0)).catch(() => null));
  return { width: video.videoWidth, height: video.videoHeight, at };
}

async function frameAt(video, time) {
  const seeked = once(video, "seeked");
  video.currentTime = Math.min(time + AFTER, video.duration);
  await seeked;
  return drawn(video, video.videoWidth, video.videoHeight);
}

/** Animations are decoded by hand: a canvas only ever gets the first picture of an element. */
async function openAnimation(file) {
  if (!(await ImageDecoder.isTypeSupported(file.type))) throw new Error("no animation that is known here");
  const decoder = new ImageDecoder({ data: await file.arrayBuffer(), type: file.type });
  await Promise.all([decoder.tracks.ready, decoder.completed]);
  const starts = await startsOf(decoder);
  const { image } = await decoder.decode();
  const at = async (shot) => {
    const frameIndex = starts.findLastIndex((start) => start <= shot.time + AFTER);
    return drawn((await decoder.decode({ frameIndex })).image, image.displayWidth, image.displayHeight);
  };
  return { width: image.displayWidth, height: image.displayHeight, at };
}

/** When each frame of an animation begins, in seconds. */
async function startsOf(decoder) {
  const starts = [];
  for (let frameIndex = 0; frameIndex < decoder.tracks.selectedTrack.frameCount; frameIndex++) {
    const { image } = await decoder.decode({ frameIndex });
    starts.push(image.timestamp / 1e6);
    image.close();
  }
  return starts;
}

/** A canvas of a source. */
export function drawn(source, width, height) {
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").drawImage(source, 0, 0, width, height);
  return canvas;
}

/** As large as the boxes in it. */
function unseen(detections) {
  const most = (side) => detections.reduce((size, { box }) => Math.max(size, box[side]), 1);
  return { width: most(2), height: most(3), unseen: true, at: async () => null };
}
