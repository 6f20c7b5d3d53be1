// What pages are made of: loading, refusals, numbers, bars, dialogs.

import { html, useCallback, useEffect, useRef, useState } from "./preact.js";

export { html, useCallback, useEffect, useRef, useState };

/** Load something now, and again every `everyMs` while the page is visible: {data, error, again}. */
export function useLoaded(load, dependencies, everyMs = 0) {
  const [state, setState] = useState({ data: null, error: null });
  const turn = useRef(0);
  const again = useCallback(async () => {
    const mine = ++turn.current;
    try {
      const data = await load();
      if (mine === turn.current) setState({ data, error: null });
    } catch (error) {
      if (mine === turn.current) setState((old) => ({ data: old.data, error }));
    }
  }, dependencies);
  useEffect(() => {
    setState({ data: null, error: null });
    void again();
    if (!everyMs) return () => void ++turn.current;
    const timer = setInterval(() => document.hidden || void again(), everyMs);
    return () => {
      ++turn.current;
      clearInterval(timer);
    };
  }, [again, everyMs]);
  return { ...state, again };
}

const CALM_MS = 1000;

/** A function that calls `act` soon, but once a second at most, however often it is called. */
export function calm(act) {
  let last = -Infinity;
  /** @type {number | null} */
  let timer = null;
  const soon = () => {
    timer ??= setTimeout(
      () => {
        timer = null;
        last = performance.now();
        act();
      },
      Math.max(0, last + CALM_MS - performance.now()),
    );
  };
  soon.end = () => clearTimeout(timer);
  return soon;
}

/** A refusal with its code, hint and reasons. */
export function Problem({ error, title = "This did not work" }) {
  if (!error) return null;
  const reasons = error.reasons ?? [];
  return html`<div class="problem" role="alert">
    <strong>${title}</strong>
    <p>${error.message}</p>
    ${reasons.length > 0 &&
    html`<ul>
      ${reasons.map((reason) => html`<li>${typeof reason === "string" ? reason : html`<code>${reason.code}</code> ${reason.message} ${reason.hint}`}</li>`)}
    </ul>`}
    ${error.hint && html`<p class="hint">${error.hint}</p>`}
    ${error.code && html`<p class="quiet"><code>${error.code}</code> ${error.requestId && html`request <code>${error.requestId}</code>`}</p>`}
  </div>`;
}

export const Loading = () => html`<p class="quiet" role="status">Loading …</p>`;

/** Show what was loaded, or why it was not. */
export function Loaded({ of, children }) {
  return html`<${Problem} error=${of.error} title="This could not be loaded" />
    ${of.data === null ? !of.error && html`<${Loading} />` : children(of.data)}`;
}

export const Tag = ({ kind = "plain", children }) => html`<span class="tag ${kind}">${children}</span>`;

export function Digest({ of }) {
  if (!of) return html`<span class="quiet">–</span>`;
  const digest = of.replace(/^sha256:/, "");
  return html`<code title=${of}>${digest.slice(0, 12)}</code>`;
}

const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
/** @type {[Intl.RelativeTimeFormatUnit, number][]} */
const UNITS = [["year", 31536000], ["month", 2592000], ["day", 86400], ["hour", 3600], ["minute", 60]];

export function ago(text) {
  const seconds = (new Date(text).getTime() - Date.now()) / 1000;
  for (const [unit, size] of UNITS) {
    if (Math.abs(seconds) >= size) return RELATIVE.format(Math.round(seconds / size), unit);
  }
  return Math.abs(seconds) < 10 ? "just now" : RELATIVE.format(Math.round(seconds), "second");
}

export const When = ({ at }) =>
  at ? html`<time datetime=${at} title=${new Date(at).toLocaleString()}>${ago(at)}</time>` : html`<span class="quiet">never</span>`;

export function bytes(count) {
  if (count === null || count === undefined) return "–";
  const units = ["B", "KB", "MB", "GB", "TB"];
  let at = 0;
  for (; count >= 1000 && at < units.length - 1; at++) count /= 1000;
  return `${at ? count.toPrecision(3) : count} ${units[at]}`;
}

export function number(value) {
  if (typeof value !== "number") return value ?? "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : decimal(value);
}

const decimal = (value) => {
  const text = value.toPrecision(3);
  return text.includes("e") ? text : text.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
};

export const share = (part) => `${(100 * part).toFixed(part < 0.1 ? 1 : 0)} %`;

/** A bar of a part from 0 to 1. Its number stands beside it, so it is hidden from screen readers. */
export function Bar({ part, mark = null, kind = "" }) {
  const width = 100 * Math.min(1, Math.max(0, part || 0));
  return html`<svg class="bar ${kind}" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
    <rect class="track" width="100" height="8" />
    <rect class="fill" width=${width} height="8" />
    ${mark !== null && html`<rect class="mark" x=${Math.min(99, 100 * mark)} width="1" height="8" />`}
  </svg>`;
}

/** A small curve of the newest values, the last one at the right. */
export function Sparkline({ values, label, room = 40 }) {
  const top = Math.max(...values, 1e-9);
  const points = values.map((value, at) => `${((room - values.length + at) / (room - 1)) * 100},${22 - (20 * value) / top}`);
  return html`<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" aria-label=${label}>
    ${points.length > 1 && html`<polyline points=${points.join(" ")} />`}
  </svg>`;
}

/** A table that scrolls by itself where the page is too narrow. */
export const Scroll = ({ label, children }) =>
  html`<div class="scroll" role="region" aria-label=${label} tabindex="0">${children}</div>`;

/** A modal question. `onYes` may be async; what it throws is shown in the dialog. */
export function Confirm({ title, yes, danger = false, onYes, onClose, children }) {
  const dialog = useRef(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  useEffect(() => {
    const before = /** @type {HTMLElement} */ (document.activeElement);
    const node = dialog.current;
    node.showModal();
    return () => {
      node.close(); // nothing else can have the focus before
      (before.isConnected ? before : document.getElementById("main"))?.focus();
    };
  }, []);
  const agree = async (event) => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      await onYes();
      onClose();
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return html`<dialog ref=${dialog} aria-labelledby="dialog-title" onCancel=${(event) => (event.preventDefault(), onClose())}>
    <form onSubmit=${agree}>
      <h2 id="dialog-title">${title}</h2>
      ${children}
      <${Problem} error=${error} />
      <div class="actions">
        <button type="button" onClick=${onClose}>Cancel</button>
        <button type="submit" class=${danger ? "danger" : "main"} disabled=${busy}>${busy ? "One moment …" : yes}</button>
      </div>
    </form>
  </dialog>`;
}

/** A labelled field; `hint` stands below it. */
export function Field({ label, hint, children }) {
  return html`<div class="field"><label><span>${label}</span>${children}</label>${hint && html`<small>${hint}</small>`}</div>`;
}
