// Detections -> shots (frames of a video, pages of a file, or one picture) and counts, by the service's own rule.

/** The shots of a document in order, each with what was found in it. */
export function shotsOf({ frames, detections }) {
  const shots = frames.map(({ frame, page, time_s: time }) => ({ frame, page, time, detections: [] }));
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
