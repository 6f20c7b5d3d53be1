// Registering a bundle: dropped, verified on the device, looked at, and only then registered.

import { html, useRef, useState, Field, Problem, bytes, useLoaded } from "./parts.js";
import { call, may, path } from "./session.js";
import { ProbeReport } from "./task.js";

const nameOf = (file) => file.name.replace(/\.bundle$/, "").replace(/[^A-Za-z0-9._-]/g, "-");

function Drop({ file, onFile }) {
  const [isOver, setOver] = useState(false);
  const over = (is) => (event) => (event.preventDefault(), setOver(is));
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    if (event.dataTransfer.files.length) onFile(event.dataTransfer.files[0]);
  };
  return html`<label class=${`drop ${isOver ? "over" : ""}`} onDragOver=${over(true)} onDragLeave=${over(false)} onDrop=${drop}>
    <strong>${file ? file.name : "Drop a .bundle file here"}</strong><br />
    <span class="quiet">${file ? `${bytes(file.size)} – choose another one` : "or choose one"}</span><br />
    <input type="file" aria-label="Bundle file" onChange=${(event) => event.target.files.length && onFile(event.target.files[0])} />
  </label>`;
}

/** The page. `rest` may name the task. */
export function Upload({ rest }) {
  const tasks = useLoaded(async () => (await call("GET", "tasks")).data, []);
  const [file, setFile] = useState(null);
  const [task, setTask] = useState(rest[0] ?? "");
  const [alias, setAlias] = useState("prod");
  const [isNew, setNew] = useState(false);
  const [state, setState] = useState({ step: "choose", error: null, report: null });
  const turn = useRef(0);

  const push = async (query, busy, then) => {
    const mine = ++turn.current;
    setState({ step: busy, error: null, report: state.report });
    try {
      const options = { file, query: { alias, allow_new_outputs: isNew, ...query }, headers: { "Content-Type": "application/octet-stream" } };
      const { data } = await call("POST", path`tasks/${task}/versions`, options);
      if (mine === turn.current) setState({ step: then, error: null, report: data });
    } catch (error) {
      if (mine === turn.current) setState({ step: "choose", error, report: null });
    }
  };
  const begin = (change) => (value) => {
    ++turn.current;
    change(value);
    setState({ step: "choose", error: null, report: null });
  };
  const choose = begin((chosen) => {
    setFile(chosen);
    if (!task) setTask(nameOf(chosen));
  });
  const known = (tasks.data ?? []).filter((each) => may("admin", each.task));
  const existing = known.find((each) => each.task === task);
  const isBusy = state.step === "verifying" || state.step === "registering";

  return html`<h1>Upload a bundle</h1>
    <p>A bundle is verified and probed on this server's device before anything is registered. A refused one changes nothing.</p>
    <form onSubmit=${(event) => (event.preventDefault(), push({ validate_only: true }, "verifying", "verified"))}>
      <${Drop} file=${file} onFile=${choose} />
      <div class="fields">
        <${Field} label="Task" hint=${existing ? `It has prod v${existing.aliases.prod?.version ?? "–"}.` : task ? "A new task." : ""}>
          <input list="tasks" required maxlength="128" value=${task} onInput=${(event) => begin(setTask)(event.target.value)} autocomplete="off" /><//>
        <datalist id="tasks">${known.map((each) => html`<option value=${each.task}></option>`)}</datalist>
        <${Field} label="Alias" hint=${alias === "prod" ? "It answers the task's users as soon as it is registered." : alias ? "" : "None: it is only registered."}>
          <input value=${alias} maxlength="128" onInput=${(event) => begin(setAlias)(event.target.value)} autocomplete="off" /><//>
      </div>
      <label class="check"><input type="checkbox" checked=${isNew} onChange=${(event) => begin(setNew)(event.target.checked)} /> Allow other outputs than the alias has now</label>
      <div class="actions">
        <button class=${state.step === "verified" ? "" : "main"} type="submit" disabled=${!file || isBusy}>${state.step === "verifying" ? "Verifying …" : "Verify"}</button>
        ${state.step === "verified" && html`<button class="main" type="button" onClick=${() => push({}, "registering", "registered")}>Register for ${task}${alias && ` as ${alias}`}</button>`}
        ${state.step === "registering" && html`<span role="status">Registering …</span>`}
      </div>
    </form>
    <${Problem} error=${state.error} title="The bundle is refused" />
    ${state.step === "registered" && html`<div class="done" role="status"><strong>Registered as v${state.report.version}</strong>
      <p>${state.report.alias ? `This replica answers by it as ${state.report.alias}.` : "No alias names it yet."} <a href=${`#/tasks/${encodeURIComponent(task)}`}>Go to ${task}</a></p></div>`}
    ${state.report && html`<${ProbeReport} of=${state.report} />`}`;
}
