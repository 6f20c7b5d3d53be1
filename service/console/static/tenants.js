// Tenants, their quotas and keys, for operators; for a tenant's admin, the own ones.

import { html, useState, Bar, Confirm, Field, Loaded, Scroll, Tag, When, bytes, number, useLoaded } from "./parts.js";
import { call, may, path, whoami } from "./session.js";

const USE_EVERY_MS = 3000;
const DAY_S = 86400;

/** The quotas with what they are called and how they are written.
 * @type {[string, string, (value: any) => any][]} */
const QUOTAS = [
  ["tasks", "Tasks", number],
  ["versions", "Versions", number],
  ["bundle_bytes", "Bytes of bundles", bytes],
  ["head_bytes", "Bytes of heads", bytes],
  ["patch_bytes", "Bytes of patches", bytes],
  ["outputs", "Outputs of a bundle", number],
  ["row_work", "Work of a bundle's row", number],
  ["answer_bytes", "Bytes of a bundle's answer", bytes],
  ["keys", "Keys", number],
  ["requests_per_s", "Requests per second", number],
  ["rows_per_s", "Rows per second", number],
  ["waiting_rows", "Waiting rows", number],
  ["streams", "Streams", number],
];

const isOperator = () => may("operator");
const keysOf = (tenant) => (isOperator() ? path`tenants/${tenant}/keys` : "keys");

function Usage({ tenant }) {
  const usage = useLoaded(async () => (await call("GET", path`tenants/${tenant}/usage`)).data, [tenant], USE_EVERY_MS);
  return html`<${Loaded} of=${usage}>${(of) => html`<ul class="bars">${QUOTAS.filter(([name]) => name in of).map(([name, label, show]) => {
    const { used, limit } = of[name];
    const part = limit ? used / limit : 0;
    return html`<li><span>${label}</span>${limit === null ? html`<span class="quiet">no bound</span>` : html`<${Bar} part=${part} kind=${part >= 1 ? "full" : ""} />`}
      <span class="figure">${used === null ? "–" : show(used)}${limit !== null && ` of ${show(limit)}`}</span></li>`;
  })}</ul>`}<//>`;
}

function EditTenant({ tenant, etag, onDone, onClose }) {
  const isNew = tenant === null;
  const [form, setForm] = useState(() => ({
    name: "",
    description: tenant?.description ?? "",
    weight: String(tenant?.weight ?? 1),
    ...Object.fromEntries(QUOTAS.map(([name]) => [name, String(tenant?.quotas[name] ?? "")])),
  }));
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.value });
  const onYes = async () => {
    const chosen = Object.fromEntries(QUOTAS.map(([name]) => [name, form[name] === "" ? null : Number(form[name])]));
    const quotas = { ...tenant?.quotas, ...chosen }; // one that this page does not know stays
    const body = { description: form.description, weight: Number(form.weight), quotas };
    const headers = isNew ? { "If-None-Match": "*" } : { "If-Match": etag };
    await call("PUT", path`tenants/${isNew ? form.name : tenant.tenant}`, { body, headers });
    onDone(isNew ? form.name : tenant.tenant);
  };
  return html`<${Confirm} title=${isNew ? "A new tenant" : `Quotas of ${tenant.tenant}`} yes="Save" onYes=${onYes} onClose=${onClose}>
    ${isNew && html`<${Field} label="Name"><input required maxlength="128" value=${form.name} onInput=${set("name")} autocomplete="off" /><//>`}
    <${Field} label="Description"><input value=${form.description} maxlength="4096" onInput=${set("description")} /><//>
    <p class="quiet">An empty field is no bound.</p>
    <div class="fields">
      ${QUOTAS.map(([name, label]) => html`<${Field} label=${label}><input type="number" min="0" value=${form[name]} onInput=${set(name)} /><//>`)}
      <${Field} label="Weight" hint="Its part of the device while others wait, too"><input type="number" min="0.001" step="any" required value=${form.weight} onInput=${set("weight")} /><//>
    </div>
  <//>`;
}

