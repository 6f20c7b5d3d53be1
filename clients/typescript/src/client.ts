/** A small client of the PeterRec serving API. Its types are generated from the OpenAPI document. */

import type { components, operations, paths } from "./schema.js";

export type Schemas = components["schemas"];
export type PredictRequest = Schemas["PredictRequest"];
export type PredictResponse = Schemas["PredictResponse"];
export type UsersPredictRequest = Schemas["UsersPredictRequest"];
export type UsersPredictResponse = Schemas["UsersPredictResponse"];
export type Problem = Schemas["Problem"];
export type { components, operations, paths };

type Method = "get" | "put" | "post" | "delete";
type MethodsOf<P extends keyof paths> = {
  [M in Method]: paths[P] extends { [K in M]: { responses: unknown } } ? M : never;
}[Method];
type Operation<P extends keyof paths, M extends Method> = paths[P] extends { [K in M]: infer O } ? O : never;
type JsonOf<C> = C extends { "application/json": infer B } ? B : never;
type Given<O, K extends "path" | "query"> = O extends { parameters: { [N in K]?: infer V } } ? NonNullable<V> : never;
type BodyOf<O> = O extends { requestBody?: infer R } ? (NonNullable<R> extends { content: infer C } ? JsonOf<C> : never) : never;
type Succeeded<R> = R extends { 200: infer A } ? A : R extends { 201: infer A } ? A : never;
type AnswerOf<O> = O extends { responses: infer R } ? (Succeeded<R> extends { content: infer C } ? JsonOf<C> : never) : never;

/** What a call may be given. Which fields there are follows from the path and the method. */
export interface CallOptions<O> {
  path?: Given<O, "path">;
  query?: Given<O, "query">;
  body?: BodyOf<O>;
  headers?: Record<string, string>;
  /** Milliseconds of the whole call with its retries, instead of the client's. */
  timeoutMs?: number;
  signal?: AbortSignal;
}

/** What a prediction may be given in addition to its body. */
export interface PredictOptions {
  timeoutMs?: number;
  signal?: AbortSignal;
}

export interface ClientOptions {
  apiKey?: string;
  /** Milliseconds of a call with all its retries. */
  timeoutMs?: number;
  /** Attempts of a call, the first one included. */
  attempts?: number;
  fetch?: typeof fetch;
}

/** A refusal, or a failure to get an answer. `code` is stable and meant for programs. */
export class PeterRecError extends Error {
  readonly code: string;
  /** The HTTP status; undefined if no answer came. */
  readonly status: number | undefined;
  readonly hint: string;
  readonly requestId: string;
  readonly retryable: boolean;
  readonly problem: Partial<Problem>;

  constructor(problem: Partial<Problem>, status?: number, options?: ErrorOptions) {
    super(`${problem.code ?? "unknown"}: ${problem.detail ?? ""} ${problem.hint ?? ""}`.trim(), options);
    this.name = "PeterRecError";
    this.code = problem.code ?? "unknown";
    this.status = status;
    this.hint = problem.hint ?? "";
    this.requestId = problem.request_id ?? "";
    this.retryable = problem.retryable ?? false;
    this.problem = problem;
  }
}

const REPEATED = new Set([429, 502, 503]);
const FIRST_WAIT_MS = 100;
const LONGEST_WAIT_MS = 5000;

export class Client {
  readonly #url: string;
  readonly #options: Required<Omit<ClientOptions, "apiKey">> & { apiKey: string | undefined };

