// The console: who is signed in, which page is shown.

import { render } from "./preact.js";
import { html, useEffect, useRef, useState, Problem } from "./parts.js";
import { may, maySome, signIn, signOut, whenEnded } from "./session.js";
import { Playground } from "./playground.js";
import { Registry } from "./registry.js";
import { Tasks } from "./tasks.js";
import { Tenants } from "./tenants.js";
import { Upload } from "./upload.js";

/** The pages by the first part of the address after #/; `may` hides those that a key can't use. */
const PAGES = {
  tasks: { title: "Tasks", page: Tasks, may: () => true },
  playground: { title: "Playground", page: Playground, may: () => maySome("predict") },
  upload: { title: "Upload", page: Upload, may: () => maySome("admin") },
  registry: { title: "Registry", page: Registry, may: () => maySome("admin") || may("operator") },
  tenants: { title: "Tenants", page: Tenants, may: () => may("admin") || may("operator") },
};

function placeOf(hash) {
  const [name, ...rest] = hash.replace(/^#\/?/, "").split("/").map(decoded);
  return Object.hasOwn(PAGES, name) && PAGES[name].may() ? { name, rest } : { name: "tasks", rest: [] };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function SignIn({ onDone, why }) {
  const [error, setError] = useState(why);
  const [busy, setBusy] = useState(true);
  const input = useRef(null);
  const attempt = async (typed, isSilent) => {
    setBusy(true);
    if (!isSilent) setError(null);
    try {
      onDone(await signIn(typed));
    } catch (problem) {
      if (!isSilent || problem.status !== 401) setError(problem);
      setBusy(false);
      input.current?.focus();
    }
  };
  useEffect(() => void attempt("", true), []); // a server may ask for no key
  return html`<main class="signin" id="main">
    <form onSubmit=${(event) => (event.preventDefault(), attempt(input.current.value, false))}>
      <h1>PeterRec console</h1>
      <p>Sign in with an API key. It stays in this tab's memory: reloading the page forgets it.</p>
      <label class="field"><span>API key</span>
        <input ref=${input} type="password" name="key" autocomplete="current-password" spellcheck="false" placeholder="prk_…" required aria-describedby="key-hint" />
        <small id="key-hint">The server printed its first key when it was started for the first time. Later ones are made under Tenants.</small>
      </label>
      <${Problem} error=${error} title="Not signed in" />
      <div class="actions"><button class="main" type="submit" disabled=${busy}>Sign in</button></div>
    </form>
  </main>`;
}

function Shell({ caller, onLeave }) {
  const [place, setPlace] = useState(() => placeOf(location.hash));
  const main = useRef(null);
  useEffect(() => {
    const move = () => setPlace(placeOf(location.hash));
    addEventListener("hashchange", move);
    return () => removeEventListener("hashchange", move);
  }, []);
  const { title, page: Page } = PAGES[place.name];
  useEffect(() => {
    document.title = `${[...place.rest].reverse().concat(title).join(" · ")} · PeterRec console`;
    document.querySelector("nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
    main.current.focus();
  }, [place]);
  return html`
    <button class="skip" onClick=${() => main.current.focus()}>Skip to the content</button>
    <header>
      <a class="brand" href="#/tasks">PeterRec</a>
      <nav aria-label="Pages">
        ${Object.entries(PAGES).map(([name, each]) => each.may() && html`<a href="#/${name}" aria-current=${name === place.name ? "page" : undefined}>${each.title}</a>`)}
      </nav>
      <div class="who">
        <span class="quiet">${caller.tenant}</span>
        <button onClick=${onLeave}>Sign out</button>
      </div>
    </header>
    <main id="main" ref=${main} tabindex="-1">
      <${Page} key=${JSON.stringify(place)} rest=${place.rest} />
    </main>`;
}

function Console() {
  const [caller, setCaller] = useState(null);
  const [why, setWhy] = useState(null);
  useEffect(() => whenEnded((refusal) => (setWhy(refusal), setCaller(null))), []);
  if (caller === null) return html`<${SignIn} onDone=${setCaller} why=${why} />`;
  return html`<${Shell} caller=${caller} onLeave=${() => (signOut(), setWhy(null), setCaller(null))} />`;
}

render(html`<${Console} />`, document.getElementById("console"));
