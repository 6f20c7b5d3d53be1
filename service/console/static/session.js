// Calls of the API by the key that was typed in. The key lives in this module's memory only: a page
// of another site can't use it, and closing or reloading the tab forgets it.

/** The server's root, whatever path a proxy put before it. */
export const ROOT = new URL("..", import.meta.url);

let key = "";
let caller = null;
let onEnd = (refusal) => void refusal;

/** A refusal of the server as problem+json, or that the server could not be reached. */
export class Refusal extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `status ${status}`);
    this.status = status;
    this.code = problem.code || "unreachable";
    this.hint = problem.hint || "";
    this.reasons = problem.reasons || [];
    this.errors = problem.errors || {};
    this.requestId = problem.request_id || "";
  }
}

/** Who is signed in: key_id, tenant, scopes and expires_at; null for nobody. */
export const whoami = () => caller;

/** Whether the caller has a scope for all tasks, or for one. */
export function may(action, task) {
  return (caller?.scopes ?? []).some((scope) => {
    const [name, glob] = scope.split(/:(.*)/s);
    return name === action && (!glob || glob === "*" || (task !== undefined && matches(glob, task)));
  });
}

/** Whether the caller has a scope for at least one task. */
export const maySome = (action) =>
  (caller?.scopes ?? []).some((scope) => scope.split(":")[0] === action);

function matches(glob, task) {
  const form = glob.replace(/[.+^${}()|[\]\\]/g, "\\$&").replace(/\*/g, ".*").replace(/\?/g, ".");
  return new RegExp(`^${form}$`, "s").test(task);
}

/** Try a key, or none for a server that asks for none; the caller, or a Refusal. */
export async function signIn(typed) {
  key = typed.trim();
  try {
    caller = (await call("GET", "caller")).data;
  } catch (error) {
    key = "";
    throw error;
  }
  return caller;
}

/** Call `then` with the Refusal when the key, which was valid before, is refused as no longer valid. */
export const whenEnded = (then) => void (onEnd = then);

export function signOut() {
  key = "";
  caller = null;
}

function headersOf(options) {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  if (options.body !== undefined) headers.set("Content-Type", "application/json");
  return headers;
}

function addressOf(path, query) {
  const address = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== undefined && value !== null) address.searchParams.set(name, value);
  }
  return address;
}

/** Names of a path: each becomes one segment of it. */
export const path = (parts, ...names) =>
  parts.reduce((text, part, at) => text + part + (at < names.length ? encodeURIComponent(names[at]) : ""), "");

/** Send a request as the caller; the Response, or a Refusal. */
export async function send(method, where, options = {}) {
  /** @type {RequestInit} */
  const request = {
    method,
    headers: headersOf(options),
    body: options.file ?? (options.body === undefined ? undefined : JSON.stringify(options.body)),
    signal: options.signal,
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
  };
  let answer;
  try {
    answer = await fetch(addressOf(where, options.query), request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, { detail: "The server could not be reached.", hint: "Is it running? Try again." });
  }
  if (answer.ok) return answer;
  const refusal = new Refusal(answer.status, await problemOf(answer));
  if (answer.status === 401 && caller !== null) {
    signOut();
    onEnd(refusal);
  }
  throw refusal;
}

async function problemOf(answer) {
  try {
    return await answer.json();
  } catch {
    return { detail: `${answer.status} ${answer.statusText}` };
  }
}

/** Call the API: the decoded answer, its ETag, and how long it took. */
export async function call(method, where, options = {}) {
  const began = performance.now();
  const answer = await send(method, where, options);
  const waited = performance.now() - began;
  const data = await answer.json();
  return {
    data,
    etag: answer.headers.get("ETag"),
    requestId: answer.headers.get("X-Request-Id"),
    timing: answer.headers.get("Server-Timing") ?? "",
    waitedMs: waited,
    tookMs: performance.now() - began,
  };
}

/**
 * Follow the changes of the registry: `onEvent` gets each entry, and `onState` "live" whenever it
 * begins, after which something may have been missed; returns what ends it.
 */
export function follow(onEvent, onState = () => {}) {
  const ending = new AbortController();
  void followUntil(ending.signal, onEvent, onState);
  return () => ending.abort();
}

const RETRY_MS = 2000;
const CROWDED_MS = 15000; // the server has as many streams as it may

async function followUntil(signal, onEvent, onState) {
  let last = null;
  while (!signal.aborted) {
    let pause = RETRY_MS;
    try {
      const headers = last === null ? {} : { "Last-Event-ID": last };
      const answer = await send("GET", "registry/events", { headers, signal });
      onState("live");
      for await (const event of eventsOf(answer.body)) {
        if (event.id) last = event.id;
        if (event.data) onEvent(JSON.parse(event.data), event.event);
      }
      onState("waiting");
    } catch (error) {
      if (signal.aborted) return;
      onState("waiting");
      if (error.status === 401 || error.status === 403) return;
      if (error.status === 429) pause = CROWDED_MS;
      if (error.status === 410) last = null; // these changes are not kept any more
    }
    await new Promise((done) => setTimeout(done, pause));
  }
}

async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value.replaceAll("\r\n", "\n");
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      yield eventOf(text.slice(0, end));
      text = text.slice(end + 2);
    }
  }
}

function eventOf(block) {
  const event = {};
  for (const line of block.split("\n")) {
    const at = line.indexOf(":");
    if (at > 0) {
      const name = line.slice(0, at);
      const value = line.slice(at + 1).replace(/^ /, "");
      event[name] = name in event ? `${event[name]}\n${value}` : value;
    }
  }
  return event;
}