  constructor(url: string, options: ClientOptions = {}) {
    this.#url = url.replace(/\/+$/, "");
    this.#options = {
      apiKey: options.apiKey,
      timeoutMs: options.timeoutMs ?? 5000,
      attempts: options.attempts ?? 4,
      fetch: options.fetch ?? globalThis.fetch.bind(globalThis),
    };
  }

  /** Predict one task for one user, or for several. */
  predict(task: string, body: PredictRequest, options: PredictOptions = {}): Promise<PredictResponse> {
    return this.call("post", "/tasks/{task}/predict", { path: { task }, body, ...options });
  }

  /** Predict many tasks for one user. */
  predictUser(body: UsersPredictRequest, options: PredictOptions = {}): Promise<UsersPredictResponse> {
    return this.call("post", "/users/predict", { body, ...options });
  }

  /** Make any call of the API with a body and an answer in JSON. */
  async call<P extends keyof paths, M extends MethodsOf<P>>(
    method: M,
    path: P,
    options: CallOptions<Operation<P, M>> = {},
  ): Promise<AnswerOf<Operation<P, M>>> {
    const endsAt = Date.now() + (options.timeoutMs ?? this.#options.timeoutMs);
    const mayRepeat = method === "get" || String(path).endsWith("/predict");
    for (let attempt = 1; ; attempt += 1) {
      const failure = await this.#attempt(method, path, options, endsAt);
      if (failure.error === undefined) return failure.answer as AnswerOf<Operation<P, M>>;
      const waitMs = failure.retryAfterMs + Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** (attempt - 1)) * (0.5 + Math.random() / 2);
      const hasTime = Date.now() + waitMs < endsAt;
      if (!failure.isRepeatable || !mayRepeat || attempt >= this.#options.attempts || !hasTime) throw failure.error;
      await pause(waitMs, options.signal);
    }
  }

  async #attempt(method: string, path: string, options: CallOptions<unknown>, endsAt: number): Promise<Attempt> {
    const leftMs = Math.max(1, endsAt - Date.now());
    const timeout = AbortSignal.timeout(leftMs);
    const headers: Record<string, string> = {
      Accept: "application/json",
      "X-Request-Timeout-Ms": String(Math.min(leftMs, 600_000)),
      ...(options.body === undefined ? {} : { "Content-Type": "application/json" }),
      ...(this.#options.apiKey === undefined ? {} : { Authorization: `Bearer ${this.#options.apiKey}` }),
      ...options.headers,
    };
    const init: RequestInit = {
      method: method.toUpperCase(),
      headers,
      signal: options.signal === undefined ? timeout : AbortSignal.any([timeout, options.signal]),
      ...(options.body === undefined ? {} : { body: JSON.stringify(options.body) }),
    };
    try {
      const response = await this.#options.fetch(this.#url + filled(path, options.path) + queried(options.query), init);
      const text = await response.text();
      if (response.ok) return { answer: text === "" ? undefined : JSON.parse(text), retryAfterMs: 0, isRepeatable: false };
      const seconds = Number(response.headers.get("retry-after") ?? "0");
      return {
        error: new PeterRecError(problemOf(text, response.status), response.status),
        retryAfterMs: Number.isFinite(seconds) ? seconds * 1000 : 0,
        isRepeatable: REPEATED.has(response.status),
      };
    } catch (cause) {
      options.signal?.throwIfAborted();
      const problem = timeout.aborted
        ? { code: "client_timeout", detail: "no answer came within the time of this call.", retryable: true }
        : { code: "server_unreachable", detail: `no answer from ${this.#url}: ${String(cause)}.`, retryable: true };
      return { error: new PeterRecError(problem, undefined, { cause }), retryAfterMs: 0, isRepeatable: !timeout.aborted };
    }
  }
}

interface Attempt {
  answer?: unknown;
  error?: PeterRecError;
  retryAfterMs: number;
  isRepeatable: boolean;
}

function filled(path: string, given: unknown): string {
  const values = (given ?? {}) as Record<string, string | number>;
  return path.replace(/\{(\w+)\}/g, (_, name: string) => {
    const value = values[name];
    if (value === undefined) throw new TypeError(`${path} needs ${name}`);
    return encodeURIComponent(value);
  });
}

function queried(given: unknown): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries((given ?? {}) as Record<string, unknown>)) {
    if (value !== undefined && value !== null) query.set(name, String(value));
  }
  const text = query.toString();
  return text === "" ? "" : `?${text}`;
}

function problemOf(text: string, status: number): Partial<Problem> {
  try {
    const found: unknown = JSON.parse(text);
    if (typeof found === "object" && found !== null && "code" in found) return found as Partial<Problem>;
  } catch {
    // not JSON: a proxy answered
  }
  return { code: `http_${status}`, detail: `HTTP ${status} without a problem document: ${text.slice(0, 200)}` };
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason as Error);
    });
  });
}
