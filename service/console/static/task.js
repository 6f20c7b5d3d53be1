// One task: its versions, what answers, and every change that can be made to it.

import { html, useEffect, useState, Confirm, Digest, Field, Loaded, Problem, Scroll, Tag, When, bytes, number, useLoaded } from "./parts.js";
import { Trail } from "./trail.js";
import { call, follow, path } from "./session.js";
import { stateOf, trafficOf } from "./states.js";

const TRAIL = 200;
const PAGE = 10000;

/** The versions' fields that a comparison shows, with how they are written.
 * @type {[string, string, (value: any) => any][]} */
const FIELDS = [
  ["kind", "Kind", (value) => value],
  ["outputs", "Outputs", number],
  ["backbone", "Backbone", (value) => value.slice(0, 12)],
  ["size_bytes", "Size", bytes],
  ["patch_bytes", "Patch", bytes],
  ["head_bytes", "Head", bytes],
  ["patch_work", "Work of the patch, of the backbone's", number],
  ["row_work", "Work of a full history", number],
  ["answer_bytes", "Largest answer", bytes],
];

function rolesOf(task, version) {
  const aliases = Object.entries(task.aliases).filter(([, each]) => each.version === version);
  const { canary = [], shadow = [] } = task.traffic ?? {};
  return [
    ...aliases.map(([alias]) => ({ text: alias, kind: alias === "prod" ? "good" : "plain" })),
    ...(canary.some((each) => each.version === version) ? [{ text: "canary", kind: "news" }] : []),
    ...(shadow.some((each) => each.version === version) ? [{ text: "shadow", kind: "news" }] : []),
  ];
}

/** "prod names v4, this replica answers by v3": what is not served as it is registered. */
function Unserved({ task }) {
  const behind = Object.entries(task.aliases).filter(([alias, each]) => task.served[alias] !== each.version);
  if (behind.length === 0) return null;
  return html`<div class="problem" role="status"><strong>Not served as registered</strong>
    <ul>${behind.map(([alias, each]) => html`<li><code>${alias}</code> names v${each.version}, and this replica answers ${task.served[alias] ? `by v${task.served[alias]}` : "nothing"}: it is loading, or refuses the bundle.</li>`)}</ul></div>`;
}

function Versions({ task, picked, onPick, onAct }) {
  const versions = [...task.versions].reverse();
  const names = [...new Set(versions.flatMap((version) => Object.keys(version.metrics)))].slice(0, 4);
  const prod = task.aliases.prod?.version;
  return html`<${Scroll} label="Versions">
    <table class="stack" role="table">
      <thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col">Compare</th><th role="columnheader" scope="col">Version</th><th role="columnheader" scope="col">Role</th>
        ${names.map((name) => html`<th role="columnheader" scope="col" class="figure">${name}</th>`)}
        <th role="columnheader" scope="col" class="figure">Size</th><th role="columnheader" scope="col">Signed by</th><th role="columnheader" scope="col">Made</th><th role="columnheader" scope="col">Actions</th></tr></thead>
      <tbody role="rowgroup">${versions.map((version) => html`<tr role="row" key=${version.version}>
        <td role="cell" data-label="Compare"><input type="checkbox" aria-label=${`Compare version ${version.version}`} checked=${picked.includes(version.version)} onChange=${() => onPick(version.version)} /></td>
        <th role="rowheader" scope="row">v${version.version} <small><${Digest} of=${version.digest} /></small></th>
        <td role="cell" data-label="Role">${rolesOf(task, version.version).map((role) => html`<${Tag} kind=${role.kind}>${role.text}<//> `)}</td>
        ${names.map((name) => html`<td role="cell" data-label=${name} class="figure">${name in version.metrics ? number(version.metrics[name]) : "–"}</td>`)}
        <td role="cell" data-label="Size" class="figure">${bytes(version.size_bytes)}</td>
        <td role="cell" data-label="Signed by">${version.signed_by.join(", ") || html`<span class="quiet">nobody</span>`}</td>
        <td role="cell" data-label="Made"><${When} at=${version.created_at} /> <small>by ${version.actor}</small></td>
        <td role="cell" data-label="Actions"><div class="row">
          ${version.version !== prod && html`<button onClick=${() => onAct({ kind: "activate", version })}>Activate<span class="unseen"> version ${version.version}</span></button>`}
          ${prod && version.version !== prod && html`<button onClick=${() => onAct({ kind: "canary", version })}>Canary …<span class="unseen"> version ${version.version}</span></button>`}
          <button onClick=${() => onAct({ kind: "probe", version })}>Probe<span class="unseen"> version ${version.version}</span></button>
          ${rolesOf(task, version.version).length === 0 && html`<button onClick=${() => onAct({ kind: "delete", version })}>Delete<span class="unseen"> version ${version.version}</span></button>`}
        </div></td>
      </tr>`)}</tbody>
    </table>
  <//>`;
}

