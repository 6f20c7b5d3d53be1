// One history, many tasks: the profile card, recommendations, and what other versions would say.

import { html, useEffect, useState, Digest, Loaded, Problem, Tag, number, useLoaded } from "./parts.js";
import { Answer, Explanation, compare } from "./answers.js";
import { History, titlesOf, useCatalog } from "./history.js";
import { call, may } from "./session.js";
import { stateOf } from "./states.js";

const CHOSEN_AT_FIRST = 8;
const LISTED = 60;
const EXPLAINED_ITEMS = 5;

/** The versions of a task that take part beside prod: [{name, version}]. */
function othersOf(task) {
  const { canary = [], shadow = [] } = task.traffic ?? {};
  const named = (role) => (each) => ({ name: role, version: each.version });
  return [...canary.map(named("canary")), ...shadow.map(named("shadow"))].filter((each) => each.version !== null);
}

/** Ask all chosen tasks; then, in as many calls as needed, prod and the other versions of those with traffic. */
async function ask(tasks, history, options) {
  const parameters = { titles: true, top_k: options.topK, explain: options.isExplained ? EXPLAINED_ITEMS : 0 };
  const user = options.userId ? { user_id: options.userId } : {};
  const predict = (asked, /** @type {object} */ more = parameters) =>
    call("POST", "users/predict", { headers: { "X-Server-Timing": "1" }, body: { history, tasks: asked, parameters: more, ...user } });
  const main = await predict(tasks.map((task) => task.task));
  const others = {};
  const pinned = tasks.map((task) => (task.traffic ? [{ name: "prod", version: "prod" }, ...othersOf(task)] : []));
  for (let round = 0; round < Math.max(0, ...pinned.map((each) => each.length)); round++) {
    const asked = tasks.flatMap((task, at) => (pinned[at][round] ? [{ task: task.task, version: pinned[at][round].version }] : []));
    let found;
    try {
      found = (await predict(asked, { titles: true, top_k: options.topK })).data;
    } catch (error) {
      found = { results: {}, errors: Object.fromEntries(asked.map(({ task }) => [task, { message: error.message }])) };
    }
    tasks.forEach((task, at) => {
      if (!pinned[at][round]) return;
      const answer = found.results[task.task];
      (others[task.task] ??= []).push({ ...pinned[at][round], answer, error: found.errors[task.task] });
    });
  }
  return { ...main, others };
}

function Where({ of, took }) {
  const steps = took
    .split(",")
    .map((each) => each.trim().split(";"))
    .map(([name, ...rest]) => ({
      name,
      ms: Number(rest.find((part) => part.trim().startsWith("dur="))?.trim().slice(4)),
      text: rest.find((part) => part.trim().startsWith("desc="))?.trim().slice(5).replace(/^"|"$/g, ""),
    }))
    .filter((step) => Number.isFinite(step.ms));
  return html`<p class="quiet">Answered in <strong>${number(of)} ms</strong>, as this browser saw it${steps.length ? ". On the server:" : "."}</p>
    ${steps.length > 0 && html`<ul class="steps">${steps.map((step) => html`<li>${step.text ?? step.name} <strong>${number(step.ms)} ms</strong></li>`)}</ul>`}`;
}

function Beside({ others }) {
  const prod = others.find((each) => each.name === "prod");
  return html`<div class="beside">
    ${others.map((each) => html`<section>
      <h4>${each.name === "prod" ? "prod" : each.name} ${each.answer && html`<span class="quiet">v${each.answer.version}</span>`}
        ${each !== prod && prod?.answer && each.answer && html` <${Tag} kind="news">${compare(prod.answer, each.answer)}<//>`}</h4>
      ${each.answer ? html`<${Answer} of=${each.answer} />` : html`<p class="hint">${each.error?.message ?? "no answer"}</p>`}
    </section>`)}
  </div>`;
}

