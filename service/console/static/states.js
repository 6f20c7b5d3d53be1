// What a task does now, in words.

import { number } from "./parts.js";

/** What a task's state is, in a word and a sentence. */
export function stateOf(task) {
  const canaries = task.traffic?.canary ?? [];
  const shadows = task.traffic?.shadow ?? [];
  if (!task.aliases.prod) return { kind: "warn", text: "not active", why: "No version is named prod, so nothing answers." };
  if (canaries.length) return { kind: "news", text: "canary", why: "Some users are answered by another version." };
  if (shadows.length) return { kind: "news", text: "shadow", why: "Another version computes every answer without giving it." };
  return { kind: "good", text: "active", why: "The version named prod answers." };
}

/** How the requests are split, such as "v3 95 % · v4 5 %". */
export function trafficOf(task) {
  if (!task.traffic) return task.aliases.prod ? "all to prod" : "–";
  const { prod_weight: prod, canary, shadow } = task.traffic;
  const total = prod + canary.reduce((sum, each) => sum + each.weight, 0);
  const part = (weight) => `${number(Math.round((1000 * weight) / total) / 10)} %`;
  const named = (each) => (each.version === null ? "deleted" : `v${each.version}`);
  return [
    ...(total ? [`prod ${part(prod)}`] : []),
    ...canary.map((each) => `${named(each)} ${part(each.weight)}`),
    ...shadow.map((each) => `${named(each)} shadow`),
  ].join(" · ");
}
