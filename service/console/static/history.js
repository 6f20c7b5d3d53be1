// The history that the playground asks about: pasted, picked from a catalog, or built by hand.

import { html, useEffect, useState } from "./parts.js";
import { call, path } from "./session.js";

const MOST_TITLES = 1000;
const SHOWN = 30;
const SAMPLE = 5;

/** The item ids in a text: a JSON list, or words between spaces, commas and line ends. */
export function parse(text) {
  const trimmed = text.trim();
  if (trimmed.startsWith("[")) {
    try {
      const list = JSON.parse(trimmed);
      if (list.every((id) => typeof id === "string" || Number.isInteger(id))) return list.map(String);
    } catch {
      // not JSON: read as words
    }
  }
  return trimmed.split(/[\s,;[\]"']+/).filter(Boolean);
}

/**
 * The items that a ranking task would recommend to a user it knows nothing of: ids with titles.
 * It is the one way to see a catalog that every key with `predict` has.
 */
export function useCatalog(task) {
  const [items, setItems] = useState([]);
  useEffect(() => {
    setItems([]);
    if (!task) return;
    let isOver = false;
    const body = { history: [], parameters: { top_k: MOST_TITLES, titles: true, exclude_seen: false } };
    call("POST", path`tasks/${task}/predict`, { body })
      .then(({ data }) => isOver || setItems(data.predictions[0].items ?? []))
      .catch(() => {}); // the history can still be typed
    return () => (isOver = true);
  }, [task]);
  return items;
}

/** Titles of single items that `useCatalog` did not list, from the same task. */
export async function titlesOf(task, ids) {
  const candidates = ids.slice(0, MOST_TITLES);
  const body = {
    instances: [{ history: [], candidates }],
    parameters: { top_k: candidates.length, titles: true, exclude_seen: false },
  };
  const { data } = await call("POST", path`tasks/${task}/predict`, { body });
  const items = data.predictions[0].items ?? [];
  return Object.fromEntries(items.filter((item) => item.title).map((item) => [item.id, item.title]));
}

const sample = (items) => [...items].sort(() => Math.random() - 0.5).slice(0, SAMPLE).map((item) => item.id);

/** The editor: `history` is the list of ids, oldest first. */
export function History({ history, onChange, items, titles }) {
  const [word, setWord] = useState("");
  const [text, setText] = useState("");
  const lower = word.toLowerCase();
  const found = word ? items.filter((item) => item.id.toLowerCase().includes(lower) || item.title?.toLowerCase().includes(lower)) : items;
  const add = (ids) => ids.length && onChange([...history, ...ids]);
  return html`<fieldset>
    <legend>History, oldest first</legend>
    ${history.length === 0
      ? html`<p class="quiet">It is empty: a user who is new.</p>`
      : html`<ol class="chips" aria-label="Items of the history">
          ${history.map((id, at) => html`<li key=${`${at}-${id}`}>
            <span>${titles[id] ? html`${titles[id]} <small class="quiet">${id}</small>` : id}</span>
            <button type="button" aria-label=${`Remove ${titles[id] ?? id}`} onClick=${() => onChange(history.filter((_, place) => place !== at))}>×</button>
          </li>`)}
        </ol>`}
    <form class="line" onSubmit=${(event) => (event.preventDefault(), add(parse(text)), setText(""))}>
      <label class="field"><span>Add item ids</span>
        <textarea rows="2" value=${text} onInput=${(event) => setText(event.target.value)} placeholder="1193, 661, 914 or a JSON list"></textarea></label>
      <button type="submit">Add</button>
    </form>
    ${items.length > 0 && html`<details>
      <summary>Pick from a catalog</summary>
      <label class="field"><span>Find an item</span><input type="search" value=${word} onInput=${(event) => setWord(event.target.value)} /></label>
      <ul class="picks">${found.slice(0, SHOWN).map((item) => html`<li key=${item.id}><button type="button" onClick=${() => add([item.id])}>+ ${item.title ?? item.id}</button></li>`)}</ul>
      ${found.length > SHOWN && html`<p class="quiet">and ${found.length - SHOWN} more: type a part of the name</p>`}
    </details>`}
    <div class="actions">
      ${items.length > 0 && html`<button type="button" onClick=${() => onChange(sample(items))}>Take ${Math.min(SAMPLE, items.length)} at random</button>`}
      <button type="button" disabled=${history.length === 0} onClick=${() => onChange([])}>Empty it</button>
    </div>
  </fieldset>`;
}