function DeleteTenant({ name, onDone, onClose }) {
  const [typed, setTyped] = useState("");
  const onYes = async () => {
    if (typed !== name) throw new Error("Type the tenant's name to erase it.");
    await call("DELETE", path`tenants/${name}`);
    onDone();
  };
  return html`<${Confirm} title=${`Erase ${name}?`} yes="Erase everything" danger onYes=${onYes} onClose=${onClose}>
    <p>Its tasks, versions, keys and bundles are erased. This can't be undone.</p>
    <${Field} label=${`Type ${name} to go on`}><input required value=${typed} onInput=${(event) => setTyped(event.target.value)} autocomplete="off" /><//>
  <//>`;
}

function NewKey({ tenant, onDone, onClose }) {
  const [form, setForm] = useState({ name: "", scopes: "predict", expires: "" });
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.value });
  const onYes = async () => {
    const body = { name: form.name, scopes: form.scopes.split(/[\s,]+/).filter(Boolean), expires_at: form.expires ? new Date(form.expires).toISOString() : null };
    onDone((await call("POST", keysOf(tenant), { body })).data);
  };
  return html`<${Confirm} title=${`A new key of ${tenant}`} yes="Make it" onYes=${onYes} onClose=${onClose}>
    <${Field} label="Name" hint="For people, such as the key's owner"><input required maxlength="128" value=${form.name} onInput=${set("name")} autocomplete="off" /><//>
    <${Field} label="Scopes" hint="predict, vectors, admin or operator; with a glob such as predict:cold-*"><input required value=${form.scopes} onInput=${set("scopes")} autocomplete="off" spellcheck="false" /><//>
    <${Field} label="Expires" hint="Empty: never"><input type="datetime-local" value=${form.expires} onInput=${set("expires")} /><//>
  <//>`;
}

function RotateKey({ tenant, of, onDone, onClose }) {
  const [days, setDays] = useState("1");
  const onYes = async () => onDone((await call("POST", `${keysOf(tenant)}/${of.key_id}:rotate`, { body: { overlap_s: Number(days) * DAY_S } })).data);
  return html`<${Confirm} title=${`A new secret for ${of.name}?`} yes="Rotate" onYes=${onYes} onClose=${onClose}>
    <${Field} label="Days for which the secret until now stays valid"><input type="number" min="0" max="90" step="any" required value=${days} onInput=${(event) => setDays(event.target.value)} /><//>
  <//>`;
}

function RevokeKey({ tenant, of, onDone, onClose }) {
  const onYes = async () => {
    await call("DELETE", `${keysOf(tenant)}/${of.key_id}`);
    onDone(null);
  };
  return html`<${Confirm} title=${`Revoke ${of.name}?`} yes="Revoke" danger onYes=${onYes} onClose=${onClose}>
    <p>Requests with it are refused from then on. ${of.key_id === whoami().key_id && html`<strong>It is the key that you are signed in with.</strong>`}</p><//>`;
}

const KEY_DIALOGS = { create: NewKey, rotate: RotateKey, revoke: RevokeKey };

