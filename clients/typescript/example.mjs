// node example.mjs URL KEY TASK ITEM…: predicts a task for one user, and shows a refusal.
import { Client, PeterRecError } from "./dist/client.js";

const [url, apiKey, task, ...history] = process.argv.slice(2);
const client = new Client(url, { apiKey, timeoutMs: 10_000 });

const answer = await client.predict(task, { history });
const [prediction] = answer.predictions;
console.log(JSON.stringify({ task: answer.task, version: answer.version, kind: prediction.kind }));

const card = await client.predictUser({ history, tasks: [task] });
console.log(JSON.stringify(Object.keys(card.results)));

const backbone = await client.call("get", "/backbone");
console.log(JSON.stringify(typeof backbone.fingerprint));

try {
  await client.predict("nothing", { history });
} catch (error) {
  if (!(error instanceof PeterRecError)) throw error;
  console.log(JSON.stringify({ code: error.code, status: error.status, retryable: error.retryable }));
}
