// Changes of the registry in sentences.

import { html, Digest, When, number } from "./parts.js";

const short = (digest) => html`<${Digest} of=${digest} />`;

/** What each action did; one that is not here is named as it is. */
const SENTENCES = {
  add_version: (entry) => html`registered v${entry.version} ${short(entry.current)}${entry.alias && html` as <code>${entry.alias}</code>`}`,
  delete_version: (entry) => html`deleted v${entry.version}`,
  set_alias: (entry) => html`pointed <code>${entry.alias}</code> at ${short(entry.current)}${entry.previous && html`, before at ${short(entry.previous)}`}`,
  delete_alias: (entry) => html`deleted the alias <code>${entry.alias}</code>`,
  rollback: (entry) => html`rolled back: <code>${entry.alias ?? "prod"}</code> names ${short(entry.current)}, before ${short(entry.previous)}`,
  put_traffic: (entry) => html`split the traffic: ${split(entry.traffic)}`,
  clear_traffic: () => "ended canaries and shadows",
  trip_guard: () => "the guard ended canaries and shadows:",
  put_task: (entry) => (entry.previous_options ? "changed its description or sensitivity" : "made it"),
  delete_task: () => "deleted it with its versions",
  put_availability: (entry) => html`replaced the list of items that are to be had ${entry.note ?? ""}`,
  clear_availability: () => "all items are to be had again",
  create_key: () => "made it",
  rotate_key: () => "gave it a new secret",
  revoke_key: () => "revoked it",
  revoke_secret: () => "revoked one of its secrets",
  put_tenant: () => "made it, or changed its quotas",
};

const split = (traffic) =>
  traffic ? [`prod ${traffic.prod_weight}`, ...traffic.canary.map((each) => `canary ${each.weight}`), ...traffic.shadow.map(() => "a shadow")].join(", ") : "prod alone";

function Observed({ of }) {
  return html` It had seen ${number(of.requests)} requests, ${number(of.errors)} errors, p99 ${number(of.p99_ms)} ms${of.divergence !== undefined && of.divergence !== null && `, divergence ${number(of.divergence)}`}.`;
}

/** One change: what, who, when. */
export function Entry({ entry }) {
  const say = SENTENCES[entry.action];
  const about = entry.task ? html` · <strong>${entry.task}</strong>` : entry.key_id ? html` · key <code>${entry.key_id}</code>` : entry.tenant ? html` · tenant <strong>${entry.tenant}</strong>` : "";
  return html`<span class="quiet">${entry.revision}</span> <code>${entry.action}</code>${about} · ${say ? say(entry) : entry.note ?? ""}
    ${entry.reason && html` <strong>${entry.reason}</strong>.`}${entry.observed && html`<${Observed} of=${entry.observed} />`}
    <small> by <code>${entry.actor}</code>, <${When} at=${entry.at} /></small>`;
}

/** Changes, newest first. */
export function Trail({ entries }) {
  if (entries.length === 0) return html`<p class="quiet">No change is recorded.</p>`;
  return html`<ol class="feed scroll" reversed>${entries.map((entry) => html`<li key=${entry.revision}><${Entry} entry=${entry} /></li>`)}</ol>`;
}