function Difference({ one, other }) {
  const metrics = [...new Set([...Object.keys(one.metrics), ...Object.keys(other.metrics)])];
  const rows = [
    ...FIELDS.map(([field, label, show]) => ({ label, show, values: [one[field], other[field]] })),
    ...metrics.map((name) => ({ label: name, show: number, values: [one.metrics[name], other.metrics[name]] })),
    { label: "Signed by", show: (value) => value || "nobody", values: [one.signed_by.join(", "), other.signed_by.join(", ")] },
  ];
  return html`<h2>v${one.version} and v${other.version}</h2>
    <${Scroll} label="Difference of two versions"><table>
      <thead><tr><th scope="col"></th><th scope="col" class="figure">v${one.version}</th><th scope="col" class="figure">v${other.version}</th><th scope="col" class="figure">Difference</th></tr></thead>
      <tbody>${rows.map(({ label, show, values }) => html`<tr><th scope="row">${label}</th>
        ${values.map((value) => html`<td class="figure">${value === undefined ? "–" : show(value)}</td>`)}
        <td class="figure">${differenceOf(values, show)}</td></tr>`)}</tbody>
    </table><//>`;
}

/** @param {any[]} values @param {(value: any) => any} show */
function differenceOf([one, other], show) {
  if (one === other) return html`<span class="quiet">the same</span>`;
  if (typeof one !== "number" || typeof other !== "number") return html`<${Tag} kind="news">differs<//>`;
  return `${other > one ? "+" : "−"}${show(Math.abs(other - one))}`;
}

/** A change with its question. What it may break is said before it is made. */
function Activate({ act, onDone, onClose }) {
  const [isNew, setNew] = useState(false);
  const { task, etag, version } = act;
  const prod = task.aliases.prod;
  const onYes = async () => {
    const query = isNew ? { allow_new_outputs: true } : {};
    const { data } = await call("PUT", path`tasks/${task.task}/aliases/prod`, { body: { version: version.version }, query, headers: { "If-Match": etag } });
    onDone(data.is_served ? `prod names v${data.version} now, and this replica answers by it.` : `prod names v${data.version} now, but this replica has not loaded it yet.`);
  };
  return html`<${Confirm} title=${`Activate v${version.version} of ${task.task}?`} yes="Activate" onYes=${onYes} onClose=${onClose}>
    <p>${prod ? html`Users are answered by v${prod.version} now, and by v${version.version} from then on.` : html`Nothing answers now; v${version.version} will.`} Roll back to undo it.</p>
    ${task.traffic && html`<p class="hint">The task has canaries or shadows; they stay.</p>`}
    <label class="check"><input type="checkbox" checked=${isNew} onChange=${(event) => setNew(event.target.checked)} /> Allow other outputs (another kind, labels, catalog or unit)</label>
  <//>`;
}

const optional = (text) => (text === "" ? null : Number(text));

function Canary({ act, onDone, onClose }) {
  const [form, setForm] = useState({ role: "canary", percent: "5", errors: "0.01", p99: "", divergence: "", requests: "100", window: "300", isGuarded: true });
  const { task, etag, version } = act;
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.type === "checkbox" ? event.target.checked : event.target.value });
  const onYes = async () => {
    const percent = Number(form.percent);
    const guard = { max_error_share: optional(form.errors), max_p99_ms: optional(form.p99), max_divergence: optional(form.divergence), min_requests: Number(form.requests), window_s: Number(form.window) };
    const body = {
      ...(form.role === "canary" ? { prod_weight: 100 - percent, canary: [{ version: version.version, weight: percent }] } : { prod_weight: 100, shadow: [version.version] }),
      ...(form.isGuarded ? { guard } : {}),
    };
    const { data } = await call("PUT", path`tasks/${task.task}/traffic`, { body, headers: { "If-Match": etag } });
    onDone(data.is_served ? "The traffic is as you asked." : "The traffic is registered, but this replica has not loaded a version of it yet.");
  };
  return html`<${Confirm} title=${`Try v${version.version} of ${task.task} beside prod`} yes="Begin" onYes=${onYes} onClose=${onClose}>
    <p>${task.traffic ? "This replaces the traffic that the task has now." : `prod (v${task.aliases.prod.version}) goes on answering everybody else.`}</p>
    <${Field} label="How"><select value=${form.role} onChange=${set("role")}>
      <option value="canary">Canary: it answers a share of the users</option>
      <option value="shadow">Shadow: it computes every answer, and nobody gets it</option></select><//>
    ${form.role === "canary" && html`<${Field} label="Percent of the users"><input type="number" min="1" max="100" required value=${form.percent} onInput=${set("percent")} /><//>`}
    <label class="check"><input type="checkbox" checked=${form.isGuarded} onChange=${set("isGuarded")} /> End it by itself if it does badly</label>
    ${form.isGuarded && html`<div class="fields">
      <${Field} label="Largest share of errors"><input type="number" min="0" max="1" step="any" value=${form.errors} onInput=${set("errors")} /><//>
      <${Field} label="Largest p99 in ms"><input type="number" min="0" step="any" value=${form.p99} onInput=${set("p99")} /><//>
      <${Field} label="Largest divergence" hint="0 to 1: mean difference from prod's answers"><input type="number" min="0" max="1" step="any" value=${form.divergence} onInput=${set("divergence")} /><//>
      <${Field} label="Histories before it is judged"><input type="number" min="1" required value=${form.requests} onInput=${set("requests")} /><//>
      <${Field} label="Window in seconds"><input type="number" min="1" required value=${form.window} onInput=${set("window")} /><//>
    </div>`}
  <//>`;
}

