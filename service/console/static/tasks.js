// All tasks of the tenant: what answers, and how much it is asked.

import { html, useEffect, useState, Loaded, Problem, Sparkline, Tag, When, calm, number, useLoaded } from "./parts.js";
import { call, follow, may, maySome, whoami } from "./session.js";
import { stateOf, trafficOf } from "./states.js";
import { Task } from "./task.js";

const LIST_EVERY_MS = 15000;
const ACTIVITY_EVERY_MS = 3000;
const POINTS = 40;
const SHOWN = 100;

/** What was seen so far, by the one who is signed in: it is there when the list is shown again. */
let seen = { by: null, before: null, series: {} };

/** The rates of each task, of late and from now on: {rates: [requests/s], latencyMs, failed/s}. */
export function useActivity() {
  if (seen.by !== whoami()) seen = { by: whoami(), before: null, series: {} };
  const [series, setSeries] = useState(seen.series);
  const [error, setError] = useState(null);
  useEffect(() => {
    const mine = seen;
    let isOver = false;
    const look = async () => {
      try {
        const { data } = await call("GET", "activity");
        const earlier = mine.before;
        if (isOver || (earlier !== null && data.at <= earlier.at)) return;
        mine.before = data;
        setError(null);
        setSeries((mine.series = earlier === null ? ofLate(data) : withPoint(mine.series, earlier, data)));
      } catch (problem) {
        if (!isOver) setError(problem);
      }
    };
    void look();
    const timer = setInterval(() => document.hidden || void look(), ACTIVITY_EVERY_MS);
    return () => {
      isOver = true;
      clearInterval(timer);
    };
  }, []);
  return { series, error };
}

/** What the server has counted before anybody looked. */
function ofLate(now) {
  return Object.fromEntries(
    Object.entries(now.tasks).map(([task, { recent }]) => [
      task,
      { rates: recent.slice(-POINTS).map((calls) => calls / now.every_s), failed: 0, latencyMs: null },
    ]),
  );
}

function withPoint(old, before, now) {
  const seconds = now.at - before.at;
  const nothing = { answered: 0, failed: 0, seconds: 0 };
  const added = (task, field) => {
    const earlier = (before.tasks[task] ?? nothing)[field];
    const later = now.tasks[task][field];
    return later >= earlier ? later - earlier : later; // it counts from 0 after a restart
  };
  return Object.fromEntries(
    Object.keys(now.tasks).map((task) => {
      const answered = added(task, "answered");
      const failed = added(task, "failed");
      const rate = (answered + failed) / seconds;
      return [
        task,
        {
          rates: [...(old[task]?.rates ?? []), rate].slice(-POINTS),
          failed: failed / seconds,
          latencyMs: answered + failed ? (1000 * added(task, "seconds")) / (answered + failed) : null,
        },
      ];
    }),
  );
}

function Row({ task, activity }) {
  const state = stateOf(task);
  const prod = task.aliases.prod;
  const rate = activity?.rates.at(-1) ?? 0;
  const name = may("admin", task.task)
    ? html`<a href=${`#/tasks/${encodeURIComponent(task.task)}`}>${task.task}</a>`
    : task.task;
  return html`<tr role="row">
    <th scope="row" role="rowheader">${name}${task.is_sensitive && html` <${Tag} kind="warn">sensitive<//>`}
      ${task.description && html`<small>${task.description}</small>`}</th>
    <td role="cell" data-label="State"><span title=${state.why}><${Tag} kind=${state.kind}>${state.text}<//></span></td>
    <td role="cell" data-label="Version">${prod ? `v${prod.version}` : "–"}</td>
    <td role="cell" data-label="Traffic">${trafficOf(task)}</td>
    <td role="cell" data-label="Requests" class="rate">
      <${Sparkline} values=${activity?.rates ?? []} room=${POINTS} label=${`Requests to ${task.task} per second, lately`} />
      <span>${number(Math.round(10 * rate) / 10)}/s${activity?.failed > 0 && html` <${Tag} kind="bad">${number(activity.failed)} failed/s<//>`}</span>
    </td>
    <td role="cell" data-label="Mean time" class="wide">${activity?.latencyMs ? `${number(activity.latencyMs)} ms` : "–"}</td>
    <td role="cell" data-label="Changed" class="wide"><${When} at=${task.updated_at} /></td>
  </tr>`;
}

function List() {
  const [word, setWord] = useState("");
  const [count, setCount] = useState(SHOWN);
  const tasks = useLoaded(async () => (await call("GET", "tasks")).data, [], LIST_EVERY_MS);
  const { series, error } = useActivity();
  useEffect(() => {
    if (!maySome("admin")) return undefined;
    const again = calm(() => void tasks.again());
    const end = follow(again, (state) => state === "live" && again());
    return () => (end(), again.end());
  }, [tasks.again]);
  return html`<h1>Tasks</h1>
    <${Loaded} of=${tasks}>
      ${(all) => {
        const found = all.filter((task) => task.task.toLowerCase().includes(word.toLowerCase()));
        if (all.length === 0) return html`<p>There are no tasks yet. ${maySome("admin") && html`<a href="#/upload">Upload a bundle</a>, or use <code>peterrec push</code>.`}</p>`;
        return html`
          <label class="field short"><span>Find a task</span>
            <input type="search" value=${word} onInput=${(event) => setWord(event.target.value)} /></label>
          <p class="quiet" role="status">${found.length === all.length ? `${all.length} tasks` : `${found.length} of ${all.length} tasks`}. Rates are those of this replica, of the last two minutes.</p>
          <${Problem} error=${error} title="Rates are not known" />
          <div class="table">
            <table class="stack" role="table">
              <thead role="rowgroup"><tr role="row"><th role="columnheader" scope="col">Task</th><th role="columnheader" scope="col">State</th><th role="columnheader" scope="col">Version</th>
                <th role="columnheader" scope="col">Traffic</th><th role="columnheader" scope="col">Requests</th>
                <th role="columnheader" scope="col" class="wide">Mean time</th><th role="columnheader" scope="col" class="wide">Changed</th></tr></thead>
              <tbody role="rowgroup">${found.slice(0, count).map((task) => html`<${Row} key=${task.task} task=${task} activity=${series[task.task]} />`)}</tbody>
            </table>
          </div>
          ${found.length > count && html`<button onClick=${() => setCount(count + SHOWN)}>Show ${Math.min(SHOWN, found.length - count)} more</button>`}`;
      }}
    <//>`;
}

/** The page of all tasks, or of the one that is named. */
export const Tasks = ({ rest }) => (rest[0] ? html`<${Task} name=${rest[0]} />` : html`<${List} />`);
