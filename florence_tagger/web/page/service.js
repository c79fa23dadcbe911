// What is asked of the service: POST /process, and nothing else.

const KEY = "florence_tagger.key"; // kept for this tab alone

const PATIENCE = 300_000; // ms, with a service that loads its model, or has no room

export const UNREACHED = "The service can't be reached. Is it running?";

/** A failure with a message for people. */
export class ServiceError extends Error {}

/** What the service finds in a file: its frames and detections, and the model, device and seconds that it took. */
export async function countObjects(file, task, hooks) {
  const body = JSON.stringify({
    documents: [{ id: file.name, source: { content: await base64(file), file_name: file.name } }],
    num_labels: 0,
    return_boxes: true,
    ...task,
  });
  const answer = await postUntilTaken(body, hooks);
  const { seconds } = answer;
  const { detections, frames, truncated = false, incomplete = false } = sourceOf(answer);
  return { detections, frames, truncated, incomplete, seconds, model: answer.header("X-Model"), device: answer.header("X-Device") };
}

function base64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new ServiceError("The browser can't read this file."));
    reader.readAsDataURL(file);
  });
}

/** Posts, waits for a service that has no room, and asks for a key as long as the service wants another one. */
async function postUntilTaken(body, { signal, onUpload, onFull, askForKey }) {
  const deadline = performance.now() + PATIENCE;
  for (;;) {
    const answer = await post(body, signal, onUpload);
    const wait = Number(answer.header("Retry-After")); // seconds, as the service tells them
    if (answer.status === 401) await renewKey(askForKey);
    else if (answer.status === 503 && wait && performance.now() < deadline) {
      onFull();
      await pause(wait, signal);
    } else return answer;
  }
}

async function renewKey(askForKey) {
  const refused = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  const key = await askForKey(refused);
  if (!key) throw new ServiceError("The service wants an API key.");
  sessionStorage.setItem(KEY, key);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, seconds * 1000);
    signal.addEventListener("abort", () => reject(signal.reason));
  });
}

/** One POST to /process. It is no fetch, since only XMLHttpRequest tells how much is sent. */
function post(body, signal, onUpload) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/process");
    request.setRequestHeader("Content-Type", "application/json");
    const key = sessionStorage.getItem(KEY);
    if (key !== null) request.setRequestHeader("X-API-Key", asBytes(key));
    request.upload.onprogress = ({ loaded, total }) => onUpload(loaded / total);
    const started = performance.now();
    const header = (name) => decodeURIComponent(request.getResponseHeader(name) ?? "");
    request.onload = () => {
      const seconds = (performance.now() - started) / 1000;
      resolve({ status: request.status, envelope: parsed(request.responseText), header, seconds });
    };
    request.onerror = () => reject(new ServiceError(UNREACHED));
    request.onabort = () => reject(signal.reason);
    signal.throwIfAborted();
    signal.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

/** A text as a header carries it, whose letters are bytes: UTF-8, as the service reads it. */
const asBytes = (text) => String.fromCharCode(...new TextEncoder().encode(text));

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null; // from a proxy, say
  }
}

/** The one document's source, or the reason that there is none. */
function sourceOf({ status, envelope }) {
  if (status !== 200) throw new ServiceError(envelope?.error || `The service answered ${status}.`);
  if (envelope === null) throw new ServiceError("What answered is not the service; perhaps a proxy that wants a login.");
  const [untreated] = envelope.list_id_not_treated;
  if (untreated) throw new ServiceError(Object.values(untreated)[0]);
  return envelope.data[0].source;
}