function EndTraffic({ act, onDone, onClose }) {
  const { task, etag } = act;
  const onYes = async () => {
    await call("DELETE", path`tasks/${task.task}/traffic`, { headers: { "If-Match": etag } });
    onDone("prod answers all requests now.");
  };
  return html`<${Confirm} title="End canaries and shadows?" yes="End them" danger onYes=${onYes} onClose=${onClose}>
    <p>prod (v${task.aliases.prod?.version}) answers all requests of ${task.task} from then on.</p><//>`;
}

function RollBack({ act, onDone, onClose }) {
  const { task, etag } = act;
  const onYes = async () => {
    const { data } = await call("POST", path`tasks/${task.task}:rollback`, { headers: { "If-Match": etag } });
    const changes = data.new_outputs.length ? ` Its answers differ: ${data.new_outputs.join("; ")}.` : "";
    onDone(`prod names v${data.version} again.${changes}`);
  };
  return html`<${Confirm} title=${`Roll back ${task.task}?`} yes="Roll back" danger onYes=${onYes} onClose=${onClose}>
    <p>The state before the last change comes back: all aliases and the traffic. prod names v${task.aliases.prod?.version ?? "–"} now.</p><//>`;
}

function Delete({ act, onDone, onClose }) {
  const { task, etag } = act;
  const onYes = async () => {
    await call("DELETE", path`tasks/${task.task}/versions/${String(act.version.version)}`, { headers: { "If-Match": etag } });
    onDone(`v${act.version.version} is deleted.`);
  };
  return html`<${Confirm} title=${`Delete v${act.version.version} of ${task.task}?`} yes="Delete" danger onYes=${onYes} onClose=${onClose}>
    <p>No alias names it and it has no traffic. Its bundle is erased; this can't be undone.</p><//>`;
}

/** The version's bundle, verified and probed on the device again. */
function Probe({ act, onClose }) {
  const { task } = act;
  const [state, setState] = useState({ data: null, error: null });
  useEffect(() => {
    call("POST", path`tasks/${task.task}/versions/${String(act.version.version)}:probe`).then(
      ({ data }) => setState({ data, error: null }),
      (error) => setState({ data: null, error }),
    );
  }, []);
  return html`<${Confirm} title=${`Probes of v${act.version.version}`} yes="Done" onYes=${async () => {}} onClose=${onClose}>
    <p>The bundle as the registry has it is verified, loaded beside what is served, and its probes are run on this server's device.</p>
    ${state.data === null && state.error === null && html`<p role="status">Running …</p>`}
    <${Problem} error=${state.error} title="The bundle is refused" />
    ${state.data && html`<${ProbeReport} of=${state.data} />`}
  <//>`;
}

/** What verification and probes have found, in figures. */
export function ProbeReport({ of }) {
  const { summary, probes } = of;
  return html`<div class="done" role="status"><strong>Verified, and all probes pass</strong>
    <dl>
      <dt>Kind</dt><dd>${summary.kind}, ${number(summary.outputs)} outputs</dd>
      ${probes && html`<dt>Probes</dt><dd>${number(probes.count)} histories; the largest error is ${number(probes.largest_error)} of what an output can reach, and ${number(probes.tolerance)} is allowed</dd>`}
      <dt>Size</dt><dd>${bytes(summary.size_bytes)}: patch ${bytes(summary.patch_bytes)}, head ${bytes(summary.head_bytes)}</dd>
      <dt>Work</dt><dd>${number(summary.patch_work)} of the backbone's</dd>
      <dt>Signed by</dt><dd>${summary.signed_by.join(", ") || "nobody"}</dd>
      <dt>Digest</dt><dd><${Digest} of=${of.digest} /></dd>
      ${Object.entries(summary.metrics).map(([name, value]) => html`<dt>${name}</dt><dd>${number(value)}</dd>`)}
    </dl></div>`;
}

