"""Canaries, shadows and their guard, one script per change.

The traffic is kept as the text that Python wrote, so that lists stay lists (Lua can't tell an
empty one from an empty object); beside it the numbers of the versions that take part.
"""

from peterrec.patches.registry.scripts.prelude import PRELUDE

PUT_TRAFFIC = (
    PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
if not task.aliases[PROD] then return fail('no_prod_version') end
local versions = {}
for _, digest in ipairs(arg.digests) do
  local known = load_version(digest)
  if not known then return cjson.encode({error = 'version_not_found', digest = digest}) end
  versions[digest] = known.version
end
local previous = text_of(task.traffic)
if previous == arg.traffic then
  return cjson.encode({revision = task.revision, traffic = previous, previous_traffic = previous})
end
local revision = new_revision()
remember(state_of(task))
task.traffic = {text = arg.traffic, versions = versions, revision = revision}
save_task(task, revision)
record(revision, 'put_traffic', {
  tenant = arg.tenant, task = arg.task, traffic = arg.traffic, previous_traffic = previous})
return done({revision = revision, traffic = arg.traffic, previous_traffic = previous})
"""
)

CLEAR_TRAFFIC = (
    PRELUDE
    + """
local task = load_task()
local refused = stale(task)
if refused then return refused end
if not task then return fail('task_not_found') end
if not task.traffic then return cjson.encode({revision = task.revision}) end
local revision = new_revision()
remember(state_of(task))
local previous = text_of(task.traffic)
task.traffic = nil
save_task(task, revision)
record(revision, 'clear_traffic', {
  tenant = arg.tenant, task = arg.task, previous_traffic = previous})
return done({revision = revision, previous_traffic = previous})
"""
)

TRIP_GUARD = (
    PRELUDE
    + """
local task = load_task()
if not task then return fail('task_not_found') end
if not task.traffic or task.traffic.revision ~= arg.traffic_revision then
  return cjson.encode({revision = task.revision, was_removed = false})
end
local revision = new_revision()
local tripped = task.traffic
task.traffic = nil
-- No rollback may bring back what the guard has removed, at whatever weight it ran before.
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
"""
)
