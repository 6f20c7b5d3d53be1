-- Remove the traffic that a guard has judged, unless other traffic has replaced it.
local task = load_task()
if not task then return fail('task_not_found') end
if not task.traffic or task.traffic.revision ~= arg.traffic_revision then
  return cjson.encode({revision = task.revision, was_removed = false})
end
local revision = new_revision()
local tripped = task.traffic
task.traffic = nil
-- No rollback may bring back a version that the guard has removed, not even at another weight.
revise_states(function(state)
  for digest, _ in pairs(tripped.versions) do
    if is_in_traffic(state, digest) then state.traffic = nil end
  end
  return true
end)
save_task(task, revision)
record(revision, 'trip_guard', {
  tenant = arg.tenant, task = arg.task, previous_traffic = tripped.text,
  reason = arg.reason, observed = arg.observed})
return done({revision = revision, was_removed = true})