const DIALOGS = { activate: Activate, canary: Canary, end: EndTraffic, rollback: RollBack, delete: Delete, probe: Probe };

function Traffic({ task, onAct }) {
  const { guard } = task.traffic;
  const bounds = guard && [
    guard.max_error_share !== null && `errors at most ${number(100 * guard.max_error_share)} %`,
    guard.max_p99_ms !== null && `p99 at most ${number(guard.max_p99_ms)} ms`,
    guard.max_divergence !== null && `divergence at most ${number(guard.max_divergence)}`,
  ].filter(Boolean);
  return html`<p>${trafficOf(task)}. ${guard ? `Guarded: ${bounds.join(", ")}, over ${number(guard.window_s)} s and from ${number(guard.min_requests)} histories on.` : "Nothing guards it."}</p>
    <div class="actions"><button onClick=${() => onAct({ kind: "end" })}>End it …</button></div>`;
}

function Detail({ name, of, again }) {
  const { data: task, etag } = of;
  const [act, setAct] = useState(null);
  const open = (chosen) => setAct({ ...chosen, task, etag }); // as it was when somebody decided
  const [done, setDone] = useState("");
  const [picked, setPicked] = useState([]);
  const pick = (version) => setPicked((old) => (old.includes(version) ? old.filter((each) => each !== version) : [...old, version].slice(-2)));
  const chosen = picked.map((number) => task.versions.find((each) => each.version === number)).filter(Boolean).sort((one, other) => one.version - other.version);
  const state = stateOf(task);
  const Dialog = act && DIALOGS[act.kind];
  return html`
    <p><${Tag} kind=${state.kind}>${state.text}<//> ${state.why} ${task.is_sensitive && html`<${Tag} kind="warn">sensitive<//>`}</p>
    ${task.description && html`<p>${task.description}</p>`}
    ${done && html`<div class="done" role="status">${done}</div>`}
    <${Unserved} task=${task} />
    <div class="actions">
      <a class="button" href=${`#/upload/${encodeURIComponent(name)}`}>Upload a version</a>
      <button onClick=${() => open({ kind: "rollback" })}>Roll back …</button>
    </div>
    ${task.traffic && html`<h2>Traffic</h2><${Traffic} task=${task} onAct=${open} />`}
    <h2>Versions</h2>
    ${task.versions.length === 0 ? html`<p>There are none yet.</p>` : html`<${Versions} task=${task} picked=${picked} onPick=${pick} onAct=${open} />
      <p class="quiet">Tick two versions to compare them.</p>`}
    ${chosen.length === 2 && html`<${Difference} one=${chosen[0]} other=${chosen[1]} />`}
    ${act && html`<${Dialog} act=${act} onClose=${() => setAct(null)} onDone=${(text) => (setDone(text), again())} />`}`;
}

/** The newest changes of a task: the trail is read from its beginning, as far as it is kept. */
async function trailOf(task) {
  let events = [];
  for (let since = 0; ; ) {
    const { data } = await call("GET", "registry/audit", { query: { task, since, limit: PAGE } });
    events = [...events, ...data.events].slice(-TRAIL);
    if (data.next_since === null) return { ...data, events };
    since = data.next_since;
  }
}

/** The page of one task. */
export function Task({ name }) {
  const task = useLoaded(() => call("GET", path`tasks/${name}`), [name]);
  const trail = useLoaded(() => trailOf(name), [name]);
  useEffect(() => {
    const again = () => (task.again(), trail.again());
    return follow((entry) => entry.task === name && again(), (state) => state === "live" && again());
  }, [name, task.again, trail.again]);
  return html`<p><a href="#/tasks">All tasks</a></p><h1>${name}</h1>
    <${Loaded} of=${task}>${(of) => html`<${Detail} name=${name} of=${of} again=${() => (task.again(), trail.again())} />`}<//>
    <h2>Audit trail</h2>
    <${Loaded} of=${trail}>${(found) => html`
      ${!found.is_complete && html`<p class="quiet">Changes before revision ${found.oldest_revision} are no longer kept.</p>`}
      <${Trail} entries=${[...found.events].reverse()} />`}<//>`;
}
