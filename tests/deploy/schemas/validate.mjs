// Reads a JSON list of objects and writes what their schemas say against each, by kind and name.
import { readFileSync } from "node:fs";
import { ScaledObject } from "@kubernetes-models/keda/keda.sh/v1alpha1/ScaledObject";
import { PrometheusRule } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule";
import { ServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor";

const MODELS = { PrometheusRule, ScaledObject, ServiceMonitor };
const found = {};
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const name = `${object.kind}/${object.metadata.name}`;
  try {
    new MODELS[object.kind](object).validate();
    found[name] = null;
  } catch (error) {
    found[name] = String(error.message ?? error);
  }
}
process.stdout.write(JSON.stringify(found));
