// How the answers of each kind of task look. A kind that is not here is shown field by field.

import { html, Bar, Tag, number, share } from "./parts.js";

const BARS = 8;
const COMPARED = 10;
const EXPLAINED_OUTPUTS = 2;
const SHARED_FIELDS = new Set(["kind", "version", "digest", "alias", "role", "used_items", "unknown_items", "unknown", "truncated", "cold", "user_id", "titles", "explanation"]);

const named = (id, titles) => (titles?.[id] ? html`${titles[id]} <small class="quiet">${id}</small>` : id);

function Scores({ scores, titles, chosen, threshold = null }) {
  const best = Object.entries(scores).sort((one, other) => other[1] - one[1]);
  return html`<ul class="bars">
      ${best.slice(0, BARS).map(([label, score]) => html`<li class=${chosen.includes(label) ? "chosen" : ""}>
        <span>${named(label, titles)}</span><${Bar} part=${score} mark=${threshold} /><span class="figure">${share(score)}</span></li>`)}
    </ul>
    ${best.length > BARS && html`<p class="quiet">and ${best.length - BARS} more, each at most ${share(best[BARS][1])}</p>`}`;
}

const Classification = ({ of }) => html`<p class="big">${named(of.label, of.titles)}</p>
  <${Scores} scores=${of.scores} titles=${of.titles} chosen=${[of.label]} />`;

const Tags = ({ of }) => html`<p>${of.tags.length ? of.tags.map(({ label }) => html`<${Tag} kind="good">${of.titles?.[label] ?? label}<//> `) : "No tag applies."}</p>
  <${Scores} scores=${of.scores} titles=${of.titles} chosen=${of.tags.map((tag) => tag.label)} threshold=${of.threshold} />`;

const Value = ({ of }) => html`<p class="big">${number(of.value)} ${of.unit ?? ""}</p>`;

function Ranking({ of }) {
  if (of.items.length === 0) return html`<p>No item may be recommended.</p>`;
  const scores = of.items.map((item) => item.score);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const part = (score) => (high > low ? 0.05 + (0.95 * (score - low)) / (high - low) : 1);
  return html`<ol class="bars">
    ${of.items.map((item) => html`<li><span>${named(item.id, { [item.id]: item.title })}</span><${Bar} part=${part(item.score)} /><span class="figure">${number(item.score)}</span></li>`)}
  </ol>`;
}

function Other({ of }) {
  const fields = Object.entries(of).filter(([name]) => !SHARED_FIELDS.has(name));
  return html`<dl>${fields.map(([name, value]) => html`<dt>${name}</dt><dd>${typeof value === "object" ? JSON.stringify(value) : number(value)}</dd>`)}</dl>`;
}

const KINDS = { classification: Classification, tags: Tags, value: Value, ranking: Ranking };

/** An answer of any kind. */
export const Answer = ({ of }) => html`<${KINDS[of.kind] ?? Other} of=${of} />`;

const overlap = (one, other) => {
  const best = one.items.slice(0, COMPARED).map((item) => item.id);
  const others = new Set(other.items.slice(0, COMPARED).map((item) => item.id));
  return `${best.filter((id) => others.has(id)).length} of the best ${Math.max(best.length, others.size)} items are the same`;
};
const labelsOf = (answer) => JSON.stringify(answer.tags.map((tag) => tag.label).sort());
const COMPARISONS = {
  classification: (one, other) => (one.label === other.label ? "the same label" : "another label"),
  tags: (one, other) => (labelsOf(one) === labelsOf(other) ? "the same tags" : "other tags"),
  value: (one, other) => `${other.value >= one.value ? "+" : "−"}${number(Math.abs(other.value - one.value))}`,
  ranking: overlap,
};

/** How another version's answer differs, in a few words. */
export function compare(one, other) {
  if (one.kind !== other.kind) return "another kind of answer";
  return COMPARISONS[one.kind]?.(one, other) ?? "";
}

/** What of the history moved an answer. */
export function Explanation({ of, titles }) {
  if (of.error) return html`<p class="quiet">No explanation: ${of.error.message}</p>`;
  const top = Math.max(...of.outputs.flatMap((output) => output.items.map((item) => Math.abs(item.contribution))), 1e-12);
  const others = of.outputs.length - EXPLAINED_OUTPUTS;
  return html`<details open><summary>Why? (${of.unit})</summary>
    ${of.outputs.slice(0, EXPLAINED_OUTPUTS).map((output) => html`
      <p>What moved <strong>${titles[output.output] ?? output.output}</strong></p>
      <ul class="bars">
        ${output.items.map((item) => html`<li><span>${named(item.id, titles)}${item.times > 1 && ` ×${item.times}`}</span>
          <${Bar} part=${Math.abs(item.contribution) / top} kind=${item.contribution < 0 ? "minus" : ""} />
          <span class="figure">${item.contribution < 0 ? "−" : "+"}${number(Math.abs(item.contribution))}</span></li>`)}
      </ul>`)}
    ${others > 0 && html`<p class="quiet">and ${others} more outputs</p>`}
    <p class="quiet">${of.items_looked_at} items were looked at, ${of.items_without_effect} have no effect. It says nothing about causes.</p>
  </details>`;
}

