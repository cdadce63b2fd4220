// Requests to the server that this page came from, with the user's key. Server-sent events are read over fetch, since
// EventSource sends no Authorization header.

const STORED = "albireo-api-key"; // in sessionStorage: gone with the tab

/** What the server refused, in its own words. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** True when there is a key, whether it is right or not. */
export function hasKey() {
  return sessionStorage.getItem(STORED) !== null;
}

/** Tells `key-needed` when the server answers 401, `key-given` when the user has entered one. */
export const keys = new EventTarget();

export function giveKey(key) {
  sessionStorage.setItem(STORED, key);
  keys.dispatchEvent(new Event("key-given"));
}

/** The response to a GET, or to a POST of `body`. Throws ApiError. */
export async function request(path, { body, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(STORED);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const method = body ? "POST" : "GET";
  const options = { method, headers, body: body && JSON.stringify(body), signal, cache: "no-store", credentials: "omit" };
  const response = await fetch(path, options).catch((error) => {
    throw signal?.aborted ? error : new ApiError(0, "no connection to the server");
  });
  if (response.ok) return response;
  if (response.status === 401) keys.dispatchEvent(new Event("key-needed"));
  const answer = await response.json().catch(() => null);
  throw new ApiError(response.status, answer?.error?.message ?? `the server answered ${response.status}`);
}

/** {event, data} for each server-sent event of a response, data as text. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      for (const block of blocks) yield parse(block);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  const found = { event: "message", data: "" };
  for (const line of block.split("\n")) {
    if (line.startsWith("data: ")) found.data += line.slice(6);
    else if (line.startsWith("event: ")) found.event = line.slice(7);
  }
  return found;
}
