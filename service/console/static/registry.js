// The registry as all replicas see it: who follows it, how far, and what changes.

import { html, useEffect, useState, Loaded, Scroll, Tag, number, useLoaded } from "./parts.js";
import { Trail } from "./trail.js";
import { call, follow } from "./session.js";

const LOOK_EVERY_MS = 2000;
const KEPT = 200;
const PAGE = 1000;

function Replicas() {
  const found = useLoaded(async () => (await call("GET", "registry/replicas")).data, [], LOOK_EVERY_MS);
  return html`<${Loaded} of=${found}>${({ registry_revision: newest, replicas }) => html`
    <p>The registry is at revision <strong>${number(newest)}</strong>. ${number(replicas.length)} ${replicas.length === 1 ? "replica follows" : "replicas follow"} it.</p>
    <${Scroll} label="Replicas"><table>
      <thead><tr><th scope="col">Replica</th><th scope="col">Host</th><th scope="col" class="figure">Revision</th><th scope="col">State</th></tr></thead>
      <tbody>${replicas.map((each) => html`<tr key=${each.replica}>
        <th scope="row"><code>${each.replica.slice(0, 12)}</code></th><td>${each.host ?? html`<span class="quiet">for operators</span>`}</td>
        <td class="figure">${number(each.revision)}</td>
        <td>${each.revision >= newest ? html`<${Tag} kind="good">up to date<//>` : html`<${Tag} kind="warn">${number(newest - each.revision)} behind<//>`}</td></tr>`)}</tbody>
    </table><//>`}<//>`;
}

function Backbone() {
  const found = useLoaded(async () => (await call("GET", "backbone")).data, []);
  const ready = useLoaded(async () => (await call("GET", "readyz")).data, [], LOOK_EVERY_MS);
  return html`<h2>This replica</h2>
    <${Loaded} of=${ready}>${(of) => html`<p>It is <${Tag} kind=${of.reasons.length ? "bad" : "good"}>${of.status.replace("_", " ")}<//> ${of.reasons.map((reason) => html`<${Tag} kind="bad">${reason}<//> `)}
      serves revision ${number(of.registry_revision)}, read ${of.registry_stale_s === null ? "never" : `${number(Math.round(of.registry_stale_s))} s ago`}.
      It answers ${number(of.prod_bundles.answering)} of ${number(of.prod_bundles.registered)} tasks that have a prod${of.prod_bundles.unfit ? html`, and refuses the bundles of <${Tag} kind="bad">${number(of.prod_bundles.unfit)}<//>` : ""}.</p>`}<//>
    <${Loaded} of=${found}>${(of) => html`<dl>${Object.entries(of).filter(([, value]) => typeof value !== "object").map(([name, value]) => html`<dt>${name.replaceAll("_", " ")}</dt><dd>${typeof value === "number" ? number(value) : html`<code>${String(value)}</code>`}</dd>`)}</dl>`}<//>`;
}

/** The newest changes, and then each as it happens. */
function Changes() {
  const [entries, setEntries] = useState([]);
  const [state, setState] = useState("waiting");
  const earlier = useLoaded(async () => {
    const newest = (await call("GET", "registry/replicas")).data.registry_revision;
    const { data } = await call("GET", "registry/audit", { query: { since: Math.max(0, newest - PAGE), limit: PAGE } });
    setEntries((old) => merged(data.events, old));
    return data;
  }, []);
  useEffect(() => {
    const add = (entry, name) => (name === "reset" ? void earlier.again() : setEntries((old) => merged([entry], old)));
    return follow(add, (now) => (setState(now), now === "live" && void earlier.again()));
  }, [earlier.again]);
  return html`<h2>Changes <${Tag} kind=${state === "live" ? "good" : "warn"}>${state === "live" ? "as they happen" : "connecting"}<//></h2>
    <${Loaded} of=${earlier}>${() => html`<div aria-live="polite"><${Trail} entries=${entries} /></div>`}<//>`;
}

function merged(news, old) {
  const byRevision = new Map([...old, ...news].map((entry) => [entry.revision, entry]));
  return [...byRevision.values()].sort((one, other) => other.revision - one.revision).slice(0, KEPT);
}

/** The page. */
export function Registry() {
  return html`<h1>Registry</h1><${Replicas} /><${Backbone} /><${Changes} />`;
}
