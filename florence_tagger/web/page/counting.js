// Detections -> shots (frames of a video, pages of a file, or one picture) and counts, by the service's own rule.

/** The shots of a document in order, each with what was found in it. */
export function shotsOf({ frames, detections }) {
  const shots = frames.map(({ frame, page, time_s: time, tiles = [] }) => ({ frame, page, time, tiles, detections: [] }));
  for (const one of detections) shots[one.frame].detections.push(one);
  return shots;
}

/** What of a shot has at least this score. */
export const above = (shot, minScore) => shot.detections.filter(({ score }) => score >= minScore);

/** How often each label is in some detections. */
export function countLabels(detections) {
  const counts = new Map();
  for (const { label } of detections) counts.set(label, (counts.get(label) ?? 0) + 1);
  return counts;
}

/** What is written at a detection: its label, with the number of its track where it has one. */
export const nameOf = ({ label, track }) => (track === undefined ? label : `${label} ${track}`);

/** Whether different ones are counted in a document: it was asked for, and there are moments. */
export const isDistinct = ({ shots, asked }) => asked?.video_count === "distinct" && shots[0]?.time !== undefined;

/** Label, count and the shot that has it most; highest first. The count is the sum over pages, the number of tracks
 * where different ones are counted, else the most in any one frame; classes that were asked for are there with 0, too. */
export function countDocument({ shots, asked }, minScore) {
  const classes = asked?.classes ?? [];
  const rows = new Map(classes.map((label) => [label, { label, count: 0, most: 0 }]));
  for (const shot of shots) {
    for (const [label, count] of countLabels(above(shot, minScore))) {
      const row = rows.get(label) ?? { label, count: 0, most: 0 };
      row.count = shot.page === undefined ? Math.max(row.count, count) : row.count + count;
      if (count > row.most) Object.assign(row, { most: count, shot });
      rows.set(label, row);
    }
  }
  if (isDistinct({ shots, asked })) countTracks(rows, shots, minScore);
  const told = [...rows.values()].filter(({ label, count }) => count || classes.includes(label));
  return told.sort((a, b) => b.count - a.count || compare(a.label, b.label));
}

function countTracks(rows, shots, minScore) {
  const detections = shots.flatMap((shot) => above(shot, minScore));
  const counts = countLabels(new Map(detections.filter(({ track }) => track).map((one) => [one.track, one])).values());
  for (const row of rows.values()) row.count = counts.get(row.label) ?? 0;
}

export const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