function Keys({ tenant }) {
  const keys = useLoaded(async () => (await call("GET", keysOf(tenant))).data, [tenant]);
  const [act, setAct] = useState(null);
  const [shown, setShown] = useState(null);
  const Dialog = act && KEY_DIALOGS[act.kind];
  return html`<h2>Keys</h2>
    ${shown && html`<div class="done" role="status"><strong>The secret of ${shown.name} is shown once:</strong>
      <p><code>${shown.api_key}</code></p>
      <div class="actions"><button onClick=${() => navigator.clipboard?.writeText(shown.api_key)}>Copy</button><button onClick=${() => setShown(null)}>I have kept it</button></div></div>`}
    <${Loaded} of=${keys}>${(all) => html`<${Scroll} label=${`Keys of ${tenant}`}><table class="stack" role="table">
      <thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col">Name</th><th role="columnheader" scope="col">Scopes</th><th role="columnheader" scope="col">Used</th><th role="columnheader" scope="col">Expires</th><th role="columnheader" scope="col">Actions</th></tr></thead>
      <tbody role="rowgroup">${all.map((key) => html`<tr role="row" key=${key.key_id}>
        <th role="rowheader" scope="row">${key.name} ${key.key_id === whoami().key_id && html`<${Tag} kind="news">yours<//>`}<small><code>${key.key_id}</code></small></th>
        <td role="cell" data-label="Scopes"><span>${key.scopes.map((scope) => html`<${Tag}>${scope}<//> `)}</span></td>
        <td role="cell" data-label="Used"><${When} at=${key.last_used_at} /></td><td role="cell" data-label="Expires"><${When} at=${key.expires_at} /></td>
        <td role="cell" data-label="Actions"><div class="row"><button onClick=${() => setAct({ kind: "rotate", key })}>Rotate …<span class="unseen"> ${key.name}</span></button><button onClick=${() => setAct({ kind: "revoke", key })}>Revoke …<span class="unseen"> ${key.name}</span></button></div></td>
      </tr>`)}</tbody></table><//>`}<//>
    <div class="actions"><button onClick=${() => setAct({ kind: "create" })}>New key …</button></div>
    ${act && html`<${Dialog} tenant=${tenant} of=${act.key} onClose=${() => setAct(null)} onDone=${(made) => (setShown(made), keys.again())} />`}`;
}

function OneTenant({ name }) {
  const tenant = useLoaded(() => call("GET", path`tenants/${name}`), [name]);
  const [act, setAct] = useState("");
  return html`<p><a href="#/tenants">All tenants</a></p><h1>${name}</h1>
    <${Loaded} of=${tenant}>${({ data, etag }) => html`
      ${data.description && html`<p>${data.description}</p>`}
      <h2>Quotas</h2><${Usage} tenant=${name} />
      <p class="quiet">Weight ${number(data.weight)}. Rates are counted for tenants that have a quota for requests.</p>
      ${isOperator() && html`<div class="actions"><button onClick=${() => setAct("edit")}>Change quotas …</button><button onClick=${() => setAct("delete")}>Erase the tenant …</button></div>`}
      ${act === "edit" && html`<${EditTenant} tenant=${data} etag=${etag} onClose=${() => setAct("")} onDone=${() => tenant.again()} />`}
      ${act === "delete" && html`<${DeleteTenant} name=${name} onClose=${() => setAct("")} onDone=${() => (location.hash = "#/tenants")} />`}
      <${Keys} tenant=${name} />`}<//>`;
}

function AllTenants() {
  const tenants = useLoaded(async () => (await call("GET", "tenants")).data, []);
  const [isNew, setNew] = useState(false);
  const bounds = (quotas) => QUOTAS.filter(([name]) => quotas[name] !== null).map(([name, label, show]) => `${label.toLowerCase()} ${show(quotas[name])}`).join(", ");
  return html`<h1>Tenants</h1>
    <${Loaded} of=${tenants}>${(all) => html`<div class="table"><table>
      <thead><tr><th scope="col">Tenant</th><th scope="col">Quotas</th><th scope="col" class="wide">Weight</th></tr></thead>
      <tbody>${all.map((each) => html`<tr key=${each.tenant}>
        <th scope="row"><a href=${`#/tenants/${encodeURIComponent(each.tenant)}`}>${each.tenant}</a>${each.description && html`<small>${each.description}</small>`}</th>
        <td>${bounds(each.quotas) || html`<span class="quiet">no bounds</span>`}</td><td class="wide">${number(each.weight)}</td></tr>`)}</tbody>
    </table></div>`}<//>
    ${isOperator() && html`<div class="actions"><button onClick=${() => setNew(true)}>New tenant …</button></div>`}
    ${isNew && html`<${EditTenant} tenant=${null} onClose=${() => setNew(false)} onDone=${(name) => (location.hash = `#/tenants/${encodeURIComponent(name)}`)} />`}`;
}

/** The pages of tenants. */
export const Tenants = ({ rest }) => (rest[0] ? html`<${OneTenant} name=${rest[0]} />` : html`<${AllTenants} />`);