function Card({ task, answer, others, titles }) {
  const unknown = answer.unknown_items;
  return html`<article class="card">
    <header><h3>${task}</h3><${Tag}>${answer.kind}<//>${answer.role !== "prod" && html`<${Tag} kind="news">answered by the ${answer.role}<//>`}</header>
    ${others ? html`<${Beside} others=${others} />` : html`<${Answer} of=${answer} />`}
    ${answer.explanation && html`<${Explanation} of=${answer.explanation} titles=${{ ...titles, ...answer.titles, ...Object.fromEntries((answer.items ?? []).filter((item) => item.title).map((item) => [item.id, item.title])) }} />`}
    <footer class="quiet">
      v${answer.version} <${Digest} of=${answer.digest} /> · read ${number(answer.used_items)} items${answer.truncated && ", the newest"}
      ${unknown > 0 && html` · <${Tag} kind="warn">${number(unknown)} unknown<//> ${answer.unknown.join(", ")}`}
      ${answer.cold && html` · <${Tag} kind="warn">cold start<//>`}
    </footer>
  </article>`;
}

function Choice({ tasks, chosen, onChange }) {
  const [word, setWord] = useState("");
  const found = tasks.filter((task) => task.task.toLowerCase().includes(word.toLowerCase()));
  const flip = (name) => onChange(chosen.includes(name) ? chosen.filter((each) => each !== name) : [...chosen, name]);
  return html`<fieldset>
    <legend>Tasks</legend>
    ${tasks.length > CHOSEN_AT_FIRST && html`<label class="field"><span>Find a task</span><input type="search" value=${word} onInput=${(event) => setWord(event.target.value)} /></label>`}
    <ul class="checks">
      ${found.slice(0, LISTED).map((task) => html`<li key=${task.task}><label><input type="checkbox" checked=${chosen.includes(task.task)} onChange=${() => flip(task.task)} /> ${task.task}
        ${task.traffic && html` <${Tag} kind="news">${stateOf(task).text}<//>`}</label></li>`)}
    </ul>
    ${found.length > LISTED && html`<p class="hint">${number(found.length - LISTED)} more: find them by their names.</p>`}
    <p class="quiet" role="status">${number(chosen.length)} chosen</p>
    <div class="actions">
      <button type="button" onClick=${() => onChange(tasks.slice(0, 512).map((task) => task.task))}>All</button>
      <button type="button" onClick=${() => onChange([])}>None</button>
    </div>
  </fieldset>`;
}

function Bench({ tasks }) {
  const [chosen, setChosen] = useState(() => tasks.slice(0, CHOSEN_AT_FIRST).map((task) => task.task));
  const [history, setHistory] = useState([]);
  const [options, setOptions] = useState({ topK: 10, userId: "", isExplained: false });
  const [namer, setNamer] = useState("");
  const [more, setMore] = useState({});
  const [state, setState] = useState({ answer: null, error: null, busy: false });
  const items = useCatalog(namer);
  const titles = { ...Object.fromEntries(items.filter((item) => item.title).map((item) => [item.id, item.title])), ...more };
  const set = (name) => (event) => setOptions({ ...options, [name]: event.target.type === "checkbox" ? event.target.checked : event.target.value });

  useEffect(() => {
    let isOver = false;
    const unnamed = history.filter((id) => !(id in titles));
    if (namer && unnamed.length) {
      titlesOf(namer, unnamed).then((found) => isOver || Object.keys(found).length === 0 || setMore((old) => ({ ...old, ...found })), () => {});
    }
    return () => (isOver = true);
  }, [history, namer, items]);

  const run = async (event) => {
    event.preventDefault();
    setState((old) => ({ ...old, error: null, busy: true }));
    const asked = tasks.filter((task) => chosen.includes(task.task));
    try {
      const answer = await ask(asked, history, { ...options, topK: Number(options.topK) || 10 });
      setState({ answer, error: null, busy: false });
      if (!namer) setNamer(Object.entries(answer.data.results).find(([, each]) => each.kind === "ranking")?.[0] ?? "");
    } catch (error) {
      setState({ answer: null, error, busy: false });
    }
  };

  useEffect(() => void findNamer(tasks).then(setNamer), []);

  return html`<div class="bench">
    <div>
      <${History} history=${history} onChange=${setHistory} items=${items} titles=${titles} />
      <form onSubmit=${run}>
        <${Choice} tasks=${tasks} chosen=${chosen} onChange=${setChosen} />
        <fieldset>
          <legend>How to ask</legend>
          <label class="field"><span>Items in a ranking</span><input type="number" min="1" max="1000" value=${options.topK} onInput=${set("topK")} /></label>
          <label class="field"><span>User id</span><input value=${options.userId} onInput=${set("userId")} autocomplete="off" /><small>Decides whether a canary answers.</small></label>
          <label class="check"><input type="checkbox" checked=${options.isExplained} onChange=${set("isExplained")} /> Explain the answers</label>
        </fieldset>
        <div class="actions"><button class="main" type="submit" disabled=${state.busy || chosen.length === 0}>${state.busy ? "Asking …" : "Ask"}</button></div>
      </form>
    </div>
    <section aria-label="Answers" aria-live="polite">
      <${Problem} error=${state.error} title="No answer" />
      ${state.answer && html`<${Where} of=${state.answer.tookMs} took=${state.answer.timing} />
        <div class="cards">
          ${Object.entries(state.answer.data.results).map(([task, answer]) => html`<${Card} key=${task} task=${task} answer=${answer} others=${state.answer.others[task]} titles=${titles} />`)}
          ${Object.entries(state.answer.data.errors).map(([task, error]) => html`<article class="card" key=${task}><header><h3>${task}</h3></header><${Problem} error=${error} title="No answer" /></article>`)}
        </div>
        <p class="quiet">request <code>${state.answer.requestId}</code> · registry revision ${state.answer.data.registry_revision}</p>`}
    </section>
  </div>`;
}

/** The first ranking task, whose catalog may name items: asked of all tasks at once, for nobody. */
async function findNamer(tasks) {
  const names = tasks.filter((task) => task.aliases.prod).slice(0, 512).map((task) => task.task);
  if (names.length === 0) return "";
  const body = { history: [], tasks: names, parameters: { top_k: 1, titles: true } };
  try {
    const { results } = (await call("POST", "users/predict", { body })).data;
    const rankings = Object.entries(results).filter(([, answer]) => answer.kind === "ranking");
    return (rankings.find(([, answer]) => answer.items[0]?.title) ?? rankings[0])?.[0] ?? "";
  } catch {
    return "";
  }
}

/** The page. */
export function Playground() {
  const tasks = useLoaded(async () => (await call("GET", "tasks")).data.filter((task) => may("predict", task.task)), []);
  return html`<h1>Playground</h1>
    <p>What tasks answer for a history. Nothing is stored. The key needs the scope <code>predict</code>.</p>
    <${Loaded} of=${tasks}>${(all) => (all.length ? html`<${Bench} tasks=${all} />` : html`<p>There is no task that this key may ask.</p>`)}<//>`;
}
