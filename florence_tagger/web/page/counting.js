// Detections -> shots (frames of a video, pages of a file, or one picture) and counts, by the service's own rule.

/** The shots of a document in order. The service names only those in which it found something; the gaps are filled. */
export function shotsOf(detections) {
  const last = detections.reduce((most, { frame }) => Math.max(most, frame), 0);
  const shots = Array.from({ length: last + 1 }, (_, frame) => ({ frame, detections: [] }));
  for (const one of detections) {
    const shot = shots[one.frame];
    shot.detections.push(one);
    shot.page = one.page;
    shot.time = one.time_s;
  }
  if (isPaged(detections)) shots.forEach((shot) => (shot.page = shot.frame + 1));
  if (isTimed(detections)) fillTimes(shots);
  return shots;
}

export const isTimed = (detections) => detections.some(({ time_s }) => time_s !== undefined);
const isPaged = (detections) => detections.some(({ page }) => page !== undefined);

/** Frames are evenly spaced from the first, at 0 s, to the last, in which something was found. */
function fillTimes(shots) {
  shots[0].time = 0;
  const known = shots.filter(({ time }) => time !== undefined);
  for (const shot of shots.filter(({ time }) => time === undefined)) {
    const before = known.findLast(({ frame }) => frame < shot.frame);
    const after = known.find(({ frame }) => frame > shot.frame);
    const share = (shot.frame - before.frame) / (after.frame - before.frame);
    shot.time = before.time + share * (after.time - before.time);
  }
}

/** What of a shot has at least this score. */
export const above = (shot, minScore) => shot.detections.filter(({ score }) => score >= minScore);

/** How often each label is in some detections. */
export function countLabels(detections) {
  const counts = new Map();
  for (const { label } of detections) counts.set(label, (counts.get(label) ?? 0) + 1);
  return counts;
}

/** Label, count and the shot that has it most: the sum over pages, else the most in any one frame; highest first. */
export function countDocument(shots, minScore) {
  const rows = new Map();
  for (const shot of shots) {
    for (const [label, count] of countLabels(above(shot, minScore))) {
      const row = rows.get(label) ?? { label, count: 0, most: 0 };
      row.count = shot.page === undefined ? Math.max(row.count, count) : row.count + count;
      if (count > row.most) Object.assign(row, { most: count, shot });
      rows.set(label, row);
    }
  }
  return [...rows.values()].sort((a, b) => b.count - a.count || compare(a.label, b.label));
}

export const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
